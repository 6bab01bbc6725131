"""Tables of predicted masks keep every share, whatever the classes are called."""

import csv
from itertools import permutations
from pathlib import Path

import pytest
import torch

from foveal.model_info import ModelInfo
from foveal.tasks.segment import SegmentInference
from foveal.tasks.segment.folder import write_masks
from foveal.tasks.segment.prediction import MaskPrediction


@pytest.mark.parametrize("classes", list(permutations(["file", "mask", "class mask"])))
def test_classes_that_are_called_as_columns_keep_their_shares(tmp_path: Path, classes: list[str]) -> None:
    class_map = torch.tensor([[0, 0, 0, 1, 1, 2]], dtype=torch.uint8)
    prediction = MaskPrediction(class_map, classes, "faces/1.jpg")
    image = torch.zeros(3, 1, 6, dtype=torch.uint8)
    info = ModelInfo("segment", list(classes), 32)
    write_masks([(prediction, image)], tmp_path / "out", info, SegmentInference(), "csv", {})
    row = next(csv.DictReader((tmp_path / "out" / "shares.csv").read_text().splitlines()))
    assert (row.pop("file"), row.pop("mask")) == ("faces/1.jpg", "1.png")
    assert [float(share) for share in row.values()] == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=1e-5)
    assert all(column.endswith(name) for column, name in zip(row, classes, strict=True))
