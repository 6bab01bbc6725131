"""Steps that move image, mask and boxes together, and what they say of themselves."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from foveal.data import (
    JointTransform,
    eval_transform,
    segmentation_eval_transform,
    segmentation_train_transform,
    train_transform,
)
from foveal.data.joint import CentreOnCanvas, Rescale, ResizeInto

IMAGE = {"image": torch.arange(3 * 40 * 60).reshape(3, 40, 60).remainder(256).to(torch.uint8)}


@pytest.mark.parametrize(
    ("transform", "random"),
    [
        (eval_transform(32), False),
        (eval_transform((32, 48)), False),
        (eval_transform(32, resize="longer"), False),
        (eval_transform(32, resize="exact"), False),
        (segmentation_eval_transform(shorter=20), False),
        (train_transform(32, crop="none", flip=0), False),
        (train_transform(32, crop="none"), True),
        (train_transform(32, crop="pad", flip=0), True),
        (train_transform(100, flip=0), True),
        (train_transform(32, crop="none", flip=0, jitter=0.5), True),
        (segmentation_train_transform(32), True),
        (JointTransform([Rescale(0.5, 0.5)]), False),
        (JointTransform([Rescale(0.5, 2.0)]), True),
        (JointTransform([]), False),
        (JointTransform([lambda joint: joint]), True),
    ],
)
def test_a_transform_says_whether_it_draws_random_numbers(transform: JointTransform, random: bool) -> None:
    assert transform.random == random
    torch.manual_seed(0)
    before = torch.get_rng_state()
    transform({"image": torch.zeros(3, 120, 160, dtype=torch.uint8)})
    if not random:
        assert torch.equal(torch.get_rng_state(), before)


def test_steps_of_torchvision_that_draw_nothing_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the names is a class there, so that none is there by mistake."""
    from foveal.data.joint import WITHOUT_CHANCE

    assert all(hasattr(v2, name) for name in WITHOUT_CHANCE)


def test_without_normalization_the_same_bytes_come_out() -> None:
    transform = train_transform(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    plain = transform.without_normalization()
    torch.manual_seed(3)
    normalised = transform(IMAGE)["image"]
    torch.manual_seed(3)
    image = plain(IMAGE)["image"]
    assert image.dtype == torch.uint8
    mean, std = torch.tensor(transform.mean).reshape(3, 1, 1), torch.tensor(transform.std).reshape(3, 1, 1)
    assert torch.allclose((image / 255 - mean) / std, normalised, atol=1e-5)
    assert transform.normalise
    assert plain.random == transform.random


def test_a_network_for_grey_images_sees_the_luma_of_others() -> None:
    """Bit for bit what Pillow makes of the file, so that data sets and files alone give the same."""
    colours = torch.randint(
        0, 256, (3, 40, 50), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    by_pillow = np.array(Image.fromarray(colours.permute(1, 2, 0).numpy()).convert("L"))
    transform = JointTransform([], mean=(0.5,), std=(0.5,))
    assert np.array_equal(
        transform.without_normalization()({"image": colours})["image"][0].numpy(), by_pillow
    )
    assert transform({"image": colours})["image"].shape == (1, 40, 50)
    with pytest.raises(ValueError, match=r"must be \(1, h, w\)"):
        transform({"image": torch.zeros(2, 4, 4, dtype=torch.uint8)})


def test_grey_images_take_one_mean() -> None:
    grey = {"image": torch.full((1, 20, 20), 255, dtype=torch.uint8)}
    for transform in (
        eval_transform(16, mean=(0.5,), std=(0.25,)),
        train_transform(16, jitter=0.0, mean=(0.5,), std=(0.25,)),
    ):
        out = transform(grey)["image"]
        assert out.shape == (1, 16, 16)
        assert out.max().item() == pytest.approx(2.0)
    with pytest.raises(
        ValueError, match=r"image must be \(3, h, w\), got \(1, 20, 20\); mean and std of 1 value"
    ):
        eval_transform(16)(grey)


@pytest.mark.parametrize(
    ("how", "size", "shape"),
    [
        ("longer", (30, 30), (20, 30)),
        ("shorter", (30, 30), (30, 45)),
        ("exact", (30, 31), (30, 31)),
        ("shorter", (33, 33), (33, 49)),  # 49.5, rounded down
        ("shorter", (33, 30), (33, 50)),  # 49.5, rounded to even
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_covers_the_target_or_stays_within(
    how: str, size: tuple, shape: tuple, interpolation: str
) -> None:
    sample = IMAGE | {
        "mask": torch.ones(40, 60, dtype=torch.uint8),
        "box_xyxy": torch.tensor([0.0, 0, 60, 40]),
    }
    out = JointTransform([ResizeInto(size, how, interpolation)], normalise=False)(sample)
    assert out["image"].shape[1:] == out["mask"].shape == shape
    assert out["box_xyxy"].tolist() == pytest.approx([0, 0, shape[1], shape[0]])


def test_a_canvas_pads_with_its_colour_and_masks_with_0() -> None:
    sample: dict[str, Any] = {
        "image": torch.full((3, 4, 9), 7, dtype=torch.uint8),
        "mask": torch.ones(4, 9, dtype=torch.uint8),
        "box_xyxy": torch.tensor([0.0, 0, 9, 4]),
    }
    out = JointTransform([CentreOnCanvas((7, 5), (1, 2, 3))], normalise=False)(sample)
    assert out["image"][:, 0, 0].tolist() == [1, 2, 3]
    assert out["mask"].tolist() == [[0] * 5, [1] * 5, [1] * 5, [1] * 5, [1] * 5, [0] * 5, [0] * 5]
    assert (out["image"][:, 1:5] == 7).all()
    assert out["box_xyxy"].tolist() == [0, 1, 5, 5]


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
def test_an_image_alone_comes_out_as_it_does_beside_a_mask(crop: str) -> None:
    transform = train_transform(32, crop=crop, jitter=0.5)
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    for seed in range(4):
        torch.manual_seed(seed)
        alone = transform(IMAGE)["image"]
        torch.manual_seed(seed)
        assert torch.equal(transform({**IMAGE, "mask": mask})["image"], alone)
