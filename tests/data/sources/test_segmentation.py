import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.by_hand import png

from foveal.data import as_tensors, open_dataset
from foveal.data.sources.torchvision import VOC_CLASSES

Draw = Callable[..., Path]


def pair(draw: Draw, image: Path, mask: Path, value: int = 1, size: tuple[int, int] = (12, 10)) -> None:
    draw(image, size=size)
    draw(mask, value, size=size)


def segment(where: Path | str, split: str = "train", **options: Any) -> Any:
    return open_dataset(str(where), split, task="segment", **options)


def refused(where: Path | str, split: str = "train", **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        segment(where, split, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path, draw: Draw) -> Path:
    """Three classes, four pairs in train and one in val."""
    (tmp_path / "classes.txt").write_text("road\nsky\n\ncar\n")
    for part, count in (("train", 4), ("val", 1)):
        for i in range(count):
            pair(
                draw, tmp_path / part / "images" / f"{i}.jpg", tmp_path / part / "labels" / f"{i}.png", i % 3
            )
    return tmp_path


def test_images_and_masks_are_paired_by_name(folder: Path) -> None:
    train, val = segment(folder), segment(folder, "val")
    assert train.classes == ["road", "sky", "car"]
    assert train.ignore_index == 255
    assert (len(train), len(val)) == (4, 1)
    for i, item in enumerate(train):
        assert set(item) == {"image", "mask"}
        assert item["image"].shape == (3, 10, 12)
        assert item["mask"].dtype == torch.uint8
        assert item["mask"].unique().tolist() == [i % 3]


def test_without_parts_the_pairs_are_divided_by_a_seed(tmp_path: Path, draw: Draw) -> None:
    for i in range(10):
        pair(draw, tmp_path / "images" / f"{i}.png", tmp_path / "masks" / f"{i}_mask.png")
    train, val = (
        segment(tmp_path, split, classes=["a", "b"], mask_suffix="_mask") for split in ("train", "val")
    )
    assert (len(train), len(val)) == (9, 1)
    assert not set(train.names) & set(val.names)


def test_lists_of_parts_as_those_of_voc_are_named(tmp_path: Path, draw: Draw) -> None:
    for i in range(10):
        pair(draw, tmp_path / "JPEGImages" / f"{i}.png", tmp_path / "SegmentationClass" / f"{i}.png", i % 2)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0")
    (lists / "val.txt").write_text("1")
    *_, note = segment(tmp_path, classes=["a", "b"]).notes
    assert note.startswith("ImageSets/Segmentation/train.txt, ImageSets/Segmentation/val.txt are not read")


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path: Path, draw: Draw) -> None:
    rows = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t5\t2\t1\twall\n2\t0.1\t5\t2\t1\tsky, air\n"
    (tmp_path / "objectInfo150.txt").write_text(rows)
    for i in range(3):
        pair(
            draw, tmp_path / "images/training" / f"{i}.jpg", tmp_path / "annotations/training" / f"{i}.png", i
        )
        pair(
            draw,
            tmp_path / "images/validation" / f"{i}.jpg",
            tmp_path / "annotations/validation" / f"{i}.png",
            i,
        )
    data = segment(tmp_path)
    assert data.classes == ["wall", "sky, air"]
    assert [item["mask"].unique().item() for item in data] == [255, 0, 1]


def test_voc_through_torchvision_keeps_palette_indices(tmp_path: Path, draw: Draw) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    draw(base / "JPEGImages" / "one.jpg")
    mask = Image.fromarray(np.array([[0, 20] * 6] * 9 + [[255] * 12], dtype=np.uint8))
    mask.putpalette([7 * i % 256 for i in range(768)])
    (base / "SegmentationClass").mkdir()
    mask.save(base / "SegmentationClass" / "one.png")
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("one\n")
    data = segment("torchvision:VOCSegmentation", "val", root=str(tmp_path))
    assert (data.classes, data.ignore_index) == (list(VOC_CLASSES), 255)
    assert data[0]["mask"].unique().tolist() == [0, 20, 255]
    assert "download=True" in refused("torchvision:VOCSegmentation", "train", root=str(tmp_path))
    assert "no part for split 'test'" in refused("torchvision:VOCSegmentation", "test", root=str(tmp_path))


def test_cityscapes_through_torchvision_has_its_19_classes(tmp_path: Path, draw: Draw) -> None:
    name = "aachen_000000_000019"
    draw(tmp_path / "leftImg8bit/val/aachen" / f"{name}_leftImg8bit.png", size=(34, 2))
    ids = np.tile(np.arange(34, dtype=np.uint8), (2, 1))
    target = tmp_path / "gtFine/val/aachen" / f"{name}_gtFine_labelIds.png"
    target.parent.mkdir(parents=True)
    Image.fromarray(ids).save(target)
    target.with_name(f"{name}_gtFine_polygons.json").write_text(json.dumps({}))
    data = segment("torchvision:Cityscapes", "val", root=str(tmp_path))
    assert (len(data.classes), data.classes[0], data.classes[-1]) == (19, "road", "bicycle")
    row = data[0]["mask"][0].tolist()
    assert [row[i] for i in (0, 6, 7, 8, 11, 26, 33)] == [255, 255, 0, 1, 2, 13, 18]
    assert sorted(set(row)) == [*range(19), 255]


def test_scenes_are_the_bundled_default() -> None:
    data = segment("scenes", "val", length=12)
    assert data.classes == ["background", *"0123456789"]
    item = data[3]
    assert set(item) == {"image", "mask"}
    assert item["image"].shape[1:] == item["mask"].shape == (64, 64)
    assert len(item["mask"].unique()) in (2, 3)  # two digits, maybe the same one
    batch = as_tensors(data)
    assert torch.equal(batch["mask"][3], item["mask"])


def test_grey_images_and_mixed_sizes_are_read_as_they_are(tmp_path: Path, draw: Draw) -> None:
    for i in range(3):
        draw(tmp_path / "train/images" / f"{i}.png", 40, size=(10 + i, 9))
        draw(tmp_path / "train/masks" / f"{i}.png", 1, size=(10 + i, 9))
    data = segment(tmp_path, "train", classes=["a", "b"], val_share=0.3)
    assert all(item["image"].shape == (3, *item["mask"].shape) for item in data)


def test_wholly_ignored_masks_are_read(tmp_path: Path, draw: Draw) -> None:
    for i in range(2):
        pair(draw, tmp_path / "images" / f"{i}.png", tmp_path / "masks" / f"{i}.png", 255)
    assert (segment(tmp_path, classes=["a", "b"])[0]["mask"] == 255).all()


def test_a_mask_of_another_size_is_refused_by_name(folder: Path, draw: Draw) -> None:
    draw(folder / "train/labels/3.png", 1, size=(12, 11))
    assert "same size, got 12x10 in train/images/3.jpg, 12x11 in train/labels/3.png" in refused(folder)


def test_mask_values_outside_the_classes_are_refused_by_name(folder: Path, draw: Draw) -> None:
    draw(folder / "train/labels/3.png", 3)
    message = refused(folder)
    assert "mask values must be 0 to 2 (3 classes) or 255 (ignored), got [3] in" in message
    remedy = "if 3 is no class, pass ignore_index=3 (--data_options.ignore_index 3)"
    counting = "if the numbers count from 1 and 0 is no class, pass zero_ignored=True"
    assert message.endswith(f"3.png; {counting} (--data_options.zero_ignored true); {remedy}")
    data = segment(folder, ignore_index=3)
    assert (data[3]["mask"] == data.ignore_index).all()
    draw(folder / "train/labels/3.png", 9)
    assert refused(folder).endswith("3.png; " + remedy.replace("3", "9"))


@pytest.mark.parametrize(
    ("names", "values", "remedy"),
    [
        (["void", "road", "sky"], (0, 1, 2), "take its name out of the list and pass zero_ignored=True"),
        (["road", "Don't care", "sky"], (0, 1, 2), "store 255 in its place"),
        (["road", "sky", "__ignore__"], (0, 1, 2), "take its name out of the list and pass ignore_index=2"),
        (["road", "sky", "Unlabelled"], (0, 1, 255), "take its name out of the list"),
    ],
)
def test_a_class_whose_name_says_that_it_is_none_is_told(
    tmp_path: Path, draw: Draw, names: list[str], values: tuple[int, ...], remedy: str
) -> None:
    for i in range(12):
        pair(draw, tmp_path / "images" / f"{i}.png", tmp_path / "masks" / f"{i}.png", values[i % 3])
    *_, note = segment(tmp_path, classes=names).notes
    assert note.endswith(f"is learned and scored as any other; if it means pixels without a class, {remedy}")


def test_classes_in_another_order_than_that_of_the_list_are_told(folder: Path) -> None:
    assert segment(folder, classes=["road", "sky", "car"]).notes == []
    (note,) = segment(folder, classes=["sky", "road", "car"]).notes
    assert note.startswith("option classes gives the order sky, road, car, a list in")
    assert note.endswith("has road, sky, car: the option counts")


def test_a_first_class_that_no_mask_shows_may_be_a_count_from_one(tmp_path: Path, draw: Draw) -> None:
    for i in range(4):
        pair(draw, tmp_path / "images" / f"{i}.png", tmp_path / "masks" / f"{i}.png", 1 + i % 2)
    (note,) = segment(tmp_path, classes=["cat", "dog", "fox"]).notes
    assert note.endswith("looked at: cat; if their numbers count from 1, pass zero_ignored=True")
    (note,) = segment(tmp_path, classes=["cat", "dog", "fox"], zero_ignored=True).notes
    assert note.endswith("looked at: fox")


def test_wrong_values_found_late_are_refused_not_skipped(folder: Path, draw: Draw) -> None:
    data = segment(folder, max_unreadable=0.9)
    draw(folder / "train/labels/1.png", 9)
    with pytest.raises(ValueError, match=r"got \[9\] in .*1\.png"):
        data[1]


def test_a_class_list_that_is_too_short_or_missing_is_refused(folder: Path) -> None:
    assert "0 to 1 (2 classes)" in refused(folder, classes=["road", "sky"])
    assert "at least 2 classes" in refused(folder, classes=["road"])
    (folder / "classes.txt").unlink()
    assert "segmentation needs classes.txt or option classes" in refused(folder)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_masks_that_hold_no_class_numbers_are_refused_not_skipped(folder: Path, mode: str) -> None:
    data = segment(folder, max_unreadable=0.9)
    Image.new(mode, (12, 10), 300 if mode == "I;16" else (1, 1, 1)).save(folder / "train/labels/0.png")
    rule = "got 300 to 300" if mode == "I;16" else f"got mode {mode}"
    for found in (lambda: segment(folder, max_unreadable=0.9), lambda: data[0]):
        with pytest.raises(ValueError, match=rf"{rule} in .*0\.png") as error:
            found()
        assert "\n" not in str(error.value)


def test_a_class_name_stands_once_in_the_list(folder: Path) -> None:
    assert "a name of its own, got ['sky'] more than once" in refused(folder, classes=["sky", "road", "sky"])
    (folder / "classes.txt").write_text("road\nroad\nsky\n")
    assert "got ['road'] more than once" in refused(folder)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"ignore_index": 2}, "stored as 0 to 2, 0 to 2 in the items), got 2"),
        ({"ignore_index": 0}, "got 0"),
        ({"ignore_index": 3, "zero_ignored": True}, "stored as 1 to 3, 0 to 2 in the items), got 3"),
        ({"ignore_index": 0, "zero_ignored": True}, "got 0"),
    ],
)
def test_an_ignored_value_is_no_class(folder: Path, options: dict[str, Any], numbers: str) -> None:
    message = refused(folder, **options)
    assert "ignore_index must not be the number of a class" in message
    assert numbers in message


def test_zero_and_another_value_may_both_be_ignored(tmp_path: Path, draw: Draw) -> None:
    for i in range(4):
        pair(draw, tmp_path / "train/images" / f"{i}.png", tmp_path / "train/masks" / f"{i}.png", i)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    data = segment(tmp_path, classes=["a", "b"], zero_ignored=True, ignore_index=3)
    assert [item["mask"].unique().item() for item in data] == [3, 0, 1, 3]


def test_masks_of_0_and_255_do_not_lose_their_second_class(tmp_path: Path, draw: Draw) -> None:
    """255 is the ignored value where none is given, and black and white the usual form of two classes."""
    for i in range(2):
        pair(draw, tmp_path / "train/images" / f"{i}.png", tmp_path / "train/masks" / f"{i}.png", 255 * i)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    message = refused(tmp_path, classes=["ground", "thing"])
    assert "got only 0 and 255, which is ignored, in 2 masks" in message
    meant = segment(tmp_path, classes=["ground", "thing"], ignore_index=255)
    assert [item["mask"].unique().item() for item in meant] == [0, 255]
    for path in (tmp_path / "train/masks").iterdir():  # as docs/data.md says
        Image.open(path).point(lambda value: value // 255).save(path)
    converted = segment(tmp_path, classes=["ground", "thing"])
    assert [item["mask"].unique().item() for item in converted] == [0, 1]


def test_unreadable_images_are_skipped_as_anywhere(folder: Path) -> None:
    path = folder / "train/images/1.jpg"
    path.write_bytes(path.read_bytes()[:50])
    data = segment(folder, max_unreadable=0.25)
    assert (len(data), list(data.skipped)) == (3, ["train/images/1.jpg"])


@pytest.mark.parametrize("ignore_index", [-1, 254, 300])
def test_ignore_index_must_be_a_byte(folder: Path, ignore_index: int) -> None:
    assert "ignore_index must be 0 to 255 but not 254" in refused(folder, ignore_index=ignore_index)


def test_data_of_another_kind_are_refused() -> None:
    assert "got 'nowhere'" in refused("nowhere")
    assert "VOCSegmentation and Cityscapes, got 'CIFAR10'" in refused("torchvision:CIFAR10")


def test_camvid(shared: Callable[[str], Path]) -> None:
    root = shared("camvid")
    data = {split: segment(root, split, ignore_index=11) for split in ("train", "val", "test")}
    assert [len(part) for part in data.values()] == [367, 101, 233]
    assert data["train"].classes[3] == "road"
    item = data["val"][0]
    assert item["image"].shape == (3, 180, 240)
    assert int(item["mask"].max()) <= 11
    assert data["test"].skipped == {}
    # the road lies below the sky
    rows = torch.arange(180.0)[:, None].expand(180, 240)
    assert rows[item["mask"] == 3].mean() > rows[item["mask"] == 0].mean()


def test_masks_of_few_bits_keep_their_classes_in_a_long_list(tmp_path: Path, draw: Draw) -> None:
    """4-bit grey that Pillow multiplies by 17 would still be classes where there are 200."""
    draw(tmp_path / "images/1.png", size=(4, 1))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/1.png").write_bytes(png(np.array([[0, 1, 5, 11]]), 4))
    data = segment(tmp_path, classes=[f"c{i}" for i in range(200)])
    assert data[0]["mask"].tolist() == [[0, 1, 5, 11]]
    assert data.notes == [
        "196 of 200 classes are in none of the 1 masks looked at: c2, c3, c4, c6, c7 and 191 more"
    ]


def test_lossy_masks_are_refused_and_not_skipped(folder: Path) -> None:
    (folder / "train/labels/3.png").unlink()
    Image.new("L", (12, 10), 1).save(folder / "train/labels/3.jpg")
    assert "without loss, such as PNG, got JPEG" in refused(folder, max_unreadable=0.9)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_parts_that_are_one_folder_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "val").symlink_to("train")
    assert "parts must not share their images" in refused(folder)


def test_the_fingerprint_follows_the_masks(folder: Path, draw: Draw) -> None:
    before = segment(folder, ignore_index=100).fingerprint
    assert segment(folder).fingerprint != before
    assert segment(folder, ignore_index=100, classes=["_", "road", "sky", "car"]).fingerprint != before
    before = segment(folder).fingerprint
    assert segment(folder).fingerprint == before
    draw(folder / "train/labels/0.png", 2, size=(12, 10))
    os.utime(folder / "train/labels/0.png", ns=(1, 1))
    assert segment(folder).fingerprint != before


def test_images_in_grey_keep_their_masks(folder: Path) -> None:
    item = segment(folder, channels=1)[1]
    assert item["image"].shape == (1, 10, 12)
    assert item["mask"].unique().tolist() == [1]


def halves(path: Path, first: int, second: int) -> None:
    """A mask of two values, 12 x 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((10, 12), first, dtype=np.uint8)
    values[:, 6:] = second
    Image.fromarray(values).save(path)


def test_masks_of_0_and_1_with_one_of_0_and_255_among_them_are_refused(tmp_path: Path, draw: Draw) -> None:
    """Two programs wrote them; found at opening, or where the odd one is read."""
    for i in range(40):
        draw(tmp_path / f"train/images/{i:02}.png")
        halves(tmp_path / f"train/masks/{i:02}.png", 0, 1)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    halves(tmp_path / "train/masks/17.png", 0, 255)
    late = segment(tmp_path, classes=["ground", "thing"])
    with pytest.raises(ValueError, match=r"got only 0 and 255, which is ignored, in train/masks/17.png"):
        late[17]
    halves(tmp_path / "train/masks/00.png", 0, 255)
    assert "in the mask of train/images/00.png" in refused(tmp_path, classes=["ground", "thing"])
    assert segment(tmp_path, classes=["ground", "thing"], ignore_index=255)[17]["mask"].max() == 255
    for i in range(40):  # a border without a class, as VOC has it: now it is known what 255 is
        halves(tmp_path / f"train/masks/{i:02}.png", 1 if i % 3 else 0, 255)
    assert segment(tmp_path, classes=["ground", "thing"])[0]["mask"].unique().tolist() == [0, 255]


def test_numbers_spread_over_the_range_of_a_byte_are_refused(tmp_path: Path, draw: Draw) -> None:
    """Three classes as black, grey and white are numbers of classes too where there are 200 of them."""
    for i in range(3):
        pair(
            draw,
            tmp_path / "train/images" / f"{i}.png",
            tmp_path / "train/masks" / f"{i}.png",
            (0, 127, 255)[i],
        )
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    assert "got only 0, 127 and 255" in refused(tmp_path, classes=[f"c{i}" for i in range(200)])


def test_palettes_of_the_parts_must_agree(tmp_path: Path) -> None:
    for part, colours in (
        ("train", [0, 0, 0, 255, 0, 0, 0, 255, 0]),
        ("val", [0, 0, 0, 0, 255, 0, 255, 0, 0]),
    ):
        for folder in ("images", "masks"):
            (tmp_path / part / folder).mkdir(parents=True)
        Image.new("RGB", (3, 1)).save(tmp_path / part / "images/1.png")
        mask = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
        mask.putpalette(colours)
        mask.save(tmp_path / part / "masks/1.png")
    for split in ("train", "val"):
        message = refused(tmp_path, split, classes=["a", "b", "c"])
        assert "all masks must have one palette" in message
        assert "train/masks/1.png" in message
        assert "val/masks/1.png" in message
