import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from foveal.data.boxes import boxed_image, settled, target_of, turned


def one(*boxes, **rest):
    rows = [{"box": box, "label": 0, "id": i + 1, "place": f"a:{i + 1}"} for i, box in enumerate(boxes)]
    return boxed_image("1.png", 1, rows, **rest)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_turns_as_pillow_turns_the_image(orientation):
    pixels = np.zeros((10, 20), dtype=np.uint8)
    pixels[1:4, 2:9] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture))
    rows, columns = upright.nonzero()
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = turned(np.array([[2.0, 1, 9, 4]]), (10, 20), orientation)
    assert box[0].tolist() == seen


def test_boxes_without_an_area_or_outside_are_left_out_and_named_and_the_others_cut():
    image = one((1, 1, 1, 5), (5, 5, 3, 9), (50, 1, 60, 9), (-4, 2, 10, 12), (np.nan, 1, 2, 3), (2, 2, 9, 9))
    kept, found = settled(image, (30, 40))
    assert kept.boxes.tolist() == [[0, 2, 10, 12], [2, 2, 9, 9]]
    assert kept.places == ["a:4", "a:6"]
    assert [(f.kind, f.where) for f in found] == [
        ("boxes without an area", "a:1"),
        ("boxes without an area", "a:2"),
        ("boxes outside the image", "a:3"),
        ("boxes that leave the image", "a:4"),
        ("boxes that are no numbers", "a:5"),
    ]


def test_rounding_at_the_border_is_cut_without_a_word():
    kept, found = settled(one((0, 0, 40.6, 30)), (30, 40))
    assert kept.boxes.tolist() == [[0, 0, 40, 30]]
    assert found == []


def test_annotations_of_the_stored_size_turn_with_the_image_and_those_of_the_upright_size_do_not():
    stored = (10, 20)
    lying, found = settled(one((2, 1, 9, 4), size=(10, 20)), stored, 6)
    assert lying.boxes.tolist() == [[6, 2, 9, 9]]
    assert found[0].kind == "images that EXIF turns"
    upright, found = settled(one((2, 1, 9, 4), size=(20, 10)), stored, 6)
    assert upright.boxes.tolist() == [[2, 1, 9, 4]]
    assert upright.size == lying.size == (20, 10)


def test_a_size_that_is_neither_is_an_error():
    _, found = settled(one((2, 1, 9, 4), size=(11, 20)), (10, 20))
    assert [f.severity for f in found] == ["error"]


def test_a_box_that_is_there_twice_is_told_and_kept():
    kept, found = settled(one((2, 2, 9, 9), (2, 2, 9, 9)), (30, 40))
    assert len(kept.boxes) == 2
    assert [(f.kind, f.where) for f in found] == [("boxes that are there twice", "a:2")]


def test_a_target_has_an_area_where_the_file_says_none_and_no_row_for_an_image_without_objects():
    target = target_of(settled(one((2, 2, 9, 12)), (30, 40))[0])
    assert target["area"].tolist() == [70]
    empty = target_of(settled(one(), (30, 40))[0])
    assert empty["boxes_xyxy"].shape == (0, 4)
    assert empty["labels"].dtype == torch.int64
    assert empty["crowd"].dtype == torch.bool
