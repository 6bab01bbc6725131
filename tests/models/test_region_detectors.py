"""FCOS and Faster R-CNN answer and lose as torchvision's own call of them does, and fit what the task asks."""

import copy

import pytest
import torch
from torch import nn

import foveal
from foveal.errors import FovealError
from foveal.models.detection import DetectionNet

from .test_detection import SIZES, TARGETS, images

KINDS = ["fcos", "faster_rcnn"]


def build(kind: str, **options):
    torch.manual_seed(0)
    small = {"width": 64, "strides": (4, 8), "anchor_strides": 4.0, "num_classes": 5}
    return foveal.create_model(f"{kind}_test_resnet", **{**small, **options})


class Whole(nn.Module):
    """Backbone and pyramid as one, which torchvision's call expects."""

    def __init__(self, body, pyramid):
        super().__init__()
        self.body, self.pyramid, self.out_channels = body, pyramid, pyramid.out_channels

    def forward(self, x):
        return self.pyramid(self.body(x.contiguous(memory_format=torch.channels_last)))


def given(net):
    return [{"boxes": one["boxes_xyxy"], "labels": one["labels"] + net.first_label} for one in TARGETS]


def theirs(net, x, targets=None):
    """torchvision's call, which resizes and pads by itself: to what the images are already."""
    own = copy.deepcopy(net)
    detector = own.net
    detector.backbone = Whole(own.backbone, detector.backbone)
    detector.transform.min_size, detector.transform.max_size = (48,), 64
    detector.transform.size_divisible = 8
    return detector(list(x), targets)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_torchvisions(kind):
    net = build(kind).eval()
    x = images()
    outputs = net(x)
    found = net.detections(outputs, torch.tensor([[48, 64]] * 2))
    with torch.no_grad():
        expected = theirs(net, x)
    for mine, other in zip(found, expected, strict=True):
        assert len(mine["scores"]) == len(other["scores"]) > 0
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-6)
        order = mine["queries"]
        assert torch.equal(mine["labels"], (other["labels"] - net.first_label)[order])
        torch.testing.assert_close(mine["boxes_xyxy"], other["boxes"][order], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_torchvisions(kind):
    net = build(kind).train()
    x, whole = images(), torch.tensor([[48, 64]] * 2)
    torch.manual_seed(3)
    other = theirs(net, x, given(net))
    torch.manual_seed(3)
    for _ in x:
        torch.empty(1).uniform_()  # torchvision draws the size of each image, of which it has one
    mine = net.losses(net(x, whole, TARGETS), TARGETS, whole)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)
    sum(mine.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_loss_is_the_same_each_time_and_draws_nothing(kind):
    net = build(kind).eval()
    state = torch.get_rng_state()
    first, second = (net(images(), SIZES, TARGETS) for _ in range(2))
    assert first["losses"].keys() == second["losses"].keys()
    assert all(torch.equal(value, second["losses"][name]) for name, value in first["losses"].items())
    alone = net(images()[:1], SIZES[:1], TARGETS[:1])["losses"]
    for name, value in alone.items():
        torch.testing.assert_close(value, first["losses"][name][:1], rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_stay_inside_the_unpadded_image_and_blocks_go_into_the_backbone(kind):
    net = build(kind).eval()
    assert isinstance(net, DetectionNet)
    found = net.detections(net(images(), SIZES), SIZES)
    for one, (height, width) in zip(found, SIZES.tolist(), strict=True):
        assert (one["boxes_xyxy"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
    before = net(images(), SIZES)["logits"]
    foveal.insert(net, "cbam", at="residual", stages=(2,), reduction=4, example=images())
    assert all(one.site.startswith("backbone.layer2") for one in foveal.inserted(net))
    assert torch.equal(net(images(), SIZES)["logits"], before)


def test_it_trains_is_evaluated_and_saved_as_every_detector(tmp_path):
    from foveal.evaluate import evaluate
    from foveal.inference import predictor
    from foveal.train import TrainConfig, fit

    result = fit(
        TrainConfig.from_dict({
            "task": "detect", "model": "fcos_test_resnet", "data_options": {"length": 12}, "epochs": 1, "batch_size": 4,
            "model_options": {"width": 64, "strides": [4, 8]}, "accelerator": "cpu", "out": str(tmp_path / "run"),
        }),
        quiet=True,
    )  # fmt: skip
    assert {"train_classification", "train_bbox_regression", "train_bbox_ctrness"} <= result.rows[-1].keys()
    found = evaluate(predictor(str(result.weights), "cpu"), data_options={"length": 6})
    assert 0 <= found.figures["ap"] <= 1


def test_a_smaller_second_stage_judges_fewer_proposals():
    net = build("faster_rcnn", head_width=16, proposals=9).eval()
    judged = []
    net.net.roi_heads.box_head.register_forward_hook(
        lambda module, args, out: judged.append(tuple(out.shape))
    )
    net(images())
    net.train()(images(), SIZES, TARGETS)
    assert judged[0] == (2 * 9, 16)
    assert judged[1][0] <= 2 * 9, "of a step no more are sampled than there are"
    with pytest.raises(FovealError, match="proposals must be at least 1, got 0"):
        build("faster_rcnn", proposals=0)


def test_what_cannot_be_is_refused():
    with pytest.raises(FovealError, match="width must be a multiple of 64, got 40"):
        build("fcos", width=40)
    with pytest.raises(FovealError, match="anchor_strides must be above 0"):
        build("faster_rcnn", anchor_strides=0.0)
    with pytest.raises(FovealError, match="features_only and out_indices are for classifiers"):
        build("fcos", features_only=True)
