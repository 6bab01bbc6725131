from typing import Any

import numpy as np
import pytest
import torch

from foveal.data import (
    JointTransform,
    Scenes,
    detection_eval_transform,
    detection_train_transform,
    eval_transform,
    segmentation_eval_transform,
    segmentation_train_transform,
    train_transform,
)
from foveal.data.joint import INTERPOLATIONS, CropPart
from foveal.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from foveal.errors import FovealError

MEAN, STD = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), torch.tensor(IMAGENET_STD).reshape(3, 1, 1)


def marked(height: int, width: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A black image with a white rectangle, and the mask and box of that rectangle."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[y1:y2, x1:x2] = 1
    image = (mask * 255).expand(3, -1, -1).clone()
    return {"image": image, "mask": mask, "box_xyxy": torch.tensor(box, dtype=torch.float32), "label": 3}


def white(image: torch.Tensor) -> torch.Tensor:
    return (image * STD + MEAN).mean(dim=0) > 0.5


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("seed", range(8))
def test_image_mask_and_box_move_together(crop: str, seed: int) -> None:
    torch.manual_seed(seed)
    sample = marked(80, 100, (30, 20, 70, 60))
    out = train_transform(48, crop=crop)(sample)
    assert out["image"].shape == (3, 48, 48)
    assert out["mask"].shape == (48, 48)
    assert out["label"] == 3
    lit = white(out["image"])
    assert (lit != (out["mask"] == 1)).float().mean() < 0.05  # edges
    rows, columns = lit.any(1).nonzero().flatten(), lit.any(0).nonzero().flatten()
    seen = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (seen - out["box_xyxy"]).abs().max() <= 1.5


@pytest.mark.parametrize("seed", range(6))
def test_segmentation_masks_follow_the_image_and_gain_no_values(seed: int) -> None:
    torch.manual_seed(seed)
    sample = marked(80, 100, (30, 20, 70, 60))
    sample["mask"][:10] = 9
    out = segmentation_train_transform((64, 72), ignore_index=11, mean=IMAGENET_MEAN)(sample)
    assert out["image"].shape == (3, 64, 72)
    assert set(out["mask"].unique().tolist()) <= {0, 1, 9, 11}
    assert (white(out["image"]) != (out["mask"] == 1)).float().mean() < 0.03


def test_an_image_smaller_than_the_crop_is_padded_with_the_ignored_value_and_the_mean() -> None:
    sample = marked(20, 30, (0, 0, 30, 20))
    out = segmentation_train_transform(64, scale=(1.0, 1.0), ignore_index=7)(sample)
    padded = out["mask"] == 7
    assert padded.sum() == 64 * 64 - 20 * 30
    assert out["image"][:, padded].abs().max() < 0.02
    assert white(out["image"])[~padded].all()


def test_scaled_masks_are_aligned_to_half_a_pixel() -> None:
    """Halving with torchvision's own nearest mode takes the pixel above and left of the middle."""
    stripes = torch.arange(16).repeat(16, 1).to(torch.uint8)
    from torchvision import tv_tensors

    from foveal.data.joint import Rescale

    half = Rescale(0.5, 0.5)(
        {"image": tv_tensors.Image(stripes.expand(3, -1, -1)), "mask": tv_tensors.Mask(stripes)}
    )
    assert half["mask"][0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize("make", [train_transform, segmentation_train_transform])
def test_the_global_seed_fixes_the_outcome(make: Any) -> None:
    transform, sample = make(40, jitter=1.0), marked(64, 64, (10, 10, 40, 50))
    outcomes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outcomes.append(transform(sample)["image"])
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_the_sample_given_is_left_as_it_was() -> None:
    sample = marked(32, 32, (3, 4, 20, 21))
    before = {name: value.clone() for name, value in sample.items() if name != "label"}
    train_transform(24, jitter=1.0)(sample)
    assert all(torch.equal(sample[name], value) for name, value in before.items())


def test_flip_can_be_turned_off_and_always_on() -> None:
    sample = marked(32, 32, (0, 0, 8, 32))
    for flip, side in ((0.0, 0), (1.0, -1)):
        out = train_transform(32, crop="none", flip=flip)(sample)
        assert white(out["image"])[:, side].all()
        assert out["box_xyxy"].tolist() == ([0, 0, 8, 32] if flip == 0 else [24, 0, 32, 32])


def test_a_box_outside_the_crop_is_empty() -> None:
    sample = marked(64, 64, (0, 0, 4, 4)) | {"boxes_xyxy": torch.tensor([[0.0, 0, 4, 4], [20, 20, 40, 40]])}
    for seed in range(20):
        torch.manual_seed(seed)
        out = train_transform(64, crop="resized", scale=(0.2, 0.2), flip=0.0)(sample)
        x1, y1, x2, y2 = out["box_xyxy"].tolist()
        assert 0 <= x1 <= x2 <= 64
        assert 0 <= y1 <= y2 <= 64
        assert out["boxes_xyxy"].shape == (2, 4)
        assert ((x2 - x1) * (y2 - y1) == 0) == (not (out["mask"] == 1).any())


def test_eval_keeps_the_centre_or_the_whole() -> None:
    sample = marked(40, 80, (0, 0, 20, 40))  # the left quarter
    centre = eval_transform(40)(sample)
    assert not white(centre["image"]).any()
    assert not centre["mask"].any()
    whole = eval_transform(40, resize="exact")(sample)
    assert white(whole["image"])[:, :10].all()
    assert whole["box_xyxy"].tolist() == [0, 0, 10, 40]
    margin = eval_transform(40, crop_share=0.5)(marked(40, 40, (10, 10, 30, 30)))
    assert white(margin["image"]).all()


def test_normalisation_is_that_of_the_given_mean_and_std() -> None:
    image = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8)
    out = segmentation_eval_transform()({"image": image})["image"]
    assert out.dtype == torch.float32
    assert torch.allclose(out, (image.float() / 255 - MEAN) / STD, atol=1e-5)


def test_scenes_go_through_unharmed() -> None:
    scene = Scenes("train", length=3)[1]
    out = eval_transform(32)(scene)
    assert torch.equal(out["mask"], scene["mask"])
    assert torch.equal(out["box_xyxy"], scene["box_xyxy"])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (eval_transform, {"size": 1}, "size must be between 2 and 8192 pixels, got 1"),
        (train_transform, {"size": 0}, "size must be between 2 and 8192 pixels, got 0"),
        (
            train_transform,
            {"size": 32, "crop": "big"},
            "crop must be one of auto, pad, resized, none, got 'big'",
        ),
        (train_transform, {"size": 32, "flip": 1.5}, "flip must be between 0 and 1, got 1.5"),
        (train_transform, {"size": 32, "scale": (0.9, 0.3)}, "scale must satisfy"),
        (train_transform, {"size": 32, "std": (1.0, 1.0)}, "mean and std need 3 values"),
        (
            eval_transform,
            {"size": 32, "resize": "long"},
            "resize must be shorter, exact or longer, got 'long'",
        ),
        (eval_transform, {"size": 32, "crop_share": 0.0}, "crop_share must be above 0"),
        (segmentation_train_transform, {"size": (32, 0)}, "size must be between 2 and 8192"),
        (segmentation_train_transform, {"size": 32, "scale": (0.0, 1.0)}, "scale must satisfy"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image must be \(3, h, w\), got \(1, 4, 4\)"):
        eval_transform(4)({"image": torch.zeros(1, 4, 4, dtype=torch.uint8)})


@pytest.fixture(scope="module")
def photographs() -> list[Any]:
    """Two photographs, 427 x 640, and one upright."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return [*found, found[0].rotate(90, expand=True)]


@pytest.mark.parametrize(
    ("input_size", "crop_pct", "interpolation", "crop_mode"),
    [
        ((3, 224, 224), 0.875, "bicubic", "center"),
        ((3, 224, 224), 0.9, "bicubic", "center"),  # 248.9 pixels, rounded down
        ((3, 176, 176), 0.95, "bilinear", "center"),
        ((3, 288, 288), 1.0, "bicubic", "squash"),
        ((3, 224, 224), 0.875, "bilinear", "squash"),
        ((3, 256, 256), 1.0, "bicubic", "border"),
        ((3, 240, 192), 0.9, "bilinear", "center"),
        ((3, 240, 192), 0.9, "bicubic", "border"),
    ],
)
def test_the_preprocessing_of_a_pretrained_network_is_that_of_timm(
    photographs: list[Any], input_size: tuple, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    from timm.data import create_transform

    mean, std = (0.485, 0.456, 0.406), (1.0, 1.0, 1.0)
    theirs = create_transform(
        input_size, is_training=False, interpolation=interpolation, mean=mean, std=std, crop_pct=crop_pct,
        crop_mode=crop_mode,
    )  # fmt: skip
    resize = {"center": "shorter", "squash": "exact", "border": "longer"}[crop_mode]
    ours = eval_transform(
        input_size[1:], resize=resize, crop_share=crop_pct, interpolation=interpolation, mean=mean, std=std
    )
    for photograph in photographs:
        pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
        expected: Any = theirs(photograph)
        found = ours({"image": pixels})["image"]
        assert found.shape == expected.shape
        levels = ((found - expected).abs() * 255).round()
        assert levels.max() <= (0 if interpolation == "bicubic" else 1)


def test_interpolation_reaches_the_image() -> None:
    image = torch.randint(0, 256, (3, 90, 90), dtype=torch.uint8)
    outcomes = [eval_transform(50, interpolation=name)({"image": image})["image"] for name in INTERPOLATIONS]
    assert not torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[1], outcomes[2])
    torch.manual_seed(0)
    bilinear = train_transform(80, flip=0.0)({"image": image})["image"]
    torch.manual_seed(0)
    assert not torch.equal(
        train_transform(80, flip=0.0, interpolation="bicubic")({"image": image})["image"], bilinear
    )
    with pytest.raises(
        ValueError, match="interpolation must be one of nearest, bilinear, bicubic, got 'box'"
    ):
        eval_transform(50, interpolation="box")


def boxed(height: int, width: int, *boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    """A black image with one white rectangle a box, and one number a box in every entry that has one."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = 255
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return {
        "image": image, "boxes_xyxy": xyxy, "original_xyxy": xyxy.clone(), "labels": torch.arange(count),
        "crowd": torch.zeros(count, dtype=torch.bool), "area": torch.ones(count),
        "annotation_ids": torch.arange(count) + 10, "original_size": torch.tensor([height, width]),
    }  # fmt: skip


def test_boxes_move_with_what_is_in_them() -> None:
    joint = detection_train_transform(48, 90).without_normalization()
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        out = joint(boxed(60, 100, (30, 20, 60, 44)))
        rows, columns = (out["image"][0] > 127).nonzero(as_tuple=True)
        if len(out["labels"]):
            edges = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (out["boxes_xyxy"][0] - edges).abs().max() <= 1.0
            seen.add(tuple(out["image"].shape[1:]))
        assert max(out["image"].shape[1:]) <= 90
    assert len(seen) > 20


def test_a_sliver_is_left_out_with_every_entry_of_its_box() -> None:
    cut = CropPart(0.5, 0.5, probability=1.0)
    dropped = kept = 0
    for seed in range(60):
        torch.manual_seed(seed)
        sample = boxed(40, 40, (0, 0, 20, 20), (20, 20, 40, 40))
        out = JointTransform([cut], normalise=False)(sample)
        for row, label in enumerate(out["labels"].tolist()):
            part = (out["boxes_xyxy"][row, 2:] - out["boxes_xyxy"][row, :2]).prod() / 400
            assert part >= 0.2
            assert out["annotation_ids"][row] == label + 10
            assert out["original_xyxy"][row].tolist() == sample["original_xyxy"][label].tolist()
            kept += 1
        dropped += 2 - len(out["labels"])
        assert all(len(out[name]) == len(out["labels"]) for name in ("boxes_xyxy", "crowd", "area"))
    assert dropped > 10
    assert kept > 10


def test_images_of_any_size_can_be_cropped_and_images_without_objects_too() -> None:
    for height, width in ((1, 1), (3, 200), (37, 5)):
        for seed in range(5):
            torch.manual_seed(seed)
            out = detection_train_transform(16)(boxed(height, width))
            assert out["boxes_xyxy"].shape == (0, 4)


def test_evaluation_keeps_the_original_boxes_and_brings_the_image_to_its_size() -> None:
    out = detection_eval_transform(30, 45)(boxed(60, 100, (30, 20, 60, 44)))
    assert out["image"].shape == (3, 27, 45)
    assert out["original_xyxy"].tolist() == [[30, 20, 60, 44]]
    assert torch.allclose(out["boxes_xyxy"], torch.tensor([[13.5, 9.0, 27.0, 19.8]]), atol=0.01)


@pytest.mark.parametrize(
    ("option", "value"), [("scale", (0, 1)), ("crop", (0.5, 1.2)), ("flip", 2.0), ("jitter", -1)]
)
def test_detection_refuses_values_outside_their_range(option: str, value: Any) -> None:
    with pytest.raises(FovealError, match=option):
        detection_train_transform(32, **{option: value})
