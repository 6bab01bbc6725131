from pathlib import Path

import pytest
import torch
from tests.data.boxes_by_hand import box, coco, image

from foveal.data import open_dataset
from foveal.errors import FovealError

DATA = Path(__file__).parents[4] / "shared" / "data" / "coco128"


def opened(root, split="train", **options):
    return open_dataset(str(root), split, task="detect", val_share=0.5, **options)


def test_boxes_come_as_edges_with_the_files_own_ids(tmp_path):
    annotations = [
        box(11, [2, 3, 10, 20], iscrowd=0, area=77.5),
        box(12, [0, 0, 5.5, 5], category=7, iscrowd=1),
        box(13, [1, 1, 4, 4], image_id=2, category=7),
    ]
    coco(tmp_path, annotations, name="instances_train.json")
    coco(tmp_path, [], name="instances_val.json")
    data = opened(tmp_path)
    item = data[0]
    assert (data.classes, data.category_ids) == (["cat", "dog"], [3, 7])
    assert item["boxes_xyxy"].tolist() == [[2, 3, 12, 23], [0, 0, 5.5, 5]]
    assert item["labels"].tolist() == [0, 1]
    assert item["crowd"].tolist() == [False, True]
    assert item["area"].tolist() == [77.5, 27.5]
    assert item["annotation_ids"].tolist() == [11, 12]
    assert item["image_id"] == 1
    assert item["original_size"].tolist() == [30, 40]


def test_images_without_objects_stay_and_are_counted(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])])
    coco(tmp_path, [], name="instances_val.json")
    data = opened(tmp_path)
    assert len(data) == 2
    assert data[1]["boxes_xyxy"].shape == (0, 4)
    assert "1 boxes in 2 images, 1 of them without objects" in data.notes[0]


def test_what_is_left_out_is_counted_with_its_line(tmp_path):
    annotations = [
        box(1, [2, 3, 0, 20]),
        box(2, [2, 3, 4, 5], image_id=9),
        box(3, [2, 3, 4]),
        box(4, [2, 3, 10, 20]),
    ]
    path = coco(tmp_path, annotations)
    coco(tmp_path, [], name="instances_val.json")
    line = (
        next(i for i, text in enumerate(path.read_text().splitlines(), 1) if '"id": 1,' in text and i > 13)
        - 1
    )
    notes = "\n".join(opened(tmp_path).notes)
    assert f"1 of boxes without an area, the first in instances_train.json:{line}, annotation 1" in notes
    assert "1 of boxes of images that are not listed" in notes
    assert "1 of annotations without a box" in notes


def test_an_image_that_no_file_lists_is_told_and_is_no_negative(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])])
    image(tmp_path / "images" / "stray.png")
    coco(tmp_path, [], name="instances_val.json",
         images=[{"id": 5, "file_name": "5.png"}])  # fmt: skip
    image(tmp_path / "images" / "5.png")
    data = opened(tmp_path)
    assert list(data.left_out) == ["images/stray.png"]
    assert data.names == ["images/1.png", "images/2.png"]


def test_names_written_on_windows_are_found(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])], images=[{"id": 1, "file_name": "a\\1.png"}])
    coco(tmp_path, [], name="instances_val.json", images=[{"id": 5, "file_name": "b\\5.png"}])
    for name in ("a/1.png", "b/5.png"):
        image(tmp_path / "images" / name)
    data = opened(tmp_path)
    assert (data.names, data.left_out) == (["images/a/1.png"], {})


def test_a_missing_image_is_named_and_counted_among_the_unreadable(tmp_path):
    coco(tmp_path, [box(1, [2, 3, 10, 20])])
    coco(tmp_path, [], name="instances_val.json")
    (tmp_path / "images" / "2.png").unlink()
    assert list(opened(tmp_path, max_unreadable=0.6).skipped) == ["images/2.png"]
    with pytest.raises(FovealError, match="max_unreadable"):
        opened(tmp_path)


def test_corners_given_as_widths_are_refused_and_the_option_reads_them(tmp_path):
    corners = [box(i, [20 + i, 10 + i, 36 + i % 3, 29]) for i in range(1, 8)]
    coco(tmp_path, corners)
    coco(tmp_path, [], name="instances_val.json")
    with pytest.raises(FovealError, match=r"at most 20% of the boxes may leave.*box_format xyxy"):
        opened(tmp_path)
    assert opened(tmp_path, box_format="xyxy")[0]["boxes_xyxy"][0].tolist() == [21, 11, 37, 29]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": 4}, "unknown classes.*category_id must be one of 3, 7, got 4"),
        ({"category": None}, "category_id must be one of"),
    ],
)
def test_a_class_that_is_not_listed_is_an_error_with_its_annotation(tmp_path, change, message):
    coco(tmp_path, [box(1, [2, 3, 10, 20], **change)])
    coco(tmp_path, [], name="instances_val.json")
    with pytest.raises(FovealError, match=message):
        opened(tmp_path)


def test_broken_json_is_refused_with_its_line(tmp_path):
    path = coco(tmp_path, [box(1, [2, 3, 10, 20])])
    coco(tmp_path, [], name="instances_val.json")
    text = path.read_text().splitlines()
    text[5] = text[5].replace(":", "")
    path.write_text("\n".join(text))
    with pytest.raises(FovealError, match=r"instances_train.json, line 6: "):
        opened(tmp_path)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_ends_too_early_is_no_missing_part(share, tmp_path):
    file = coco(tmp_path, [box(i, [2, 3, 10, 20]) for i in range(1, 9)])
    coco(tmp_path, [box(1, [2, 3, 10, 20])], name="instances_val.json")
    text = file.read_text()
    file.write_text(text[: int(share * len(text))])
    with pytest.raises(FovealError, match=r"must be JSON, got .*instances_train.json, line \d+"):
        open_dataset(str(tmp_path), "train", task="detect")


def test_a_size_that_contradicts_the_image_is_refused(tmp_path):
    images = [{"id": 1, "file_name": "1.png", "width": 30, "height": 40}]
    image(tmp_path / "images" / "1.png")
    coco(tmp_path, [box(1, [2, 3, 10, 20])], images=images)
    coco(tmp_path, [], name="instances_val.json")
    with pytest.raises(FovealError, match="say 30x40 pixels, the image has 40x30"):
        opened(tmp_path)


def test_ids_from_zero_are_kept_and_without_ids_they_are_counted(tmp_path):
    first, second = box(0, [2, 3, 10, 20]), box(1, [4, 3, 10, 20])
    del second["id"]
    coco(tmp_path, [first, second])
    coco(tmp_path, [], name="instances_val.json")
    assert opened(tmp_path)[0]["annotation_ids"].tolist() == [0, 2]


def test_the_fingerprint_changes_with_a_box_and_stays_when_the_folder_moves(tmp_path):
    a = tmp_path / "a"
    coco(a, [box(1, [2, 3, 10, 20])])
    before = opened(a / "annotations" / "instances_train.json", split="train", images="../images").fingerprint
    moved = a.rename(tmp_path / "b")
    path = moved / "annotations" / "instances_train.json"
    assert opened(path, images="../images").fingerprint == before
    path.write_text(path.read_text().replace("20", "21"))
    assert opened(path, images="../images").fingerprint != before


def test_a_file_without_parts_is_divided(tmp_path):
    path = coco(tmp_path, [box(i, [2, 3, 10, 20], image_id=i) for i in (1, 2)], name="boxes.json")
    names = [opened(path, split, images="../images").names for split in ("train", "val")]
    assert sorted(names[0] + names[1]) == sorted(set(names[0] + names[1]))
    assert len(names[0]) == len(names[1]) == 1


@pytest.mark.skipif(not DATA.exists(), reason="the images of coco128 are not here")
def test_coco128_comes_whole():
    data = open_dataset(str(DATA), "train", task="detect")
    assert (len(data), len(data.classes), sum(data.object_counts)) == (128, 80, 929)
    item = data[0]
    assert torch.allclose(item["boxes_xyxy"][0], torch.tensor([1.08, 187.69, 612.67, 473.53]))
