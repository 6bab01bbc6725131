"""What the task asks of every detector, held for both families and their options."""

import pytest
import torch

import foveal
from foveal.errors import FovealError
from foveal.models.detection import DetectionNet, FrozenNorm, best_of_all, best_of_each

SMALL = {"width": 32, "heads": 4, "ffn_width": 48, "num_queries": 6, "num_classes": 5}
DETR = {**SMALL, "encoder_layers": 1, "decoder_layers": 2, "stride": 8}
SELECTED = {**DETR, "queries": "selected", "concatenated": True, "classification": "focal"}
SPARSE = {**SMALL, "stages": 2, "dynamic_width": 8, "strides": (4, 8)}
NETS = {
    "detr": ("detr_test_resnet", DETR),
    "learned positions": ("detr_test_resnet", {**DETR, "positions": "learned"}),
    "dc5": ("detr_dc5_test_resnet", {k: v for k, v in DETR.items() if k != "stride"}),
    "anchors": ("detr_test_resnet", {**DETR, "queries": "anchors", "denoising": 2, "groups": 2}),
    "selected": ("detr_test_resnet", {**SELECTED, "denoising": 2, "groups": 3}),
    "sparse": ("sparse_rcnn_test_resnet", SPARSE),
    "small sparse": (
        "sparse_rcnn_cifar_resnet8",
        {**SPARSE, "strides": (2, 4), "zero_deltas": True, "start_boxes": "grid", "roi_reference": None},
    ),
}
TARGETS = [
    {
        "boxes_xyxy": torch.tensor([[4.0, 4.0, 30.0, 40.0], [10.0, 2.0, 50.0, 20.0]]),
        "labels": torch.tensor([3, 0]),
    },
    {"boxes_xyxy": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]
SIZES = torch.tensor([[48, 64], [40, 50]])


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    name, options = NETS[kind]
    return foveal.create_model(name, **options)


def images() -> torch.Tensor:
    """Two images of the sizes above, padded with zeros."""
    x = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    x[1, :, 40:], x[1, :, :, 50:] = 0, 0
    return x


@pytest.mark.parametrize("kind", [*NETS, "one layer"])
def test_every_parameter_has_a_gradient_even_where_a_batch_has_no_object(kind):
    """Processes that train together wait for all of them."""
    torch.manual_seed(0)
    one_layer = ("detr_test_resnet", {**SELECTED, "decoder_layers": 1, "denoising": 2})
    name, options = NETS.get(kind, one_layer)
    net = foveal.create_model(name, **options)
    nothing = [TARGETS[1], TARGETS[1]]
    sum(net.losses(net(images(), SIZES, nothing), nothing, SIZES).values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", NETS)
def test_a_detector_keeps_the_contract(kind):
    net = build(kind)
    assert isinstance(net, DetectionNet)
    for sizes in (None, SIZES):
        outputs = net(images(), sizes, TARGETS)
        assert outputs["boxes"].shape == (2, 6, 4)
        assert outputs["logits"].shape[:2] == (2, 6)
        parts = net.losses(outputs, TARGETS, SIZES)
        assert {"class", "l1", "giou", "class_inner", "l1_inner", "giou_inner"} <= set(parts)
        assert all(value.shape == () and value.isfinite() for value in parts.values())
    sum(parts.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    net.eval()
    outputs = net(images(), SIZES)
    assert set(outputs) == {"logits", "boxes"}
    found = net.detections(outputs, SIZES, limit=4)
    assert len(found) == 2
    for one in found:
        assert set(one) == {"boxes_xyxy", "scores", "labels", "queries"}
        assert len(one["scores"]) <= 4
        assert one["scores"].diff().le(0).all()
        assert one["labels"].max() < 5
        assert one["queries"].max() < 6


@pytest.mark.parametrize("kind", ["detr", "selected", "small sparse"])
def test_an_inserted_block_changes_nothing_at_first_and_survives_saving(kind, tmp_path):
    net = build(kind).eval()
    with torch.no_grad():
        before = net(images(), SIZES)
        foveal.insert(net, "cbam", at="residual", reduction=4, example=torch.zeros(1, 3, 64, 64))
        sites = [one.site for one in foveal.inserted(net)]
        after = net(images(), SIZES)
        foveal.save(net, tmp_path / "net.safetensors")
        again = foveal.load(tmp_path / "net.safetensors").eval()(images(), SIZES)
    assert sites
    assert all(site.startswith("backbone.") for site in sites)
    for name in before:
        assert torch.equal(before[name], after[name])
        assert torch.equal(before[name], again[name])


@pytest.mark.parametrize("kind", ["detr", "selected", "sparse"])
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (33, 65)])
def test_any_size_and_no_object_at_all_work(kind, size):
    net = build(kind)
    x, sizes = torch.randn(2, 3, *size), torch.tensor([size, size])
    nothing = [TARGETS[1], TARGETS[1]]
    parts = net.losses(net(x, sizes, nothing), nothing, sizes)
    assert sum(parts.values()).isfinite()
    net.eval()
    assert len(net.detections(net(x[:1], sizes[:1]), sizes[:1])) == 1


@pytest.mark.parametrize("kind", ["detr", "selected", "sparse"])
def test_bfloat16_autocast_and_channels_last_train(kind):
    net = build(kind).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(x, SIZES, TARGETS)
        parts = net.losses(outputs, TARGETS, SIZES)
    assert outputs["boxes"].dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in parts.values())
    sum(parts.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", ["detr", "sparse", "selected"])
def test_one_query_is_enough(kind):
    name, options = NETS[kind]
    net = foveal.create_model(name, **{**options, "num_queries": 1})
    parts = net.losses(net(images(), SIZES, TARGETS), TARGETS, SIZES)
    assert sum(parts.values()).isfinite()


def test_frozen_norms_keep_names_values_and_outputs():
    torch.manual_seed(0)
    plain = foveal.create_model("detr_test_resnet", **DETR)
    plain(images())  # statistics other than 0 and 1
    frozen = foveal.create_model("detr_test_resnet", **DETR, frozen_norm=True)
    state = {k: v for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(state) == set(frozen.state_dict())
    frozen.load_state_dict(state)
    plain.eval()
    frozen.eval()
    torch.testing.assert_close(plain(images())["boxes"], frozen(images())["boxes"])
    norms = [m for m in frozen.modules() if isinstance(m, FrozenNorm)]
    assert norms
    assert not any(list(norm.parameters()) for norm in norms)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("detr_resnt18", {}, "did you mean"),
        ("detr_test_resnet", {"stride": 7}, "strides of test_resnet must be among"),
        (
            "detr_test_resnet",
            {"queries": "all"},
            "queries must be one of learned, anchors, selected, got 'all'",
        ),
        ("detr_test_resnet", {"denoising": 1}, "denoising must be 0 with learned queries, got 1"),
        ("detr_test_resnet", {"width": 30}, "multiple of"),
        ("sparse_rcnn_test_resnet", {"strides": (4, 16)}, "each twice the one before"),
        ("sparse_rcnn_test_resnet", {"start_boxes": "random"}, "start_boxes must be image or grid"),
        ("detr_test_resnet", {"features_only": True}, "take its `backbone`"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(name, options, words):
    with pytest.raises(FovealError, match=words):
        foveal.create_model(name, **options)


def test_detections_are_the_best_of_each_query_or_of_all_pairs():
    p = torch.tensor([[[0.1, 0.9], [0.8, 0.7]]])
    scores, labels, queries = best_of_each(p, 5)
    assert (labels.tolist(), queries.tolist()) == ([[1, 0]], [[0, 1]])
    assert torch.equal(scores, torch.tensor([[0.9, 0.8]]))
    scores, labels, queries = best_of_all(p, 3)
    assert (labels.tolist(), queries.tolist()) == ([[1, 0, 1]], [[0, 1, 1]])
    assert scores.shape == (1, 3)
