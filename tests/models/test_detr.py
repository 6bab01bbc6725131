"""DETR has the paper's size, its options do what they say, and its pictures are what was computed."""

import pytest
import torch
from torch import nn

import foveal
from foveal.measure import count_macs
from foveal.models.boxes import inverse_sigmoid
from foveal.models.denoising import noisy_copies
from foveal.models.detr import DETR
from foveal.models.set_loss import Objects
from foveal.models.transformer import QuerySet

SMALL = {"width": 32, "heads": 4, "ffn_width": 48, "num_queries": 6, "num_classes": 5, "encoder_layers": 1}
SMALL |= {"decoder_layers": 2, "stride": 8, "dropout": 0.0}
SELECTED = {**SMALL, "queries": "selected", "concatenated": True, "classification": "focal"}
TARGETS = [
    {
        "boxes_xyxy": torch.tensor([[4.0, 4.0, 30.0, 40.0], [9.0, 2.0, 50.0, 20.0]]),
        "labels": torch.tensor([3, 0]),
    },
    {"boxes_xyxy": torch.tensor([[1.0, 1.0, 9.0, 9.0]]), "labels": torch.tensor([1])},
]
SIZES = torch.tensor([[48, 64], [40, 50]])


def small(**options) -> DETR:
    torch.manual_seed(0)
    return DETR("test_resnet", **{**SMALL, **options})


@pytest.mark.parametrize(
    ("name", "parameters", "paper_gmacs"),
    [
        ("detr_resnet50", 41_524_768, 86),
        ("detr_dc5_resnet50", 41_524_768, 187),
        ("detr_resnet101", 60_464_672, 152),
    ],
)
def test_size_and_work_are_the_papers(name, parameters, paper_gmacs):
    """The paper counts the first 100 validation images of COCO, on average a little larger than 800 x 1066."""
    with torch.device("meta"):
        net = foveal.create_model(name, frozen_norm=True).eval()
        macs = count_macs(net, torch.zeros(1, 3, 800, 1066))
    assert sum(p.numel() for p in net.parameters()) == parameters
    if "50" in name:
        assert len(net.state_dict()) == 458
    assert 0.90 * paper_gmacs < macs / 1e9 < paper_gmacs


def test_it_starts_as_published():
    net = small()
    assert all(
        (b == 0).all() for n, b in net.named_parameters() if "in_proj_bias" in n or "out_proj.bias" in n
    )
    assert 0.8 < net.query_embed.weight.std() < 1.2
    bound = (6 / (32 + 48)) ** 0.5
    assert 0.95 * bound < net.encoder[0].ffn.linear1.weight.abs().max() <= bound
    # PyTorch's own start of a linear layer: uniform within one over the root of its inputs
    assert net.class_embed.weight.abs().max() <= 32**-0.5
    assert net.bbox_embed.layers[2].weight.abs().max() > 0


def test_dropout_is_where_the_paper_has_it_and_nowhere_in_evaluation():
    net = small(dropout=0.5)
    x = torch.randn(1, 3, 48, 64)
    assert not torch.equal(net(x)["logits"], net(x)["logits"])
    assert net.encoder[0].self_attn.dropout == net.decoder[0].multihead_attn.dropout == 0.5
    net.eval()
    assert torch.equal(net(x)["logits"], net(x)["logits"])


def test_padding_of_one_image_does_not_reach_another():
    """A padded batch gives each image what it gives alone at the same padding."""
    net = small().eval()
    x = torch.randn(2, 3, 48, 64)
    x[1, :, 40:], x[1, :, :, 50:] = 0, 0
    both = net(x, SIZES)["logits"]
    alone = torch.cat([net(x[i : i + 1], SIZES[i : i + 1])["logits"] for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(both[1], net(x)["logits"][1], atol=1e-4)


def test_noise_in_the_padding_is_not_attended_to():
    """Behind the backbone: tokens of padded cells change nothing."""
    net = small().eval()
    net.backbone = nn.Identity()
    net.input_proj = nn.Identity()
    features = torch.randn(2, 32, 6, 8)
    sizes = torch.tensor([[6, 8], [4, 5]])
    noisy = features.clone()
    noisy[1, :, 4:] += 5
    noisy[1, :, :, 5:] += 5
    one, two = (
        net._decode(*net._queries(one, 1)[:2], one, [QuerySet(1, 6)])[-1]["logits"]
        for one in (memory(net, x, sizes) for x in (features, noisy))
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def memory(net: DETR, features: torch.Tensor, sizes: torch.Tensor):
    """The encoder's tokens of given features."""
    net.backbone.forward = lambda _: [features]
    return net.encode(torch.zeros(2, 3, 6, 8), sizes)


def test_refined_boxes_start_at_their_anchors_and_move_on_from_them():
    net = small(queries="anchors").eval()
    boxes = net(torch.randn(1, 3, 48, 64))["boxes"]
    torch.testing.assert_close(boxes[0], net.anchors.weight.sigmoid().clamp(1e-5, 1), rtol=0, atol=1e-5)
    nn.init.constant_(net.bbox_embed.layers[-1].bias, 0.3)
    moved = net(torch.randn(1, 3, 48, 64))["boxes"]
    # two layers, each 0.3 further
    torch.testing.assert_close(inverse_sigmoid(moved[0]), net.anchors.weight + 0.6, rtol=0, atol=1e-3)


def test_anchors_carry_no_gradient_from_a_later_layer():
    net = small(queries="anchors")
    outputs = net(torch.randn(1, 3, 48, 64))
    (gradient,) = torch.autograd.grad(
        outputs["levels"][0]["boxes"].sum(), net.anchors.weight, retain_graph=True
    )
    assert gradient.abs().max() > 0
    (gradient,) = torch.autograd.grad(
        outputs["boxes"].sum(), net.bbox_embed.layers[-1].bias, retain_graph=True
    )
    assert gradient.abs().max() > 0


def test_selected_queries_are_the_encoders_most_certain_positions():
    net = small(queries="selected", classification="focal", decoder_layers=1).eval()
    with torch.no_grad():
        proposed = net.proposals(net.encode(x := torch.randn(1, 3, 48, 64)))
        best = proposed["logits"].amax(-1).topk(6).indices[0]
        torch.testing.assert_close(net(x)["boxes"][0], proposed["boxes"][0, best], rtol=0, atol=1e-5)
    # with heads at zero a proposal is two cells wide around the middle of its cell
    first = proposed["boxes"][0, 0]
    torch.testing.assert_close(first, torch.tensor([0.5 / 8, 0.5 / 6, 2 / 8, 2 / 6]), rtol=0, atol=1e-5)


def test_selected_queries_are_never_padding():
    net = small(queries="selected", classification="focal").eval()
    nn.init.constant_(net.proposals.bbox_embed.layers[-1].bias, 0)
    boxes = net(torch.zeros(2, 3, 48, 64), torch.tensor([[48, 64], [16, 24]]))["boxes"]
    assert (boxes[..., :2] <= 1).all()


def test_groups_train_alike_and_only_the_first_is_used():
    net = small(queries="anchors", groups=3)
    x = torch.randn(2, 3, 48, 64)
    outputs = net(x, SIZES)
    assert len(outputs["groups"]) == 2 * 2
    assert outputs["groups"][0]["boxes"].shape == (2, 6, 4)
    net.eval()
    first = net(x, SIZES)["boxes"]
    with torch.no_grad():
        net.query_embed.weight[6:] += 1
        net.anchors.weight[6:] += 1
    assert torch.equal(net(x, SIZES)["boxes"], first)


def test_denoising_restores_the_objects_without_matching():
    net = small(queries="anchors", denoising=4)
    outputs = net(torch.randn(2, 3, 48, 64), SIZES, TARGETS)
    levels = outputs["denoising"]["levels"]
    assert len(levels) == 2
    assert levels[0]["boxes"].shape == (2, 8, 4)
    parts = net.losses(outputs, TARGETS, SIZES)
    perfect = {**outputs, "denoising": {"groups": 4, "levels": [perfect_level() for _ in range(2)]}}
    better = net.losses(perfect, TARGETS, SIZES)
    assert better["l1_denoising"] < 1e-5 < parts["l1_denoising"]
    assert better["class_denoising"] < 1e-3 < parts["class_denoising"]
    assert better["giou_denoising"].abs() < 1e-5


def perfect_level() -> dict[str, torch.Tensor]:
    """Predictions that are the objects, four times; what stands for no object in the second image is anything."""
    objects = Objects.of(TARGETS, SIZES, 5).repeated(4)
    logits = 20.0 * torch.nn.functional.one_hot(objects.labels, 6).float()
    logits[1, 1::2] = 7.0
    return {"logits": logits, "boxes": objects.boxes}


def test_noise_keeps_objects_in_order_and_within_its_range():
    torch.manual_seed(0)
    objects = Objects.of(TARGETS, SIZES, 5)
    noisy = noisy_copies(objects, 50, 5, label_noise=0.5, box_noise=0.4)
    boxes = noisy.boxes.unflatten(1, (50, 2))
    change = (boxes - objects.boxes[:, None]) / objects.boxes[:, None, :, 2:].repeat(1, 1, 1, 2)
    assert 0.15 < change[..., :2].abs().max() <= 0.2 + 1e-6
    assert 0.3 < change[..., 2:].abs().max() <= 0.4 + 1e-6
    same = (noisy.labels.unflatten(1, (50, 2)) == objects.labels[:, None]).float().mean()
    assert 0.5 < same < 0.72
    assert noisy.present.unflatten(1, (50, 2)).all(1).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("options", [SMALL, SELECTED])
def test_pictures_show_the_rows_of_the_asked_queries(options):
    torch.manual_seed(0)
    net = DETR("test_resnet", **options).eval()
    x = torch.randn(2, 3, 48, 64)
    x[1, :, 40:], x[1, :, :, 50:] = 0, 0
    queries = torch.tensor([[4, 0], [2, 2]])
    cross = net.detection_attention(x, SIZES, queries)["cross"]
    assert cross.shape == (2, 2, 4, 2, 6, 8)
    torch.testing.assert_close(cross.sum((-1, -2)), torch.ones(2, 2, 4, 2))
    assert cross[1, ..., 5, :].max() == cross[1, ..., :, 7].max() == 0
    every = net.detection_attention(x, SIZES, torch.arange(6).expand(2, 6))["cross"]
    torch.testing.assert_close(every[0][:, :, [4, 0]], cross[0], rtol=0, atol=1e-6)
    encoder = net.encoder_attention(x, SIZES, [(0, 0), (3, 2)])
    assert encoder.shape == (2, 1, 4, 2, 6, 8)
    torch.testing.assert_close(encoder.sum((-1, -2)), torch.ones(2, 1, 4, 2))
    with pytest.raises(ValueError, match="must lie within a map of size"):
        net.encoder_attention(x, SIZES, [(6, 0)])


def test_the_image_is_read_as_rows_and_columns():
    """A picture of the attention of one position: turned around, the map turns."""
    net = small().eval()
    x = torch.randn(1, 3, 48, 64)
    shown = net.encoder_attention(x, None, [(2, 5)])
    with torch.no_grad():
        tokens = net.input_proj(net.backbone(x)[-1]).flatten(2).transpose(1, 2)
        place = net.position(torch.tensor([[6, 8]]), (6, 8))
        rows = net.encoder[0].self_attn.rows(torch.tensor([[2 * 8 + 5]]), tokens, place, tokens, place)
    torch.testing.assert_close(shown[0, 0, :, 0], rows[0, :, 0].unflatten(-1, (6, 8)), rtol=0, atol=1e-6)


def test_softmax_gives_one_detection_a_query_and_focal_the_best_of_all():
    outputs = {
        "logits": torch.tensor([[[3.0, 2.0, 0.0], [0.0, 4.0, 9.0]]]),
        "boxes": torch.full((1, 2, 4), 0.5),
    }
    net = small(num_classes=2)
    found = net.detections(outputs, torch.tensor([[10, 20]]))[0]
    assert found["labels"].tolist() == [0, 1]
    torch.testing.assert_close(found["scores"], outputs["logits"][0].softmax(-1)[..., :2].amax(-1))
    torch.testing.assert_close(found["boxes_xyxy"][0], torch.tensor([5.0, 2.5, 15.0, 7.5]))
    focal = small(num_classes=3, classification="focal")
    assert focal.detections(outputs, torch.tensor([[10, 20]]), limit=3)[0]["queries"].tolist() == [1, 1, 0]
