"""The control scenes ask what they say: the bar's colour names the patch, and nothing near a patch tells it."""

import numpy as np
import pytest
import torch

from foveal.data import CueScenes, open_dataset
from foveal.data.scenes.cue import CUE_WIDTH, PATCH
from foveal.errors import FovealError


@pytest.fixture(scope="module")
def scenes():
    return CueScenes("train", length=400)


@pytest.fixture(scope="module")
def batch(scenes):
    return scenes.as_tensors()


def colour_of(pixels):
    """0 for red, 1 for green, by the brightest pixels."""
    return int(pixels[1].float().max() > pixels[0].float().max())


def bars(batch):
    return np.array([colour_of(image[:, :, -CUE_WIDTH:]) for image in batch["image"]])


def test_the_named_patch_has_the_colour_of_the_bar(batch):
    patches = [
        colour_of(image[:, mask > 0]) for image, mask in zip(batch["image"], batch["mask"], strict=True)
    ]
    assert (bars(batch) == patches).all()


def test_the_label_is_the_pattern_of_the_named_patch(scenes, batch):
    for image, mask, label in zip(batch["image"], batch["mask"], batch["label"], strict=True):
        lit = image.max(0).values[mask > 0].reshape(PATCH, PATCH) > 128
        shown = {
            "rows": bool((lit == lit[:, :1]).all()),
            "columns": bool((lit == lit[:1]).all()),
            "plain": bool(lit.all()),
        }
        name = (
            "plain"
            if shown["plain"]
            else "rows"
            if shown["rows"]
            else "columns"
            if shown["columns"]
            else "checks"
        )
        assert name == scenes.classes[int(label)]


def test_each_colour_place_and_pattern_is_meant_as_often(batch):
    assert 0.4 < bars(batch).mean() < 0.6
    assert 0.4 < float((batch["box_xyxy"][:, 1] < 13).float().mean()) < 0.6
    assert (torch.bincount(batch["label"]) > 70).all()
    by_bar = [torch.bincount(batch["label"][torch.from_numpy(bars(batch) == c)]) for c in (0, 1)]
    assert all((counts > 30).all() for counts in by_bar), "the bar alone names no pattern"


def test_both_patches_are_there_whichever_is_meant(scenes, batch):
    """Nothing at the left tells the answer: a red and a green patch in every scene, of two patterns."""
    left = batch["image"][..., : scenes.columns].float()
    assert ((left[:, 0] - left[:, 1]).flatten(1).max(1).values > 100).all()
    assert ((left[:, 1] - left[:, 0]).flatten(1).max(1).values > 100).all()


def test_a_patch_and_the_bar_are_further_apart_than_the_network_sees(scenes):
    """The receptive field of the recipe's network, by the gradient of one of its last features."""
    import foveal

    net = foveal.create_model("cifar_resnet8", num_classes=4, stages=2).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = {}
    net.layer2.register_forward_hook(lambda _m, _x, y: features.update(y=y))
    net(x)
    features["y"][0, :, 16, 16].sum().backward()
    columns = (x.grad[0].abs().sum((0, 1)) > 0).nonzero().flatten()
    seen = int(columns.max() - columns.min()) + 1
    assert seen <= scenes.gap, f"a feature sees {seen} columns"
    assert scenes.size - CUE_WIDTH - scenes.columns >= scenes.gap


def test_without_the_cue_there_is_one_patch_and_the_bar_says_nothing():
    scenes = open_dataset("scenes:local", "train", length=400)
    batch = scenes.as_tensors()
    left = batch["image"][..., : scenes.columns].max(1).values > 128
    assert ((left & (batch["mask"][..., : scenes.columns] == 0)).sum((1, 2)) == 0).all(), (
        "lit in the patch alone"
    )
    patches = np.array([colour_of(i[:, m > 0]) for i, m in zip(batch["image"], batch["mask"], strict=True)])
    assert 0.4 < (bars(batch) == patches).mean() < 0.6


def test_an_item_is_the_same_whoever_asks(scenes, batch):
    item = scenes[7]
    assert torch.equal(item["image"], batch["image"][7])
    assert item["label"] == int(batch["label"][7])
    assert torch.equal(CueScenes("train", length=8)[7]["image"], item["image"])
    assert not torch.equal(CueScenes("train", length=8, seed=1)[7]["image"], item["image"])
    other = [CueScenes("train", length=400, seed=1), CueScenes("train", length=400, cue=False)]
    assert scenes.fingerprint not in {one.fingerprint for one in other}


def test_it_opens_by_name():
    data = open_dataset("scenes:cue", "val", length=4, size=48, gap=20)
    assert data[0]["image"].shape == (3, 48, 48)
    assert data.classes == ["rows", "columns", "checks", "plain"]


@pytest.mark.parametrize(
    "options", [{"size": 25}, {"gap": 60}, {"length": 0}, {"split": "trian"}, {"size": 1000}]
)
def test_what_leaves_no_room_is_refused(options):
    with pytest.raises(FovealError, match="got"):
        CueScenes(**{"split": "train", **options})
