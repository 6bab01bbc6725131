import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from foveal.data import open_dataset
from foveal.errors import FovealError

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
    data = open_dataset(str(tmp_path), "train")
    assert data.classes == ["train", "tram"]
    assert data.notes == ["train is taken for a class here, not for a part"]


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


def lay(root: Path, draw: Draw, *folders: str, count: int = 4) -> None:
    for folder in folders:
        for i in range(count):
            draw(root / folder / f"{i}.png")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "test2017"),
        ("TrainImages", "Testing"),
        ("trainset", "TESTSET"),
        ("Train-2", "test (1)"),
    ],
)
def test_parts_are_known_by_a_word_of_their_name(tmp_path: Path, draw: Draw, train: str, test: str) -> None:
    """Not as classes, which trains a network to tell the training set from the test set."""
    lay(tmp_path, draw, *(f"{part}/{kind}" for part in (train, test) for kind in ("cats", "dogs")))
    data = {split: open_dataset(str(tmp_path), split) for split in ("train", "val", "test")}
    assert [part.classes for part in data.values()] == [["cats", "dogs"]] * 3
    assert [len(part) for part in data.values()] == [6, 2, 8]
    assert all(name.startswith(test) for name in data["test"].names)


def test_a_folder_that_may_be_a_part_or_a_class_is_refused(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, *(f"{kind}/{time}" for kind in ("bus", "car", "train") for time in ("day", "night")))
    message = refused(tmp_path)
    assert "two readings" in message
    assert "train is a part" in message
    assert "a class beside bus, car" in message


def test_folders_that_all_hold_the_same_folders_have_two_readings(tmp_path: Path, draw: Draw) -> None:
    """Parts by a word that is not known, or domains: a network would learn to tell photographs from sketches."""
    lay(tmp_path, draw, *(f"{kind}/{thing}" for kind in ("photo", "sketch") for thing in ("cat", "dog")))
    message = refused(tmp_path)
    assert "two readings" in message
    assert "the classes are photo, sketch, or they are cat, dog" in message
    assert """classes '["photo", "sketch"]' or '["cat", "dog"]')""" in message
    outer, inner = (
        open_dataset(str(tmp_path), classes=kinds) for kinds in (["photo", "sketch"], ["dog", "cat"])
    )
    assert [name.split("/")[0] for name in outer.names] == [outer.classes[item["label"]] for item in outer]
    assert [name.split("/")[1] for name in inner.names] == [inner.classes[item["label"]] for item in inner]
    assert sorted(outer.names) == sorted(inner.names)
    assert inner.notes == ["the classes are the folders in photo, sketch, whose own names tell nothing"]
    assert outer.notes == []


def test_classes_asked_for_are_looked_for_inside_parts_and_every_folder(tmp_path: Path, draw: Draw) -> None:
    for part in ("train", "val"):
        lay(
            tmp_path, draw, *(f"{part}/{kind}/{time}" for kind in ("bus", "car") for time in ("day", "night"))
        )
    draw(tmp_path / "val" / "bus" / "lost.png")
    data = open_dataset(str(tmp_path), "val", classes=["day", "night"])
    assert [name.split("/")[2] for name in data.names] == [data.classes[item["label"]] for item in data]
    assert len(data) == 16
    assert "val/bus/lost.png" in data.left_out
    lay(tmp_path, draw, "val/car/dusk")
    with pytest.raises(ValueError, match=r"must be among day, night, got .*dusk"):
        open_dataset(str(tmp_path), "val", classes=["day", "night"])


def test_digits_in_parts_of_unknown_names_have_two_readings(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, *(f"{part}/{digit}" for part in ("dev", "holdout") for digit in range(3)))
    assert "the classes are dev, holdout, or they are 0, 1, 2" in refused(tmp_path)
    assert open_dataset(str(tmp_path), classes=["0", "1", "2"])[0]["label"] == 0
    lay(tmp_path, draw, "dev/3")
    assert open_dataset(str(tmp_path)).classes == ["dev", "holdout"]


def test_lists_of_parts_that_are_not_read_are_named(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "cat", "dog")
    for name in ("train.txt", "cat/test.txt", "notes.txt"):
        (tmp_path / name).write_text("cat/0.png")
    (note,) = open_dataset(str(tmp_path)).notes
    assert note.startswith("train.txt is not read: train and val are divided by the names")
    lay(tmp_path / "parts", draw, "train/cat", "train/dog", "val/cat", "val/dog")
    (tmp_path / "parts" / "train.txt").write_text("")
    assert open_dataset(str(tmp_path / "parts")).notes == []


def test_batches_below_class_folders_are_no_classes(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "cat/batch1", "cat/batch2", "dog/batch1", "dog/batch2", "dog/old")
    assert open_dataset(str(tmp_path)).classes == ["cat", "dog"]


def test_parts_inside_class_folders_are_refused(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "cats/train", "cats/test", "dogs/train", "dogs/test")
    assert "must lie around the class folders, got cats/test, cats/train, dogs/test" in refused(tmp_path)


def test_parts_without_class_folders_are_refused(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "train", "test")
    assert "got images without one in test, train" in refused(tmp_path)


def test_folders_and_images_beside_the_parts_are_counted(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "training_set/cats", "training_set/dogs", "test_set/cats", "test_set/dogs")
    lay(tmp_path, draw, "single_prediction")
    draw(tmp_path / "training_set" / "lost.png")
    draw(tmp_path / "cover.png")
    data = open_dataset(str(tmp_path), "train")
    assert set(data.left_out) == {"cover.png", "single_prediction", "training_set/lost.png"}
    assert data.left_out["single_prediction"].startswith("4 images in a folder beside the parts")
    assert len(data.notes) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_each_real_image_is_taken_once_whatever_links_there_are(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "cat/batch1", "dog/batch1", count=10)
    plain = {split: open_dataset(str(tmp_path), split).names for split in ("train", "val")}
    (tmp_path / "cat" / "a_latest").symlink_to("batch1")
    (tmp_path / "cat" / "batch1" / "up").symlink_to("..")
    (tmp_path / "dog" / "batch1" / "cats").symlink_to(tmp_path / "cat")
    (tmp_path / "dog" / "gone.png").symlink_to("nowhere.png")
    for split, names in plain.items():
        data = open_dataset(str(tmp_path), split)
        assert data.names == names
        assert data.left_out == {
            "cat/a_latest": "a link to what is taken already",
            "cat/batch1/up": "a link to what is taken already",
            "dog/batch1/cats": "a link to what is taken already",
            "dog/gone.png": "a link that leads nowhere",
        }


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_part_that_is_a_link_to_another_has_no_images(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "train/a", "train/b")
    (tmp_path / "val").symlink_to("train")
    data = open_dataset(str(tmp_path), "train")
    assert (len(data), len(open_dataset(str(tmp_path), "val"))) == (6, 2)
    assert data.left_out == {"val": "a link to what is taken already"}


def test_both_spellings_of_a_class_are_one(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, unicodedata.normalize("NFD", "café"), "bar")
    assert open_dataset(str(tmp_path), "train").classes == ["bar", "café"]
    data = open_dataset(str(tmp_path), "train", classes=["café", "bar"])
    assert sorted({item["label"] for item in data}) == [0, 1]
    draw(tmp_path / "café" / "1.png")
    if len(os.listdir(tmp_path)) == 3:  # systems that keep the spellings apart
        assert "a name of its own" in refused(tmp_path)


def test_folders_that_systems_make_are_no_classes(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "cat", "dog", "cat/@eaDir/1.jpg", "@eaDir/2.jpg", "__MACOSX/cat", "lost+found")
    data = open_dataset(str(tmp_path), "train")
    assert (data.classes, len(data), data.left_out) == (["cat", "dog"], 6, {})


def test_classes_without_an_image_are_told(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "train/a", "train/b", "val/a")
    assert open_dataset(str(tmp_path), "val").notes == ["1 of 2 classes has no image for val: b"]


def test_images_may_be_opened_in_grey(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "a", "b")
    assert open_dataset(str(tmp_path), "train", channels=1)[0]["image"].shape == (1, 10, 12)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        open_dataset(str(tmp_path), "train", channels=2)


def test_one_class_comes_with_a_hint_where_there_is_one(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "archive/cats", "archive/dogs")
    assert refused(tmp_path).endswith(f"got ['archive']; perhaps {tmp_path / 'archive'} is the data set")
    lay(tmp_path / "other", draw, "images")
    (tmp_path / "other" / "labels.csv").write_text("id,label\n")
    assert "labels in a file are not read" in refused(tmp_path / "other")


@pytest.mark.parametrize("name", [False, 7, None])
def test_classes_that_yaml_made_something_else_of_are_refused(
    tmp_path: Path, draw: Draw, name: object
) -> None:
    lay(tmp_path, draw, "no", "7")
    with pytest.raises(FovealError, match="in quotes"):
        open_dataset(str(tmp_path), classes=[name, "no"])


def test_classes_with_nearly_one_name_are_told(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "cat", "\uff23at", "dog")  # a wide C
    (note,) = open_dataset(str(tmp_path)).notes
    assert note.endswith("only: cat, \uff23at")
