from pathlib import Path

import pytest
from tests.data.boxes_by_hand import image, voc

from foveal.data import open_dataset
from foveal.errors import FovealError

DATA = Path(__file__).parents[4] / "shared" / "data" / "bccd"


def written(root, objects, names=("a", "b")):
    for name in names:
        image(root / "JPEGImages" / f"{name}.png")
        voc(root / "Annotations" / f"{name}.xml", objects if name == "a" else [])
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part in ("train", "val"):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def opened(root, split="train", **options):
    return open_dataset(str(root), split, task="detect", **options)


def test_coordinates_count_from_one_and_include_the_last_pixel_unless_told(tmp_path):
    root = written(tmp_path, [("cat", (1, 1, 40, 30)), ("ant", (7, 5, 7, 9))])
    data = opened(root)
    assert data.classes == ["ant", "cat"]
    assert data[0]["boxes_xyxy"].tolist() == [[0, 0, 40, 30], [6, 4, 7, 9]]
    assert any("count from 1" in note for note in data.notes)
    assert any("1 of boxes of one pixel or less" in note for note in data.notes)
    edges = opened(root, voc_origin=0)
    assert edges[0]["boxes_xyxy"].tolist() == [[1, 1, 40, 30]]
    assert any("1 of boxes without an area" in note for note in edges.notes)
    assert not any("count from 1" in note for note in edges.notes)


def test_images_without_objects_stay(tmp_path):
    data = opened(written(tmp_path, [("cat", (1, 1, 9, 9))]))
    assert data[1]["boxes_xyxy"].shape == (0, 4)


def test_a_broken_file_is_refused_with_its_line(tmp_path):
    root = written(tmp_path, [("cat", (1, 1, 9, 9))])
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("</object>", ""))
    with pytest.raises(FovealError, match=r"a.xml, line 4"):
        opened(root)


def test_entities_are_refused(tmp_path):
    root = written(tmp_path, [("cat", (1, 1, 9, 9))])
    path = root / "Annotations" / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "bbbb">]>' + path.read_text())
    with pytest.raises(FovealError, match="must not define entities"):
        opened(root)


def test_a_name_outside_the_given_classes_is_refused_with_its_line(tmp_path):
    root = written(tmp_path, [("cat", (1, 1, 9, 9))])
    with pytest.raises(FovealError, match=r"a.xml:3: an object's name must be one of dog, got 'cat'"):
        opened(root, classes=["dog"])


def test_xml_files_beside_the_images_in_parts(tmp_path):
    for part in ("train", "valid"):
        image(tmp_path / part / "a.png")
        voc(tmp_path / part / "a.xml", [("cat", (1, 1, 9, 9))])
    assert opened(tmp_path, "val").names == ["valid/a.png"]


def test_an_image_without_an_xml_file_is_told(tmp_path):
    image(tmp_path / "images" / "a.png")
    image(tmp_path / "images" / "c.png")
    image(tmp_path / "images" / "d.png")
    for name in "ac":
        voc(tmp_path / "Annotations" / f"{name}.xml", [("cat", (1, 1, 9, 9))])
    assert list(opened(tmp_path).left_out) == ["images/d.png"]


@pytest.mark.skipif(not DATA.exists(), reason="the images of BCCD are not here")
def test_bccd_comes_whole():
    parts = {part: open_dataset(str(DATA), part, task="detect") for part in ("train", "val", "test")}
    assert {part: len(data) for part, data in parts.items()} == {"train": 205, "val": 87, "test": 72}
    notes = [note for data in parts.values() for note in data.notes if "one pixel" in note]
    assert sum(int(note.split()[0]) for note in notes) == 2
