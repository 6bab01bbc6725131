"""The parts of a run's data, side by side."""

import pytest
from tests.data.boxes_by_hand import box, coco, image

from foveal.errors import FovealError
from foveal.train import TrainConfig
from foveal.train.parts import open_parts


@pytest.fixture
def yolo(tmp_path):
    """Three images with a box each, and lists of them by part."""
    for number in (1, 2, 3):
        image(tmp_path / "images" / f"{number}.png")
        label = tmp_path / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        ("images", "images", "3 of the 3 images of val are trained on, too"),
        ("1 2", "2 3", "1 of the 2 images of val are trained on, too"),
        ("1 2", "3", None),
    ],
)
def test_images_that_are_in_both_parts_are_told(yolo, train, val, told):
    for part, given in (("train", train), ("val", val)):
        if given != "images":
            lines = "\n".join(f"images/{number}.png" for number in given.split())
            (yolo / f"{part}.txt").write_text(lines)
    places = {
        part: given if given == "images" else f"{part}.txt"
        for part, given in (("train", train), ("val", val))
    }
    (yolo / "data.yaml").write_text(f"names: [cat]\ntrain: {places['train']}\nval: {places['val']}\n")
    data = open_parts(TrainConfig.from_dict({"task": "detect", "data": str(yolo)}))
    notes = [note for note in data["val"].notes if "trained on" in note]
    assert [note.partition(":")[0] for note in notes] == ([told] if told else [])


def test_parts_whose_classes_have_another_order_are_refused(tmp_path):
    for part, names in (("train", ["cat", "dog"]), ("val", ["dog", "cat"])):
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=3)]
        coco(tmp_path, [box(1, [2, 3, 10, 20])], name=f"instances_{part}.json", categories=categories)
    with pytest.raises(FovealError, match="same classes in one order, got cat, dog and dog, cat"):
        open_parts(TrainConfig.from_dict({"task": "detect", "data": str(tmp_path)}))
