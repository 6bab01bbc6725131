from collections.abc import Callable
from pathlib import Path

import pytest

from foveal.data.sources.pairs import find_pairs, pair

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


def test_folders_of_another_layout_are_refused(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match=r"must be images and labels .*, got cats in "):
        find_pairs(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"a folder of images must hold some, got none in .*images$"):
        pair(tmp_path, *find_pairs(tmp_path)[""], "")
