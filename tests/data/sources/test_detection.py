import pytest
from tests.data.boxes_by_hand import box, coco, image, voc

from foveal.data import open_dataset
from foveal.errors import FovealError


def test_two_formats_in_one_folder_are_refused_until_one_is_chosen(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])])
    coco(tmp_path, [], name="instances_val.json")
    voc(tmp_path / "Annotations" / "1.xml", [("cat", (1, 1, 9, 9))])
    with pytest.raises(FovealError, match=r"got coco and voc.*option format"):
        open_dataset(str(tmp_path), "train", task="detect")
    assert open_dataset(str(tmp_path), "train", task="detect", format="coco").classes == ["cat", "dog"]


def test_a_folder_of_images_alone_is_refused(tmp_path):
    image(tmp_path / "a" / "1.png")
    with pytest.raises(FovealError, match="got none of them"):
        open_dataset(str(tmp_path), "train", task="detect")


def test_an_option_of_another_format_is_refused(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])])
    coco(tmp_path, [], name="instances_val.json")
    with pytest.raises(FovealError, match="format coco, whose own options are"):
        open_dataset(str(tmp_path), "train", task="detect", voc_origin=0)


def test_shares_of_the_image_are_no_pixels(tmp_path):
    coco(tmp_path, [box(1, [0.1, 0.2, 0.5, 0.8]), box(1, [0, 0, 1, 1])])
    coco(tmp_path, [], name="instances_val.json")
    with pytest.raises(
        FovealError, match=r"boxes must be in pixels, got numbers up to 1 in all of .* shares"
    ):
        open_dataset(str(tmp_path), "train", task="detect")


def test_classes_without_a_box_are_told(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])])
    coco(tmp_path, [], name="instances_val.json")
    data = open_dataset(str(tmp_path), "train", task="detect")
    assert "1 of 2 classes has no box for train: dog" in data.notes


@pytest.mark.parametrize("annotations", [[], [box(1, [2, 3, 0, 20])]])
def test_images_without_any_box_are_refused_before_anything_is_trained(annotations, tmp_path):
    coco(tmp_path, annotations)
    coco(tmp_path, [], name="instances_val.json")
    with pytest.raises(FovealError, match="at least 1 object for train, got none in 2 images") as refusal:
        open_dataset(str(tmp_path), "train", task="detect")
    assert ("boxes without an area" in str(refusal.value)) == bool(annotations)


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_a_folder_with_boxes_is_recognised_where_classes_are_asked_for(kind, tmp_path):
    if kind == "coco":
        coco(tmp_path, [box(1, [2, 3, 10, 20])])
    else:
        image(tmp_path / "JPEGImages" / "1.png")
        voc(tmp_path / "Annotations" / "1.xml", [("cat", (1, 1, 9, 9))])
    with pytest.raises(FovealError, match=rf"images with boxes \({kind}\), which task detect opens"):
        open_dataset(str(tmp_path), "train")
