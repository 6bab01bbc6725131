import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from foveal.data import as_tensors, open_dataset
from foveal.data.sources.parquet import Columns, read_rows


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), value, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def write(path: Path, labels: list[Any], /, *, names: list[str] | None = None, **columns: list[Any]) -> Path:
    """A file as ``datasets`` writes it: an image of grey value 10 * row, a label, with ``names`` the metadata."""
    images = [{"bytes": picture(10 * row), "path": f"{row}.png"} for row in range(len(labels))]
    table = pa.table({"image": images, "label": labels} | columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def test_class_names_boxes_and_splits_come_from_the_files(tmp_path: Path) -> None:
    boxes = [[0, 1, 2, 3]] * 3
    write(tmp_path / "data/train-00000-of-00002.parquet", [0, 1, 0], names=["cat", "dog"], box_xyxy=boxes)
    write(tmp_path / "data/train-00001-of-00002.parquet", [1, 1], names=["cat", "dog"], box_xyxy=boxes[:2])
    write(tmp_path / "data/validation-00000-of-00001.parquet", [1], names=["cat", "dog"], box_xyxy=boxes[:1])
    train, val = (open_dataset(str(tmp_path), split) for split in ("train", "val"))
    assert train.classes == val.classes == ["cat", "dog"]
    assert [item["label"] for item in train] == [0, 1, 0, 1, 1]
    assert [int(item["image"][0, 0, 0]) for item in train] == [0, 10, 20, 0, 10]
    assert train[0]["box_xyxy"].tolist() == [0, 1, 2, 3]
    assert len(val) == 1
    assert train.names[3] == "train-00001-of-00002.parquet[0] 0.png"


def test_folders_and_files_of_any_encoding_are_read(tmp_path: Path, latin_folder: Path) -> None:
    path = write(tmp_path / "plain.parquet", [0, 1] * 10)
    path.rename(latin_folder / os.fsdecode(b"\xe9t\xe9.parquet"))
    for spec in (latin_folder, latin_folder / os.fsdecode(b"\xe9t\xe9.parquet")):
        data = open_dataset(str(spec), "train")
        assert len(data) == 18
        assert data.names[0].encode().startswith(b"\\udce9t\\udce9.parquet[")
        assert pickle.loads(pickle.dumps(data))[0]["image"].shape == (3, 6, 8)


def test_folders_may_name_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "default/train/0000.parquet", [0, 1], names=["a", "b"])
    write(tmp_path / "default/test/0000.parquet", [1], names=["a", "b"])
    write(tmp_path / "default/unsupervised/0000.parquet", [-1, -1], names=["a", "b"])
    assert len(open_dataset(str(tmp_path), "test")) == 1


def test_one_file_is_divided_by_a_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "train-00000-of-00001.parquet", [0, 1] * 10, names=["a", "b"])
    for spec in (path, tmp_path):
        train, val = (open_dataset(str(spec), split) for split in ("train", "val"))
        assert (len(train), len(val)) == (18, 2)
        assert sorted(item["label"] for item in val) == [0, 1]
        assert not set(train.names) & set(val.names)


def test_without_metadata_names_are_the_values(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["dog", "cat", "dog"])
    write(tmp_path / "val.parquet", ["dog"])
    val = open_dataset(str(tmp_path), "val")
    assert (val.classes, val[0]["label"]) == (["cat", "dog"], 1)
    numbers = write(tmp_path / "numbers" / "val.parquet", [2, 0])
    assert open_dataset(str(numbers), "train").classes == ["0", "1", "2"]


@pytest.mark.parametrize("labels", [[True, False] * 10, [True] * 20])
def test_truths_are_two_classes(tmp_path: Path, labels: list[bool]) -> None:
    data = open_dataset(str(write(tmp_path / "a.parquet", labels)), "train")
    assert data.classes == ["False", "True"]
    assert {type(data[i]["label"]) for i in range(len(data))} == {int}
    assert {data[i]["label"] for i in range(len(data))} == {int(label) for label in labels}


def test_images_may_be_plain_bytes_under_a_usual_name(tmp_path: Path) -> None:
    table = pa.table({"img": [picture(0), picture(90)], "labels": [0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table, tmp_path / "val.parquet")
    assert int(open_dataset(str(tmp_path), "val")[1]["image"].max()) == 90


def test_several_label_columns_need_an_option(tmp_path: Path) -> None:
    features = {name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in ("fine", "coarse")}
    table = pa.table({"image": [{"bytes": picture(0)}] * 2, "fine": [0, 1], "coarse": [1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for name in ("train", "val"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"val\.parquet needs label_column, one of fine, coarse, got none"):
        open_dataset(str(tmp_path), "val")
    data = open_dataset(str(tmp_path), "val", label_column="coarse")
    assert [item["label"] for item in data] == [1, 1]
    with pytest.raises(ValueError, match=r"columns of .* are image, fine, coarse, got 'medium'"):
        open_dataset(str(tmp_path), "val", label_column="medium")


def test_missing_and_damaged_images_are_skipped_by_row(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [0, 1] * 10, names=["a", "b"])
    write(tmp_path / "val.parquet", [0, 1], names=["a", "b"])
    table = pq.read_table(path)
    images = table.column("image").to_pylist()
    images[4]["bytes"] = images[4]["bytes"][:30]
    images[5] = None
    pq.write_table(table.set_column(0, "image", pa.array(images)), path)
    with pytest.raises(ValueError, match=r"got 2 of 20, the first is train\.parquet\[4\] 4\.png"):
        open_dataset(str(tmp_path), "train")
    data = open_dataset(str(tmp_path), "train", max_unreadable=0.1)
    assert len(data) == 18
    assert list(data.skipped) == ["train.parquet[4] 4.png", "train.parquet[5]"]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 2], ["a", "b"], "labels must be 0 to 1 or a class name, got 2 in row 1"),
        ([0, -1], ["a", "b"], "got -1 in row 1"),
        ([0, None], ["a", "b"], "got None in row 1"),
        ([0, 0], ["a"], r"at least 2 classes, got \['a'\]"),
    ],
)
def test_labels_outside_the_classes_are_refused(
    tmp_path: Path, labels: list, names: list, message: str
) -> None:
    for part in ("train", "val"):
        write(tmp_path / f"{part}.parquet", labels, names=names)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path), "train")


def test_a_class_name_stands_once_in_the_list(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [0, 1] * 10, names=["a", "b"])
    with pytest.raises(ValueError, match=r"a name of its own, got \['a'\] more than once"):
        open_dataset(str(path), classes=["a", "b", "a"])


def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"not a readable Parquet file, got .*train\.parquet") as error:
        open_dataset(str(tmp_path), "train")
    assert "\n" not in str(error.value)


def test_tiny_imagenet_with_boxes(shared: Callable[[str], Path]) -> None:
    val = open_dataset(str(shared("tiny-imagenet-50")), "val")
    assert (len(val), len(val.classes), val.classes[0]) == (2500, 50, "goldfish")
    for item in (val[0], val[-1]):
        x1, y1, x2, y2 = item["box_xyxy"].tolist()
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        assert item["image"].shape == (3, 64, 64)
    assert val.skipped == {}


def test_cifar10_keeps_its_test_part_and_divides_train(shared: Callable[[str], Path]) -> None:
    spec = str(shared("cifar10-jpeg"))
    sizes = [len(open_dataset(spec, split)) for split in ("train", "val", "test")]
    assert sizes == [45000, 5000, 10000]
    val = open_dataset(spec, "val")
    assert val.classes[:2] == ["airplane", "automobile"]
    labels = [val.source.labels[i] for i in val._indices]
    assert [labels.count(label) for label in range(10)] == [500] * 10


def test_as_tensors_holds_parquet_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [0, 1] * 5, names=["a", "b"])
    batch = as_tensors(open_dataset(str(path), "train"))
    assert batch["image"].shape == (8, 3, 6, 8)
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_parts_are_known_by_any_word_of_a_name(tmp_path: Path) -> None:
    """Else the rows of the test file are divided into train and val with the others."""
    write(tmp_path / "pets_train.parquet", [0, 1] * 10)
    write(tmp_path / "pets_test.parquet", [0, 1] * 5)
    write(tmp_path / "pets_extra.parquet", [0, 1])
    data = {split: open_dataset(str(tmp_path), split) for split in ("train", "val", "test")}
    assert [len(part) for part in data.values()] == [18, 2, 10]
    assert list(data["train"].left_out) == ["pets_extra.parquet"]
    write(tmp_path / "train/test.parquet", [0, 1])
    with pytest.raises(ValueError, match=r"of one split, got test and train in the name train/test\.parquet"):
        open_dataset(str(tmp_path), "train")


def test_rows_of_files_with_one_name_have_names_of_their_own(tmp_path: Path) -> None:
    for config in ("a", "b"):
        write(tmp_path / config / "train" / "0000.parquet", [0, 1] * 3)
    names = [name for split in ("train", "val") for name in open_dataset(str(tmp_path), split).names]
    assert len(set(names)) == 12
    assert "a/train/0000.parquet[0] 0.png" in names


def test_parquet_beside_folders_of_images_is_refused(tmp_path: Path, draw: Callable[..., Path]) -> None:
    for kind in ("cat", "dog"):
        draw(tmp_path / kind / "1.png")
    pq.write_table(pa.table({"embedding": [[0.1, 0.2]] * 5}), tmp_path / "features.parquet")
    with pytest.raises(ValueError, match=r"first is features\.parquet\) and images in cat, dog of"):
        open_dataset(str(tmp_path))


def test_several_labels_an_image_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [[0], [0, 1]] * 5)
    for options in ({}, {"classes": ["a", "b"]}):
        with pytest.raises(
            ValueError, match=r"an image must have one label, got list.*several an image, in label"
        ):
            open_dataset(str(path), "train", **options)


def test_classes_without_an_image_and_rows_without_a_label_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [1, 2, 3] * 8)
    assert open_dataset(str(path), "train").notes == ["1 of 4 classes has no image for train: 0"]
    path = write(tmp_path / "b.parquet", [0, 1, -1] * 8)
    with pytest.raises(ValueError, match="-1 usually marks images without a label"):
        open_dataset(str(path), "train")


def test_a_copy_in_another_process_holds_no_images_and_reads_them_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1] * 10)
    data = open_dataset(str(path), "train")
    # each image fills 100,000 bytes, so that a table that came along would show
    table = pq.read_table(path)
    images = [
        {"bytes": row["bytes"] + b"\0" * 100_000, "path": row["path"]} for row in table["image"].to_pylist()
    ]
    pq.write_table(table.set_column(0, "image", pa.array(images)), path)
    data = open_dataset(str(path), "train", max_unreadable=0.9)
    content = pickle.dumps(data)
    assert len(content) < 20_000
    copy = pickle.loads(content)
    assert torch.equal(copy[3]["image"], data[3]["image"])
    assert copy.names == data.names
    late = pickle.loads(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="must not change while they are read"):
        late[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_reading_processes_give_the_same_rows(tmp_path: Path, context: str) -> None:
    path = write(tmp_path / "a.parquet", [0, 1] * 10)
    data = open_dataset(str(path), "train")
    loader = DataLoader(data, batch_size=6, num_workers=1, multiprocessing_context=context)
    images = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(images, torch.stack([item["image"] for item in data]))


def test_the_fingerprint_follows_the_file_and_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1] * 10, coarse=[1, 0] * 10)
    before = open_dataset(str(path), "train").fingerprint
    assert open_dataset(str(path), "train", label_column="coarse").fingerprint != before
    assert open_dataset(str(path), "train").fingerprint == before
    assert open_dataset(str(path), "val").fingerprint != before
    os.utime(path, ns=(1, 1))
    assert open_dataset(str(path), "train").fingerprint != before


def test_files_that_memory_cannot_hold_are_refused_before_they_are_read(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.parquet", [0, 1] * 10)
    size = path.stat().st_size
    free = {"of": size * 10 // 7 + 2}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free["of"]))
    assert len(open_dataset(str(path), "train")) == 18
    free["of"] -= 4
    monkeypatch.setattr(pq, "read_table", lambda *args, **options: pytest.fail("read"))
    with pytest.raises(ValueError, match="held in memory and may take 70 %"):
        read_rows([path], ["a"], [Columns("image", "label")])


def meant(data: Any) -> set[tuple[int, str]]:
    """The grey value of every image, modulo 20, and the name of its class."""
    return {(int(item["image"].max()) % 20, data.classes[item["label"]]) for item in data}


def test_numbers_mean_the_names_of_their_own_file(tmp_path: Path) -> None:
    """Even rows are cats, whichever number that is in the file, and whichever place in the list."""
    write(tmp_path / "train.parquet", [0, 1] * 4, names=["cat", "dog"])
    write(tmp_path / "test.parquet", [1, 0] * 4, names=["dog", "cat"])
    expected = {(0, "cat"), (10, "dog")}
    assert meant(open_dataset(str(tmp_path), "test")) == expected
    assert meant(open_dataset(str(tmp_path), "train", classes=["dog", "cat"])) == expected
    assert meant(open_dataset(str(tmp_path), "train", classes=["dog", "cow", "cat"])) == expected
    assert meant(open_dataset(str(tmp_path), "train", classes=["a", "b"])) == {(0, "a"), (10, "b")}
    with pytest.raises(ValueError, match=r"a class name, got 1 in row 1"):
        open_dataset(str(tmp_path), "train", classes=["cow", "cat"])


def test_two_columns_that_may_hold_the_labels_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1] * 8, **{"labels": [1, 0] * 8})
    with pytest.raises(ValueError, match="needs label_column, one of label, labels, got none"):
        open_dataset(str(path))
    assert meant(open_dataset(str(path), label_column="labels")) == {(0, "1"), (10, "0")}


def test_a_column_that_says_the_part_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1] * 8, split=["train"] * 12 + ["test"] * 4)
    with pytest.raises(
        ValueError, match=r"parts must be files of their own.*the column split with test, train in"
    ):
        open_dataset(str(path))
    path = write(tmp_path / "b.parquet", [0, 1] * 8, split=["fold1"] * 16)
    assert len(open_dataset(str(path))) == 14


def test_files_of_a_numbered_set_that_are_not_there_are_told(tmp_path: Path) -> None:
    for number in (0, 3):
        write(tmp_path / f"train-0000{number}-of-00004.parquet", [0, 1] * 8)
    data = open_dataset(str(tmp_path))
    assert list(data.left_out) == ["train-00001-of-00004.parquet", "train-00002-of-00004.parquet"]
    assert data.notes[-1].startswith("2 files or folders are left out")


def test_ids_are_no_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 2**40] * 8)
    with pytest.raises(
        ValueError, match="without names must count from 0 to below 100,000, got 1099511627776"
    ):
        open_dataset(str(path))
