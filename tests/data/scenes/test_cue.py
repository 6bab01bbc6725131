"""The cue scenes ask what they say: the bar's colour names the digit, and nothing near a digit tells which is meant."""

import numpy as np
import pytest
import torch

from foveal.data import CueScenes, open_dataset
from foveal.data.scenes.cue import CUE_WIDTH
from foveal.errors import FovealError


@pytest.fixture(scope="module")
def scenes():
    return CueScenes("train", length=300)


@pytest.fixture(scope="module")
def batch(scenes):
    return scenes.as_tensors()


def colour_of(pixels):
    """0 for red, 1 for green, by the brightest pixels."""
    return int(pixels[1].float().max() > pixels[0].float().max())


def test_the_named_digit_has_the_colour_of_the_bar(batch):
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        bar = image[:, :, -CUE_WIDTH:]
        assert colour_of(image[:, mask > 0]) == colour_of(bar)


def test_each_colour_and_each_place_is_meant_as_often(batch):
    bars = [colour_of(image[:, :, -CUE_WIDTH:]) for image in batch["image"]]
    assert 0.4 < np.mean(bars) < 0.6
    upper = (batch["box_xyxy"][:, 1] < 22).float().mean()
    assert 0.4 < float(upper) < 0.6


def test_the_bar_alone_and_the_digits_alone_say_nothing(scenes, batch):
    """The same digits are there whichever is meant: no column of digits tells the answer, and no bar."""
    left = batch["image"][..., : scenes.cell]
    red = (left[:, 0].float() - left[:, 1].float()).clamp_min(0).flatten(1).max(1).values
    green = (left[:, 1].float() - left[:, 0].float()).clamp_min(0).flatten(1).max(1).values
    assert (red > 60).all()
    assert (green > 60).all()


def test_a_digit_and_the_bar_are_further_apart_than_the_network_sees(scenes):
    """The receptive field of cifar_resnet8's last features, by the gradient of one of them."""
    import foveal

    net = foveal.create_model("cifar_resnet8", num_classes=10).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = {}
    net.layer3.register_forward_hook(lambda _m, _x, y: features.update(y=y))
    net(x)
    features["y"][0, :, 8, 8].sum().backward()
    columns = (x.grad[0].abs().sum((0, 1)) > 0).nonzero().flatten()
    seen = int(columns.max() - columns.min()) + 1
    assert seen <= scenes.gap, f"a feature sees {seen} columns"
    assert scenes.size - CUE_WIDTH - scenes.cell >= scenes.gap


def test_an_item_is_the_same_whoever_asks(scenes, batch):
    item = scenes[7]
    assert torch.equal(item["image"], batch["image"][7])
    assert item["label"] == int(batch["label"][7])
    assert torch.equal(CueScenes("train", length=8)[7]["image"], item["image"])
    assert not torch.equal(CueScenes("train", length=8, seed=1)[7]["image"], item["image"])
    assert scenes.fingerprint != CueScenes("train", length=300, seed=1).fingerprint


def test_it_opens_by_name():
    data = open_dataset("scenes:cue", "val", length=4, size=48, digits=[3, 8])
    assert data[0]["image"].shape == (3, 48, 48)
    assert data.classes == ["3", "8"]


@pytest.mark.parametrize(
    "options",
    [{"size": 30}, {"gap": 60}, {"length": 0}, {"split": "trian"}, {"digits": [1]}, {"digits": [1, 12]}],
)
def test_what_leaves_no_room_is_refused(options):
    with pytest.raises(FovealError, match="got"):
        CueScenes(**{"split": "train", **options})
