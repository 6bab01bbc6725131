import os
from collections.abc import Callable
from pathlib import Path

import pytest

from foveal.data import open_dataset

Draw = Callable[..., Path]


def test_class_folders_are_split_by_a_seed_into_disjoint_parts(tmp_path: Path, draw: Draw) -> None:
    for kind in ("b", "a", "c"):
        for i in range(10):
            draw(tmp_path / kind / f"{i}.png")
    train, val = (open_dataset(str(tmp_path), split, val_share=0.2) for split in ("train", "val"))
    assert train.classes == val.classes == ["a", "b", "c"]
    assert (len(train), len(val)) == (24, 6)
    assert not set(train.names) & set(val.names)
    assert [item["label"] for item in val] == [0, 0, 1, 1, 2, 2]
    assert open_dataset(str(tmp_path), "val", val_share=0.2).names == val.names
    assert open_dataset(str(tmp_path), "val", val_share=0.2, split_seed=1).names != val.names
    assert val[0]["image"].shape == (3, 10, 12)


def test_folders_named_for_splits_are_the_splits_and_train_names_the_classes(
    tmp_path: Path, draw: Draw
) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "Validation/b/2.png", "test/c/3.jpg"):
        draw(tmp_path / name)
    data = {split: open_dataset(str(tmp_path), split) for split in ("train", "val", "test")}
    assert [len(part) for part in data.values()] == [3, 1, 1]
    assert data["val"].classes == ["a", "b", "c"]
    assert (data["val"][0]["label"], data["test"][0]["label"]) == (1, 2)


def test_a_class_may_be_called_train(tmp_path: Path, draw: Draw) -> None:
    for kind in ("train", "tram"):
        for i in range(4):
            draw(tmp_path / kind / f"{i}.png")
    assert open_dataset(str(tmp_path), "train").classes == ["train", "tram"]


def test_hidden_files_and_files_that_are_no_images_are_ignored_and_depth_is_not(
    tmp_path: Path, draw: Draw
) -> None:
    for name in (
        "a/1.png",
        "a/deep/er/2.JPG",
        "b/1.png",
        "b/2.png",
        ".git/x.png",
        "a/.hidden.png",
        "a/.thumbs/3.png",
    ):
        draw(tmp_path / name) if not name.endswith("JPG") else draw(tmp_path / "a/deep/er/2.jpg")
    os.rename(tmp_path / "a/deep/er/2.jpg", tmp_path / "a/deep/er/2.JPG")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no folder")
    names = [name for split in ("train", "val") for name in open_dataset(str(tmp_path), split).names]
    assert sorted(names) == ["a/1.png", "a/deep/er/2.JPG", "b/1.png", "b/2.png"]


def test_given_classes_fix_the_order_of_the_labels(tmp_path: Path, draw: Draw) -> None:
    for name in ("val/a/1.png", "val/c/1.png"):
        draw(tmp_path / name)
    data = open_dataset(str(tmp_path), "val", classes=["c", "b", "a"])
    assert (data.classes, [item["label"] for item in data]) == (["c", "b", "a"], [2, 0])


def refused(root: Path, split: str = "train", **options: object) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        open_dataset(str(root), split, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_class_name_stands_once_in_the_list(tmp_path: Path, draw: Draw) -> None:
    """The second of the two would take every label of the first."""
    for name in ("a", "b"):
        draw(tmp_path / name / "1.png")
    assert "a name of its own, got ['a'] more than once" in refused(tmp_path, classes=["a", "b", "a"])


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".keep").touch()
    assert "every class folder must hold images, got none in" in refused(tmp_path)
    assert refused(tmp_path).endswith(f"{os.sep}b")


def test_one_class_is_refused(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "only/1.png")
    assert "at least 2 classes, got ['only']" in refused(tmp_path)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "1.png")
    assert "one folder of images per class, got none in" in refused(tmp_path)


def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path, draw: Draw) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/z/1.png"):
        draw(tmp_path / name)
    message = refused(tmp_path, "val")
    assert "class folders must be among a, b, got" in message
    assert message.endswith("z")


def test_two_folders_for_one_split_are_refused(tmp_path: Path, draw: Draw) -> None:
    for name in ("train/a/1.png", "val/a/1.png", "valid/a/1.png"):
        draw(tmp_path / name)
    assert "two folders for split val" in refused(tmp_path)


def test_a_segmentation_folder_is_recognised_and_refused(tmp_path: Path, draw: Draw) -> None:
    for name in ("train/images/1.png", "train/labels/1.png"):
        draw(tmp_path / name)
    assert "task='segment'" in refused(tmp_path)
