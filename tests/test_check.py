import csv

import pytest

from foveal.check import check
from foveal.cli import main
from foveal.errors import FovealError
from tests.data.boxes_by_hand import box, coco, image, voc
from tests.data.videos import flat_frames, write_animation


def kinds(found):
    return {(split, f.severity, f.kind) for split, f in found.findings}


def test_everything_that_is_wrong_is_listed_with_its_place(tmp_path, capsys):
    root = tmp_path / "data"
    images = [
        {"id": 1, "file_name": "1.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "2.png", "width": 30, "height": 40},
        {"id": 3, "file_name": "gone.png", "width": 40, "height": 30},
        {"id": 4, "file_name": "broken.png"},
        {"id": 5, "file_name": "turned.jpg"},
    ]
    for name in ("1.png", "2.png", "stray.png"):
        image(root / "images" / name)
    image(root / "images" / "turned.jpg", orientation=3)
    (root / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50 + b"IEND\xaeB`\x82")
    annotations = [
        box(0, [2, 3, 10, 20]),
        box(1, [2, 3, 10, 20]),
        box(2, [2, 3, 0, 5]),
        box(3, [35, 3, 30, 5]),
        box(4, [2, 3, 5, 5], category=99),
        *(box(10 + i, [i % 30, 1, 5, 5], image_id=5) for i in range(101)),
    ]
    coco(root, annotations, images=images)
    coco(root, [box(1, [2, 3, 10, 20])], images=images[:1], name="instances_val.json")
    status = main(["check", str(root), "--task", "detect", "--out", str(tmp_path / "out")])
    assert status == 1
    said = capsys.readouterr().out
    assert "instances_train.json:" in said
    rows = list(csv.DictReader((tmp_path / "out" / "findings.csv").read_text().splitlines()))
    found = {(row["severity"], row["kind"]) for row in rows if row["split"] == "train"}
    assert found >= {
        ("error", "boxes of unknown classes"),
        ("error", "sizes that contradict"),
        ("warning", "boxes without an area"),
        ("warning", "boxes that leave the image"),
        ("warning", "boxes that are there twice"),
        ("warning", "images that are missing"),
        ("warning", "images that cannot be read"),
        ("warning", "files that are not used"),
        ("warning", "images with more objects than queries"),
        ("note", "annotations with id 0"),
        ("note", "images that EXIF turns"),
    }
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The images that most is wrong with" in page
    assert page.count("<figure>") >= 3


def test_sound_data_end_with_status_0(tmp_path):
    words = [
        "check",
        "scenes",
        "--task",
        "detect",
        "--data_options.length",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0


def test_a_broken_xml_file_does_not_hide_what_else_is_wrong(tmp_path):
    for name in "ab":
        image(tmp_path / "data" / "images" / f"{name}.png")
        voc(tmp_path / "data" / "Annotations" / f"{name}.xml", [("cat", (9, 9, 3, 12))])
    (tmp_path / "data" / "Annotations" / "a.xml").write_text("<annotation><object>")
    found = check(
        str(tmp_path / "data"), task="detect", data_options={"val_share": 0.5}, out=tmp_path / "out"
    )
    names = {kind for _, _, kind in kinds(found)}
    assert {"XML files that cannot be read", "boxes without an area"} <= names


def test_broken_json_is_one_finding_and_not_the_end(tmp_path):
    coco(tmp_path / "data", [box(1, [2, 3, 10, 20])], name="instances_val.json")
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text('{"images": [], "annotations": [')
    found = check(str(tmp_path / "data"), task="detect", out=tmp_path / "out")
    assert ("train", "error", "data that cannot be opened") in kinds(found)
    assert found.parts["val"].images == 2


def test_data_without_any_box_are_an_error(tmp_path):
    coco(tmp_path / "data", [])
    found = check(str(tmp_path / "data"), task="detect", splits=["train"], out=tmp_path / "out")
    assert ("train", "error", "data that cannot be used as they stand") in kinds(found)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_other_tasks_are_checked_too(task, tmp_path):
    found = check("scenes", task=task, data_options={"length": 5}, out=tmp_path / "out")
    assert found.sound
    assert found.parts["train"].images == 5


def test_a_folder_of_classes_is_read_whole(tmp_path):
    for name in ("cat", "dog"):
        for number in range(3):
            image(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "data" / "cat" / "0.png").write_bytes(b"nothing")
    image(tmp_path / "data" / "stray.png")
    found = check(str(tmp_path / "data"), data_options={"val_share": 0.4}, out=tmp_path / "out")
    assert {"images that cannot be read", "files that are not used"} <= {kind for _, _, kind in kinds(found)}


@pytest.mark.parametrize("task", ["classify", "clips"])
def test_what_the_data_set_says_of_itself_is_among_the_findings(task, tmp_path):
    for kind in ("a", "b"):
        for number in range(3):
            file = tmp_path / "data" / kind / f"{number}.gif"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_animation(file, flat_frames(4, 8, 8))
    (tmp_path / "data" / "train.txt").write_text("a/0.gif")
    found = check(str(tmp_path / "data"), task=task, splits=["train"], out=tmp_path / "out")
    told = [f.text for _, f in found.findings if f.kind == "what to know of these data"]
    assert told[0].startswith("train.txt is not read")
    assert found.sound


def test_data_that_are_not_there_are_refused(tmp_path):
    found = check(str(tmp_path / "nowhere"), task="detect", out=tmp_path / "out")
    assert not found.sound
    with pytest.raises(FovealError, match="task must be one of"):
        check("scenes", task="sing", out=tmp_path / "other")
