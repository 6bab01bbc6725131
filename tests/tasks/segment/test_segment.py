"""The task of segmentation: what it asks of the data, and the transforms of a run."""

import pytest
import torch

from foveal.data import open_dataset
from foveal.model_info import ModelInfo
from foveal.tasks.segment import Segment, SegmentOptions

IGNORED = 9
COLOURS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
TASK = Segment()


def transforms(data, size, augment=True, **options):
    info = ModelInfo("segment", list(data.classes), size, **COLOURS)
    return TASK.train_transform(data, info, SegmentOptions(**options), augment), TASK.eval_transform(info)


def opened(folder, **options):
    return {
        p: open_dataset(str(folder), p, task="segment", ignore_index=9, **options) for p in ("train", "val")
    }


def test_sizes_are_the_data_s_own_and_the_ignore_value_travels(masks_folder):
    data = opened(masks_folder)
    assert TASK.default_image_size(data["train"]) == 32
    assert TASK.describe(data, SegmentOptions(crop_size=24)) == {
        "ignore_index": 9,
        "crop_size": 24,
        "class_weights": None,
    }


@pytest.mark.parametrize("size", [16, 32, 50])
def test_training_gets_square_crops_and_validation_whole_images_with_their_own_masks(masks_folder, size):
    data = opened(masks_folder)["val"]
    to_train, to_eval = transforms(data, size, crop_size=40)
    for i in range(4):
        torch.manual_seed(i)
        sample = data[i]
        crop, whole = to_train(sample), to_eval(sample)
        assert (crop["image"].shape, crop["mask"].shape) == ((3, 40, 40), (40, 40))
        assert set(crop["mask"].unique().tolist()) <= {0, 1, 2, IGNORED}
        assert torch.equal(whole["mask"], sample["mask"])
        assert min(whole["image"].shape[1:]) == size
        ratio = sample["mask"].shape[0] / sample["mask"].shape[1]
        assert whole["image"].shape[1] / whole["image"].shape[2] == pytest.approx(ratio, rel=0.05)


def test_image_and_mask_move_together_and_the_mask_is_never_interpolated(masks_folder):
    """Colours name the class, so every crop tells whether its mask still lies on its image."""
    data = opened(masks_folder)["train"]
    to_train, _ = transforms(data, 32, scale_range=[0.5, 2.0])
    seen = set()
    for i in range(24):
        torch.manual_seed(i)
        out = to_train(data[i % len(data)])
        image = out["image"] * 0.25 + 0.5
        named = torch.where(image[2] > 0.6, 1, torch.where(image[0] > 0.6, 2, 0))
        mask = out["mask"].long()
        seen |= set(mask.unique().tolist())
        labelled = mask != IGNORED
        assert (named == mask)[labelled].float().mean() > 0.93, i
    assert seen <= {0, 1, 2, IGNORED}
    assert IGNORED in seen


def test_scenes_are_neither_scaled_nor_mirrored():
    data = open_dataset("scenes", "train", task="segment", length=4)
    to_train, _ = transforms(data, 64)
    for i in range(4):
        assert torch.equal(to_train(data[i])["mask"], data[i]["mask"])
