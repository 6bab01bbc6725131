import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from foveal.data import open_dataset
from foveal.data.dataset import looks_whole
from foveal.data.split import choose_part, hold_out

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


@pytest.mark.parametrize(
    ("available", "split", "expected"),
    [
        ((), "train", (None, True)),
        ((), "val", (None, True)),
        (("train", "test"), "train", ("train", True)),
        (("train", "test"), "val", ("train", True)),
        (("train", "test"), "test", ("test", False)),
        (("train", "val"), "train", ("train", False)),
        (("train", "val"), "val", ("val", False)),
        (("val",), "val", ("val", False)),
    ],
)
def test_the_rule_that_chooses_the_part(available: tuple, split: str, expected: tuple) -> None:
    assert choose_part("x", available, split) == expected


@pytest.mark.parametrize(
    ("available", "split", "message"),
    [
        ((), "test", "no part for split 'test', got only train and val"),
        (("train", "val"), "test", "no part for split 'test', got train, val"),
        (("test",), "val", "no part for split 'val', got test"),
        (("train",), "dev", "split must be one of train, val, test, got 'dev'"),
    ],
)
def test_a_split_that_is_not_there_is_refused(available: tuple, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_part("x", available, split)


def test_hold_out_takes_its_share_of_every_class_and_leaves_none_empty() -> None:
    labels = [0] * 40 + [1] * 3 + [2] * 2
    names = [f"{i}.png" for i in range(45)]
    options = {"val_share": 0.25, "split_seed": 0}
    val = hold_out(names, labels, "val", **options)
    train = hold_out(names, labels, "train", **options)
    assert sorted(val + train) == list(range(45))
    assert [sum(labels[i] == kind for i in val) for kind in range(3)] == [10, 1, 1]
    assert hold_out(names, labels, "val", val_share=0.25, split_seed=1) != val


def test_a_new_file_moves_at_most_one_old_file_across_the_border() -> None:
    names = [f"{i}.png" for i in range(200)]
    options = {"val_share": 0.1, "split_seed": 0}
    before = {names[i] for i in hold_out(names, None, "val", **options)}
    more = ["new.png", *names]
    after = {more[i] for i in hold_out(more, None, "val", **options)}
    assert len(before - after) <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_val_share_must_leave_both_parts_something(share: float) -> None:
    with pytest.raises(ValueError, match="val_share must be above 0 and below 1"):
        hold_out(["a", "b"], None, "val", val_share=share, split_seed=0)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_whole_files_are_told_from_cut_ones_by_their_ends(kind: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(file, kind)
    content = file.getvalue()
    assert looks_whole(content[:32], content[-32:], len(content))
    for cut in (0, 40, len(content) // 2, len(content) - 1):
        part = content[:cut]
        assert not looks_whole(part[:32], part[-32:], len(part))
