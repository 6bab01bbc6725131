from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.data import as_tensors, open_dataset


def test_as_tensors_brings_mixed_sizes_to_one_and_refuses_them_without(
    tmp_path: Path, draw: Callable[..., Path]
) -> None:
    for i, kind in enumerate("aabb"):
        draw(tmp_path / "train" / kind / f"{i}.png", 50 * i, size=(10 + i, 8))
        draw(tmp_path / "val" / kind / f"{i}.png", 50 * i, size=(10, 8))
    train = open_dataset(str(tmp_path), "train")
    with pytest.raises(
        ValueError, match=r"without size every image must have the same shape, got \(3, 8, 10\) and"
    ):
        as_tensors(train)
    batch = as_tensors(train, size=16)
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 50, 100, 150]
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert as_tensors(open_dataset(str(tmp_path), "val"))["image"].shape == (4, 3, 8, 10)


def test_as_tensors_of_scenes_equals_its_items() -> None:
    data = open_dataset("scenes", "val", length=5)
    batch, resized = as_tensors(data), as_tensors(data, size=16)
    for i in range(5):
        assert torch.equal(batch["image"][i], data[i]["image"])
    assert resized["mask"].shape == (5, 16, 16)
    assert (resized["box_xyxy"] - batch["box_xyxy"] / 2).abs().max() < 1e-4
