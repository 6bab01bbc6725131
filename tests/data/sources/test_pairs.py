import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from foveal.data.sources.pairs import find_pairs, other_folders, pair

Draw = Callable[..., Path]


@pytest.mark.parametrize(
    ("images", "masks", "part"),
    [
        ("train/images", "train/labels", "train"),
        ("images/training", "annotations/training", "train"),
        ("img/validation", "mask/validation", "val"),
        ("Images", "masks", ""),
    ],
)
def test_parts_lie_around_or_inside_the_folders_of_images_and_masks(
    tmp_path: Path, draw: Draw, images: str, masks: str, part: str
) -> None:
    draw(tmp_path / images / "deep" / "x.jpg")
    draw(tmp_path / masks / "deep" / "x_mask.png", 0)
    found = find_pairs(tmp_path)
    assert found == {part: (images, masks)}
    expected = [(f"{images}/deep/x.jpg", f"{masks}/deep/x_mask.png")]
    assert pair(tmp_path, *found[part], "_mask").pairs == expected


def test_an_image_without_a_mask_is_refused_by_name(tmp_path: Path, draw: Draw) -> None:
    for path in ("images/1.jpg", "images/2.jpg", "masks/1.png"):
        draw(tmp_path / path)
    with pytest.raises(ValueError, match=r"got 1 of 2 without, the first is images/2\.jpg"):
        pair(tmp_path, "images", "masks")


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("x.jpg", "x.jpg.png", "--data_options.mask_suffix=.jpg"),
        (
            "x_1_leftImg8bit.png",
            "x_1_gtFine_labelIds.png",
            "--data_options.image_suffix=_leftImg8bit --data_options.mask_suffix=_gtFine_labelIds",
        ),
        ("1.jpg", "11.png", None),
        ("x.jpg", "x/1.png", None),
    ],
)
def test_the_mask_of_the_nearest_name_is_named(
    tmp_path: Path, draw: Draw, image: str, mask: str, options: str | None
) -> None:
    draw(tmp_path / "images" / image)
    draw(tmp_path / "masks" / mask)
    with pytest.raises(ValueError, match="every image must have a mask") as error:
        pair(tmp_path, "images", "masks")
    assert str(error.value).endswith(f"{mask} may be its mask: {options}" if options else f"images/{image}")
    if options:
        given = dict(word.removeprefix("--data_options.").split("=") for word in options.split())
        assert pair(tmp_path, "images", "masks", **given).pairs == [(f"images/{image}", f"masks/{mask}")]


def test_files_that_are_read_as_no_mask_are_named(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "images/x.jpg")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/x.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds files of \.npy, which are not read as masks: store PNG$"):
        pair(tmp_path, "images", "masks")


def test_other_folders_that_may_hold_the_masks_are_named(tmp_path: Path, draw: Draw) -> None:
    """DRIVE has its masks in 1st_manual, and in mask where the camera sees the eye."""
    for path in (
        "training/images/1_training.tif",
        "training/mask/1_training_mask.gif",
        "training/1st_manual/1_manual.gif",
    ):
        draw(tmp_path / path)
    (tmp_path / "training" / "notes").mkdir()
    with pytest.raises(ValueError, match=r"there are images in 1st_manual too, which option masks may name$"):
        pair(tmp_path, *find_pairs(tmp_path)["train"])


def test_folders_of_another_layout_are_refused(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match=r"must be images and labels .*, got cats in "):
        find_pairs(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"a folder of images must hold some, got none in .*images$"):
        pair(tmp_path, *find_pairs(tmp_path)[""], "")


def lay(
    root: Path, draw: Draw, *folders: str, names: tuple[str, ...] = ("1", "2"), value: int | None = None
) -> None:
    for folder in folders:
        for name in names:
            draw(root / folder / f"{name}.png", value)


def test_boxes_beside_masks_are_no_masks(tmp_path: Path, draw: Draw) -> None:
    """Ultralytics keeps boxes as labels/*.txt."""
    lay(tmp_path, draw, "images", "masks")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2")
    assert find_pairs(tmp_path) == {"": ("images", "masks")}
    lay(tmp_path, draw, "labels")
    with pytest.raises(ValueError, match=r"got labels and masks in .*--data_options\.masks labels"):
        find_pairs(tmp_path)
    assert find_pairs(tmp_path, masks="labels") == {"": ("images", "labels")}


def test_folders_may_have_any_name(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "training/images", names=("21_training",))
    lay(tmp_path, draw, "training/1st_manual", names=("21_manual1",))
    lay(tmp_path, draw, "training/mask", names=("21_training_mask",))
    found = find_pairs(tmp_path, masks="1st_manual")
    assert found == {"train": ("training/images", "training/1st_manual")}
    pairs = pair(tmp_path, *found["train"], "_manual1", "_training").pairs
    assert pairs == [("training/images/21_training.png", "training/1st_manual/21_manual1.png")]
    assert other_folders(tmp_path, found, "train") == {
        "training/mask": "1 images that are neither the images nor the masks"
    }


def test_images_and_masks_may_lie_side_by_side(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "train", names=("1", "1_mask", "2", "2_mask"))
    found = find_pairs(tmp_path, ".", ".")
    assert found == {"train": ("train", "train")}
    pairs = pair(tmp_path, *found["train"], "_mask").pairs
    assert pairs == [("train/1.png", "train/1_mask.png"), ("train/2.png", "train/2_mask.png")]
    with pytest.raises(ValueError, match="in one folder need mask_suffix"):
        pair(tmp_path, *found["train"])


@pytest.mark.parametrize("double", ["images/1.jpg", "masks/1.tif"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, draw: Draw, double: str) -> None:
    lay(tmp_path, draw, "images", "masks")
    draw(tmp_path / double)
    with pytest.raises(ValueError, match=r"must not have one name, got 1\.\w+ and 1\.\w+ in"):
        pair(tmp_path, "images", "masks")


def test_both_spellings_of_a_name_are_a_pair(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "images", names=(unicodedata.normalize("NFD", "é1"),))
    lay(tmp_path, draw, "masks", names=("é1",))
    assert len(pair(tmp_path, "images", "masks").pairs) == 1


def test_names_that_differ_by_capitals_are_told(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "images", names=("A1",))
    lay(tmp_path, draw, "masks", names=("a1",))
    with pytest.raises(ValueError, match=r"first is images/A1\.png; a1\.png differs by capital letters"):
        pair(tmp_path, "images", "masks")


def test_masks_without_an_image_are_named(tmp_path: Path, draw: Draw) -> None:
    lay(tmp_path, draw, "images", names=("1",))
    lay(tmp_path, draw, "masks", names=("1", "2"))
    assert pair(tmp_path, "images", "masks").left_out == {"masks/2.png": "a mask without an image"}


def test_parts_are_known_by_a_word_and_unpacked_once_more(tmp_path: Path, draw: Draw) -> None:
    lay(
        tmp_path,
        draw,
        "seg_train/seg_train/images",
        "seg_train/seg_train/masks",
        "val2017/images",
        "val2017/gt",
    )
    assert find_pairs(tmp_path) == {
        "train": ("seg_train/seg_train/images", "seg_train/seg_train/masks"),
        "val": ("val2017/images", "val2017/gt"),
    }
    lay(tmp_path, draw, "training/images", "training/masks")
    with pytest.raises(ValueError, match="two folders for split train"):
        find_pairs(tmp_path)
