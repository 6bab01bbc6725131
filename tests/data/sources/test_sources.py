import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.data import as_tensors, open_dataset


def test_scenes_need_no_options() -> None:
    train, val = open_dataset("scenes"), open_dataset("scenes", "val")
    assert (len(train), len(val)) == (4000, 1000)
    item = val[0]
    assert set(item) == {"image", "label", "mask", "box_xyxy"}
    assert train.classes[item["label"]] == str(item["label"])
    assert val.skipped == {}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "scense",
            {},
            "data must be 'scenes', 'torchvision:NAME', or a folder .* exists, got 'scense'",
        ),
        ("scenes", {"lenght": 5}, "options of 'scenes' are length, size, .*, got 'lenght'"),
        ("scenes", {"task": "detect"}, "task must be classify or segment, got 'detect'"),
        ("scenes", {"task": "segment", "root": "x"}, "options of 'scenes' are .*, got 'root'"),
        (
            "torchvision:MNIST",
            {"val": 0.1},
            "options of 'torchvision:MNIST' are root, download, .*, got 'val'",
        ),
    ],
)
def test_unknown_data_and_options_are_refused(spec: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(spec, "train", **options)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.touch()
    with pytest.raises(ValueError, match=r"a data file must end in \.parquet, got .*data\.csv"):
        open_dataset(str(path))


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


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, foveal.data; "
        "print([m for m in ('torchvision', 'pyarrow', 'sklearn', 'PIL', 'pandas', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
