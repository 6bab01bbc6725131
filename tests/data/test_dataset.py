import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.by_hand import tiff
from torch.utils.data import DataLoader

from foveal.data import ImageKindError, median_size, open_dataset
from foveal.data.dataset import looks_whole

Draw = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, draw: Draw) -> Path:
    """Two classes of 20 images each, in train; two of each in val."""
    for part, count in (("train", 20), ("val", 2)):
        for kind, value in (("cat", 60), ("dog", 180)):
            for i in range(count):
                draw(tmp_path / part / kind / f"{i:02}.jpg", value)
    return tmp_path


def break_middle(path: Path) -> None:
    """Damage that leaves both ends of the file as they were: it only shows when the image is decoded."""
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc0")  # start of frame
    content[start : start + 2] = b"\xff\x01"
    path.write_bytes(bytes(content))


def test_truncated_files_are_named_counted_and_skipped_when_the_data_set_is_opened(folder: Path) -> None:
    for i in (3, 4):
        path = folder / "train" / "cat" / f"{i:02}.jpg"
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        ValueError,
        match=r"at most 0\.04 .* got 2 of 40, the first is train/cat/03\.jpg: unreadable|truncated",
    ) as error:
        open_dataset(str(folder), "train", max_unreadable=0.04)
    assert "\n" not in str(error.value)
    data = open_dataset(str(folder), "train")  # 5 % of 40 are 2
    assert len(data) == 38
    assert list(data.skipped) == ["train/cat/03.jpg", "train/cat/04.jpg"]
    assert not set(data.skipped) & set(data.names)
    assert sum(item["label"] == 0 for item in data) == 18


def test_damage_found_late_is_replaced_by_the_next_item_and_counted(folder: Path) -> None:
    data = open_dataset(str(folder), "train")
    break_middle(folder / "train" / "cat" / "19.jpg")
    assert len(data) == 40
    assert data.skipped == {}
    assert data[19]["label"] == 1  # that of dog/00.jpg
    assert torch.equal(data[19]["image"], data[20]["image"])
    assert list(data.skipped) == ["train/cat/19.jpg"]
    again = open_dataset(str(folder), "train")
    assert torch.equal(again[19]["image"], data[19]["image"])


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_what_reading_processes_find_is_counted_in_the_parent(
    folder: Path, context: str, workers: int
) -> None:
    data = open_dataset(str(folder), "train")
    break_middle(folder / "train" / "dog" / "05.jpg")
    loader = DataLoader(data, batch_size=8, num_workers=workers, multiprocessing_context=context)
    assert sum(len(batch["label"]) for batch in loader) == 40
    assert list(data.skipped) == ["train/dog/05.jpg"]


def test_too_much_damage_found_late_fails(folder: Path) -> None:
    data = open_dataset(str(folder), "train")
    for i in range(3):
        break_middle(folder / "train" / "dog" / f"{i:02}.jpg")
    with pytest.raises(ValueError, match=r"may be unreadable \(max_unreadable\), got 3 of 40"):
        [data[i] for i in range(40)]


def test_files_that_vanish_count_as_unreadable(folder: Path) -> None:
    data = open_dataset(str(folder), "train")
    (folder / "train" / "cat" / "07.jpg").unlink()
    assert data[7]["label"] == 0
    assert "train/cat/07.jpg" in data.skipped


def test_a_data_set_can_be_pickled(folder: Path) -> None:
    data = open_dataset(str(folder), "train")
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[5]["image"], data[5]["image"])


def test_the_end_of_the_data_set_ends_a_loop(folder: Path) -> None:
    data = open_dataset(str(folder), "val")
    assert len(list(data)) == 4
    with pytest.raises(IndexError):
        data[4]
    assert torch.equal(data[-1]["image"], data[3]["image"])


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_whole_files_are_told_from_cut_ones_by_their_ends(kind: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(file, kind)
    content = file.getvalue()
    assert looks_whole(content[:32], content[-32:], len(content))
    for cut in (0, 40, len(content) // 2, len(content) - 1):
        part = content[:cut]
        assert not looks_whole(part[:32], part[-32:], len(part))


def test_sound_images_of_an_odd_kind_are_never_skipped(folder: Path) -> None:
    """A signed scan is not damage: it fails the data set, however few there are."""
    data = open_dataset(str(folder), "train", max_unreadable=0.9)
    path = folder / "train" / "cat" / "03.jpg"
    path.write_bytes(tiff(np.array([[-5, 5]], np.int16), t339=2))
    for found in (lambda: open_dataset(str(folder), "train", max_unreadable=0.9), lambda: data[3]):
        with pytest.raises(ImageKindError, match=r"got -5 to 5 in .*03\.jpg"):
            found()


def test_the_fingerprint_follows_files_labels_and_classes_and_not_the_place(folder: Path) -> None:
    first = open_dataset(str(folder), "train").fingerprint
    assert open_dataset(str(folder), "train").fingerprint == first
    assert open_dataset(str(folder), "val").fingerprint != first
    assert open_dataset(str(folder), "train", classes=["dog", "cat"]).fingerprint != first
    moved = folder.rename(folder.with_name("moved"))
    assert open_dataset(str(moved), "train").fingerprint == first
    path = moved / "train" / "cat" / "05.jpg"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = open_dataset(str(moved), "train").fingerprint
    assert changed != first
    os.utime(path, ns=(1, 1))
    assert open_dataset(str(moved), "train").fingerprint not in (first, changed)
    path.rename(path.with_name("new.jpg"))
    assert open_dataset(str(moved), "train").fingerprint not in (first, changed)


def test_the_usual_size_is_not_that_of_one_thumbnail(tmp_path: Path, draw: Draw) -> None:
    for kind in ("cat", "dog"):
        for i in range(12):
            draw(tmp_path / kind / f"{i:02}.jpg", size=(1, 1) if (kind, i) == ("cat", 0) else (64, 48))
    assert median_size(open_dataset(str(tmp_path), "train")) == (48, 64)


def test_what_is_left_out_is_a_note(folder: Path) -> None:
    assert open_dataset(str(folder), "train").notes == []
    (folder / "train" / "cat" / "x.psd").write_bytes(b"8BPS")
    (folder / "train" / "cat" / "scan").write_bytes((folder / "train" / "cat" / "01.jpg").read_bytes())
    data = open_dataset(str(folder), "train")
    assert set(data.left_out) == {"train/cat/x.psd", "train/cat/scan"}
    assert data.notes == [
        "2 files or folders are left out, the first is train/cat/scan: a JPEG by its content, not by its suffix"
    ]
