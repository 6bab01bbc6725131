import subprocess
import sys
from pathlib import Path

import pytest

from foveal.data import open_dataset


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
            "data must be 'scenes', 'scenes:cue', 'scenes:local', 'digits', 'torchvision:NAME', or a .*, got 'scense'",
        ),
        ("scenes", {"lenght": 5}, "options of 'scenes' are length, size, .*, got 'lenght'"),
        (
            "scenes",
            {"task": "generate"},
            "task must be one of classify, segment, detect, clips, got 'generate'",
        ),
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


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, foveal.data; "
        "print([m for m in ('torchvision', 'pyarrow', 'sklearn', 'PIL', 'pandas', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
