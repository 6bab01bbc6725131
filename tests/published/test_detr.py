"""DETR's published files compute the same here, train the same, and go back bit by bit."""

import argparse
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file

import foveal
from foveal.errors import FovealError
from foveal.published import convert, export, read
from foveal.published.detr import MMDET, OFFICIAL, TRANSFORMERS, TRANSFORMERS_RESNET

SIZES = torch.tensor([[96, 130], [70, 100]])
# a bias of keys changes no attention, and the first layer of the decoder attends among zeros
UNTRAINED = r"backbone|k_proj\.bias|decoder\.layers\.0\.self_attn"
OPTIONS = {"dc5": False, "heads": 4, "dropout": 0.0}
WIDTHS = {"width": 32, "heads": 4, "ffn_width": 48, "encoder_layers": 2, "decoder_layers": 2}


def images() -> torch.Tensor:
    """A batch whose second image is smaller and padded with zeros."""
    x = torch.randn(2, 3, 96, 130, generator=torch.Generator().manual_seed(1))
    x[1, :, 70:], x[1, :, :, 100:] = 0, 0
    return x


def targets() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    found = []
    for h, w in SIZES.tolist():
        boxes = torch.rand(3, 4, generator=generator) * torch.tensor([w, h, w, h]) / 2
        boxes[:, 2:] += boxes[:, :2] + 1
        found.append({"boxes_xyxy": boxes, "labels": torch.randint(0, 5, (3,), generator=generator)})
    return found


@pytest.fixture(scope="module", params=["timm", "own"])
def peer(request, tmp_path_factory):
    """transformers' DETR with figures that matter in every tensor, and its file; in eval mode, without dropout."""
    with warnings.catch_warnings(action="ignore"):
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, TimmBackboneConfig

        widths = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (
            ("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
        if request.param == "timm":
            body = TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=False, out_indices=[4])
        else:
            body = ResNetConfig(
                depths=[2, 2, 2, 2],
                layer_type="basic",
                hidden_sizes=[64, 128, 256, 512],
                out_features=["stage4"],
            )
        torch.manual_seed(0)
        # its auxiliary levels normalise what the next layer is given, which the authors' code does not
        config = DetrConfig(
            d_model=32, num_queries=7, num_labels=5, dropout=0.0, attention_dropout=0.0, auxiliary_loss=False,
            use_timm_backbone=False, backbone_config=body, **widths,
        )  # fmt: skip
        net = DetrForObjectDetection(config).eval()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                # a softmax that is saturated would have rounding for a gradient
                parameter.add_((0.01 if "backbone" in name else 0.1) * torch.randn_like(parameter))
            for name, buffer in net.named_buffers():
                if "running_mean" in name:
                    buffer.normal_(0, 0.1)
        folder = tmp_path_factory.mktemp("detr")
        net.save_pretrained(folder)
    return net, load_file(folder / "model.safetensors")


def run(net):
    mask = torch.zeros(2, 96, 130, dtype=torch.long)
    for one, (h, w) in zip(mask, SIZES.tolist(), strict=True):
        one[:h, :w] = 1
    labels = []
    for target, (h, w) in zip(targets(), SIZES.tolist(), strict=True):
        x1, y1, x2, y2 = (target["boxes_xyxy"] / torch.tensor([w, h, w, h])).unbind(1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        labels.append({"boxes": boxes, "class_labels": target["labels"]})
    return net(pixel_values=images(), pixel_mask=mask, labels=labels)


def test_transformers_outputs_loss_and_gradients_are_ours(peer):
    theirs, state = peer
    ours = convert(state, **OPTIONS).eval()
    expected, found = run(theirs), ours(images(), SIZES)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected.pred_boxes, rtol=0, atol=1e-6)
    assert expected.logits.std(1).mean() > 1e-4  # a hundred times the tolerance
    parts = ours.losses(found, targets(), SIZES)
    loss = sum(parts.values())
    torch.testing.assert_close(loss, expected.loss, rtol=2e-6, atol=0)
    for name, their_name, weight in (
        ("class", "loss_ce", 1),
        ("l1", "loss_bbox", 5),
        ("giou", "loss_giou", 2),
    ):
        torch.testing.assert_close(parts[name], weight * expected.loss_dict[their_name], rtol=1e-5, atol=0)
    loss.backward()
    theirs.zero_grad()
    expected.loss.backward()
    before = export(ours, ours.foveal_info["converted_from"])
    for net in (ours, theirs):
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    after = export(ours, ours.foveal_info["converted_from"])
    again = convert(in_file_names(theirs, state), **OPTIONS)
    wanted = export(again, ours.foveal_info["converted_from"])
    trained = {name for name in after if not torch.equal(wanted[name], state[name])}
    # the peer trains no stem, no first stage and no statistics
    assert {name for name in set(after) - trained if not re.search(UNTRAINED, name)} == set()
    for name in trained:
        change, expected_change = after[name] - before[name], wanted[name] - state[name]
        tolerance = max(1e-3 * float(expected_change.abs().max()), 1e-6)
        torch.testing.assert_close(change, expected_change, rtol=0, atol=tolerance, msg=name)


def in_file_names(net, state):
    """The network's tensors by the names of its file."""
    import tempfile

    with warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return {k: v.clone() for k, v in load_file(f"{folder}/model.safetensors").items()}


def test_transformers_files_go_back_bit_by_bit(peer):
    _, state = peer
    net = convert(state, **OPTIONS)
    back = export(net, net.foveal_info["converted_from"])
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (OFFICIAL, "detr_resnet18"),
        (OFFICIAL, "detr_dc5_resnet26"),
        (TRANSFORMERS, "detr_resnet18"),
        (TRANSFORMERS_RESNET, "detr_dc5_resnet26"),
        (MMDET, "detr_resnet26"),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_every_layout_goes_out_and_in(form, name):
    torch.manual_seed(0)
    frozen = form is not MMDET  # whose norms count their batches
    net = foveal.create_model(name, num_classes=91, frozen_norm=frozen, **WIDTHS)
    state = export(net, form.name)
    again = convert(state, form.name if form is MMDET else None, dc5="dc5" in name, heads=4)
    assert again.foveal_info["converted_from"] == form.name
    assert again.foveal_model["name"] == name
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert again.foveal_info["classes"][1] == "person"
    assert again.foveal_info["classes"][12] == "N/A 12"
    assert len(set(again.foveal_info["classes"])) == 91


def test_files_of_a_training_run_are_read_without_running_anything(tmp_path):
    net = foveal.create_model(
        "detr_resnet18", num_classes=80, frozen_norm=True, positions="learned", **WIDTHS
    )
    state = export(net, "detr-official")
    assert "backbone.1.row_embed.weight" in state
    arguments = argparse.Namespace(lr=1e-4, masks=False, device="cuda", nested=[1, (2, "x")])
    torch.save({"model": state, "optimizer": {}, "epoch": 3, "args": arguments}, tmp_path / "run.pth")
    again = convert(read(tmp_path / "run.pth"), dc5=False)
    assert torch.equal(again.query_embed.weight, net.query_embed.weight)
    assert again.foveal_info["classes"][0] == "person"

    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"model": state, "args": argparse.Namespace(evil=Evil())}, tmp_path / "evil.pth")
    with pytest.raises(FovealError, match=r"got print in it, which could run code"):
        read(tmp_path / "evil.pth")


def test_dc5_must_be_stated_as_its_files_look_the_same():
    net = foveal.create_model("detr_resnet18", num_classes=5, frozen_norm=True, **WIDTHS)
    state = export(net, "detr-official")
    with pytest.raises(FovealError, match="dc5 must be given, true or false"):
        convert(state)


def test_a_file_that_does_not_fit_says_where():
    net = foveal.create_model("detr_resnet18", num_classes=5, frozen_norm=True, **WIDTHS)
    state = export(net, "detr-official")
    del state["transformer.decoder.layers.1.norm2.weight"]
    with pytest.raises(FovealError, match=r"transformer\.decoder\.layers\.1\.norm2\.weight"):
        convert(state, dc5=False)


def test_forms_that_no_published_code_has_are_not_exported():
    net = foveal.create_model("detr_resnet18", num_classes=5, queries="anchors", **WIDTHS)
    with pytest.raises(FovealError, match="detr-official"):
        export(net, "detr-official")
