"""Images and masks lie on each other as they were meant to, and a number is one class in all files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from foveal.data import LabelError, open_dataset

Draw = Callable[..., Path]


def segment(where: Path, split: str = "train", **options: Any) -> Any:
    return open_dataset(str(where), split, task="segment", **options)


def refused(where: Path, **options: Any) -> str:
    with pytest.raises(LabelError) as error:
        segment(where, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def with_exif(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def corner(path: Path, size: tuple[int, int], orientation: int | None, *, mask: bool) -> None:
    """An image that is white, or a mask that is 1, in its stored upper left corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, dtype=np.uint8)
    values[:4, :3] = 1
    Image.fromarray(values if mask else np.stack([values * 255] * 3, axis=-1)).save(path)
    if orientation is not None:
        with_exif(path, orientation)


def agreeing(data: Any) -> bool:
    return all(torch.equal(item["image"][0] > 100, item["mask"] == 1) for item in data)


@pytest.mark.parametrize(
    ("size", "orientation"), [((12, 12), 6), ((12, 20), 3), ((12, 20), 6), ((12, 20), 8)]
)
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_masks_are_turned_with_their_images(tmp_path: Path, size: tuple, orientation: int, kind: str) -> None:
    for i in range(2):
        corner(tmp_path / "images" / f"{i}.{kind}", size, orientation, mask=False)
        corner(tmp_path / "masks" / f"{i}.{kind}", size, orientation, mask=True)
    data = segment(tmp_path, classes=["a", "b"], val_share=0.5)
    assert agreeing(data)
    assert data[0]["mask"].sum() == 12


@pytest.mark.parametrize("mask_kind", ["png", "tif"])
def test_a_mask_without_exif_lies_as_its_size_says(tmp_path: Path, mask_kind: str) -> None:
    """Drawn on the stored pixels of a photograph that lies on its side, by a program that ignores EXIF."""
    corner(tmp_path / "images/1.png", (12, 20), 6, mask=False)
    corner(tmp_path / f"masks/1.{mask_kind}", (12, 20), None, mask=True)
    corner(
        tmp_path / "images/2.png", (12, 20), 3, mask=False
    )  # upside down: the size does not tell, the first does
    corner(tmp_path / f"masks/2.{mask_kind}", (12, 20), None, mask=True)
    for split in ("train", "val"):
        assert agreeing(segment(tmp_path, split, classes=["a", "b"]))


def test_exif_of_the_mask_alone_counts_where_the_size_says_so(tmp_path: Path) -> None:
    """A mask that lies on its side and says so, and one that was turned but kept the EXIF of its photograph."""
    corner(tmp_path / "images/1.png", (12, 20), None, mask=False)
    corner(tmp_path / "masks/1.png", (12, 20), None, mask=True)
    with Image.open(tmp_path / "masks/1.png") as image:
        lying = image.transpose(Image.Transpose.ROTATE_90)  # undone by orientation 6
    lying.save(tmp_path / "masks/1.png")
    with_exif(tmp_path / "masks/1.png", 6)
    assert agreeing(segment(tmp_path, classes=["a", "b"]))
    corner(tmp_path / "masks/1.png", (12, 20), 6, mask=True)
    assert agreeing(segment(tmp_path, classes=["a", "b"]))


def test_a_mask_drawn_on_the_turned_photograph_stays_as_it_is(tmp_path: Path) -> None:
    for name, orientation in (("1", 6), ("2", 3)):
        corner(tmp_path / f"images/{name}.png", (12, 20), orientation, mask=False)
        with Image.open(tmp_path / f"images/{name}.png") as image:
            shown = np.asarray(ImageOps.exif_transpose(image))[..., 0] // 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(shown).save(tmp_path / f"masks/{name}.png")
    assert agreeing(segment(tmp_path, classes=["a", "b"]))


def test_a_mask_that_may_lie_in_two_ways_is_refused(tmp_path: Path) -> None:
    corner(tmp_path / "images/1.png", (12, 20), 3, mask=False)
    corner(tmp_path / "masks/1.png", (12, 20), None, mask=True)
    message = refused(tmp_path, classes=["a", "b"])
    assert "the same EXIF orientation" in message
    assert "got 3 in images/1.png, 1 in masks/1.png" in message


def palette_mask(path: Path, values: list[list[int]], *colours: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)


BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


def test_palettes_that_contradict_each_other_are_refused_with_two_names(tmp_path: Path, draw: Draw) -> None:
    """An editor that sorts the colours of each file by use: green is class 1 here and class 2 there."""
    for i in range(40):
        draw(tmp_path / f"images/{i:02}.png", size=(3, 1))
        colours = (BLACK, RED, GREEN) if i == 37 else (BLACK, GREEN, RED)
        palette_mask(tmp_path / f"masks/{i:02}.png", [[0, 1, 2]], *colours)
    message = refused(tmp_path, classes=["a", "b", "c"])
    assert "all masks must have one palette" in message
    assert "00.png" in message
    assert "37.png" in message


def test_palettes_of_different_length_that_agree_are_accepted(tmp_path: Path, draw: Draw) -> None:
    for i, colours in enumerate([(BLACK, GREEN), (BLACK, GREEN, RED)]):
        draw(tmp_path / f"train/images/{i}.png", size=(3, 1))
        palette_mask(tmp_path / f"train/masks/{i}.png", [[0, 1, len(colours) - 1]], *colours)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    data = segment(tmp_path, classes=["a", "b", "c"])
    assert [item["mask"].flatten().tolist() for item in data] == [[0, 1, 1], [0, 1, 2]]


def test_masks_with_and_without_a_palette_are_told(tmp_path: Path, draw: Draw) -> None:
    """Both hold the numbers of classes where one program took the other's files over, as those of VOC and SBD."""
    for i in range(3):
        draw(tmp_path / f"images/{i}.png", size=(3, 1))
        palette_mask(tmp_path / f"masks/{i}.png", [[0, 1, 2]], BLACK, GREEN, RED)
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(tmp_path / "masks/1.png")
    notes = segment(tmp_path, classes=["a", "b", "c"]).notes
    assert notes == ["2 masks have a palette and 1 have none; in both the stored numbers are the classes"]


def test_places_in_a_palette_of_grey_levels_are_refused(tmp_path: Path, draw: Draw) -> None:
    """Grey levels 0, 3, 7 that a program made smaller are stored as places 0, 1, 2."""
    draw(tmp_path / "images/1.png", size=(3, 1))
    palette_mask(tmp_path / "masks/1.png", [[0, 1, 2]], *((v, v, v) for v in (0, 3, 7)))
    message = refused(tmp_path, classes=[str(i) for i in range(12)])
    assert "got places [0, 1, 2] in a palette of the grey levels [0, 3, 7]" in message
    palette_mask(
        tmp_path / "masks/1.png", [[0, 1, 1]], BLACK, (255, 255, 255)
    )  # two classes, black and white
    assert segment(tmp_path, classes=["a", "b"])[0]["mask"].tolist() == [[0, 1, 1]]
    palette_mask(tmp_path / "masks/1.png", [[1, 1, 1]], BLACK, (255, 255, 255))
    assert segment(tmp_path, classes=["a", "b"])[0]["mask"].tolist() == [[1, 1, 1]]


def test_a_palette_must_have_the_colours_of_the_label_map(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "images/1.png", size=(3, 1))
    palette_mask(tmp_path / "masks/1.png", [[0, 1, 2]], BLACK, RED, GREEN)
    lines = ["# label:color_rgb:parts:actions", "none:0,0,0::", "leaf:0,255,0::", "stem:255,0,0::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    assert "got (255, 0, 0) at 1" in refused(tmp_path)
    (tmp_path / "labelmap.txt").write_text("\n".join([lines[0], lines[1], lines[3], lines[2]]))
    assert segment(tmp_path).classes == ["none", "stem", "leaf"]


def test_masks_stored_in_the_colours_of_the_label_map(tmp_path: Path, draw: Draw) -> None:
    """As CVAT exports them."""
    colours = np.array([[[0, 0, 0], [0, 255, 0], [255, 0, 0]]], dtype=np.uint8)
    draw(tmp_path / "images/1.png", size=(3, 1))
    (tmp_path / "masks").mkdir()
    Image.fromarray(colours).save(tmp_path / "masks/1.png")
    assert "got mode RGB" in refused(tmp_path, classes=["none", "stem", "leaf"])
    lines = ["none:0,0,0::", "stem:255,0,0::", "leaf:0,255,0::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    assert segment(tmp_path)[0]["mask"].tolist() == [[0, 2, 1]]
    Image.fromarray(colours[:, ::-1] // 2).save(tmp_path / "masks/1.png")
    assert "must be those of the class list, got (127, 0, 0) in" in refused(tmp_path)
    Image.fromarray(colours).save(tmp_path / "masks/1.png")
    (tmp_path / "labelmap.txt").write_text("\n".join([*lines, "bud:0,255,0::"]))
    assert "classes must differ in colour where masks are stored in colours" in refused(tmp_path)
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    (tmp_path / "masks/1.png").unlink()
    Image.fromarray(colours).save(tmp_path / "masks/1.jpg")
    assert "without loss" in refused(tmp_path)
