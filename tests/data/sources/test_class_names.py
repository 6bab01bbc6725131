"""Class lists of labelling tools: which stored number is which class is known, or the list is refused."""

import codecs
import json
from pathlib import Path

import pytest

from foveal.data.sources.class_names import find_class_list, read_class_list
from foveal.errors import FovealError


def listed(path: Path, content: str | bytes) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_class_list(path).names


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("classes.txt", "road\nsky\n\ncar\n", ["road", "sky", "car"]),
        ("labels.txt", "__ignore__\n_background_\ncat\n", ["_background_", "cat"]),
        ("obj.names", "cat\r\ndog\r\n", ["cat", "dog"]),
        ("classes.txt", codecs.BOM_UTF8 + "Straße\ncafé".encode(), ["Straße", "café"]),
        ("classes.txt", "a\nß".encode("utf-16"), ["a", "ß"]),
        ("classes.txt", "cafe\u0301\nb", ["café", "b"]),
        ("classes.txt", "0: a\n1: b\n", ["a", "b"]),
        ("classes.txt", "1 euro\n2 euro\n", ["1 euro", "2 euro"]),
        ("classes.txt", "0 a\n1 b c\n", ["a", "b c"]),
        ("classes.txt", "a,0\nb,1\n", ["a", "b"]),
        ("classes.txt", "id,name\n0,a\n1,b\n", ["a", "b"]),
        ("classes.txt", "name;id\na;0\nb;1\n", ["a", "b"]),
        ("classes.txt", "zone 0\nroom 1\n", ["zone 0", "room 1"]),
        ("classes.txt", "0\n1\n2\n", ["0", "1", "2"]),
        ("classes.txt", "#\n*\n", ["#", "*"]),
        ("classes.txt", "tench, Tinca tinca\ngoldfish, Carassius\n", ["tench, Tinca tinca", "goldfish, Carassius"]),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, leaf\n", ["background", "leaf"]),
        ("_classes.csv", 'Pixel Value,Class\n0,sky\n1,"leaf, green"\n', ["sky", "leaf, green"]),
        ("id2label.json", '{"1": "cat", "0": "sky"}', ["sky", "cat"]),
        ("id2label.json", '{"sky": 0, "cat": 1}', ["sky", "cat"]),
        ("classes.json", '["sky", "cat"]', ["sky", "cat"]),
        ("objectInfo150.txt", "Idx\tRatio\tName\n1\t0.1\twall\n2\t0.1\tsky, air\n", ["wall", "sky, air"]),
        ("meta.json", json.dumps({"classes": [{"title": "background"}, {"title": "cat"}]}), ["background", "cat"]),
        ("obj_class_to_machine_color.json", '{"dog": [2, 2, 2], "cat": [1, 1, 1]}', ["background", "cat", "dog"]),
    ],
)  # fmt: skip
def test_the_lists_of_the_usual_tools_are_read(tmp_path: Path, name: str, content: str, names: list) -> None:
    assert listed(tmp_path / name, content) == names


def test_the_label_map_of_cvat_has_colours(tmp_path: Path) -> None:
    path = tmp_path / "labelmap.txt"
    path.write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ntraffic: light:250,50,83::\n")
    found = read_class_list(path)
    assert found.names == ["background", "traffic: light"]
    assert found.colours == [(0, 0, 0), (250, 50, 83)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "1: a\n2: b\n", "must count from 0 in order, got 1, 2"),
        ("classes.txt", "0: a\n2: b\n", "must count from 0 in order, got 0, 2"),
        ("classes.txt", "1 a\n2 b\n", "must count from 0 in order, got 1, 2"),
        ("classes.txt", "1. a\n2. b\n", "must count from 0 in order, got 1, 2"),
        ("classes.txt", "a 2\nb 1\n", "must count from 0 in order, got 2, 1"),
        ("classes.txt", "0 0 0 sky\n128 0 0 cat\n", "must count from 0 in order, got 0, 128"),
        ("classes.txt", "1\n2\n3\n", "got numbers only, 1, 2, 3"),
        ("classes.txt", "# my classes\nsky\ncat\n", "a name a line and nothing else, got '# my classes'"),
        ("classes.txt", "names:\n- sky\n- cat\n", "a name a line and nothing else, got 'names:'"),
        ("classes.txt", '["sky", "cat"]', "a name a line and nothing else"),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,0\ncat,128,0,0\n", "got a table with the rows 'name,r,g,b'"),
        ("labels.txt", "cat\n_background_\n", "_background_ must be the first class"),
        ("id2label.json", '{"1": "cat", "2": "dog"}', "must count from 0 in order, got 1, 2"),
        ("id2label.json", '[{"name": "cat"}]', "must list classes by name"),
        ("_classes.csv", "Pixel Value, Class\n1, leaf\n", "must count from 0"),
        ("labels.txt", "cat\n__ignore__\n", "__ignore__ must stand first"),
        ("classes.txt", "café\n".encode("latin-1"), "must be UTF-8"),
        ("classes.txt", "图像\n".encode("gbk"), "must be UTF-8"),
        ("classes.txt", "sky\nroad\n".encode("utf-16-le"), "must be UTF-8, got zeros between the letters"),
        ("classes.txt", "sky\nroad\n".encode("utf-16-be"), "must be UTF-8, got zeros between the letters"),
        ("classes.txt", "sky\nroad\n".encode("utf-32"), "must be UTF-8, got zeros between the letters"),
        ("labels.txt", "sky\nro\x1b[2Jad\n", r"must be plain text, got the character '\\x1b'"),
        ("meta.json", json.dumps({"classes": [{"title": "cat"}]}), "must be the background"),
        ("meta.json", "[1]", "must list classes with a title each"),
        ("obj_class_to_machine_color.json", '{"dog": [7, 7, 7], "cat": [1, 1, 1]}', "must be consecutive"),
    ],
)
def test_lists_that_do_not_say_which_number_is_which_are_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(FovealError, match=message) as error:
        listed(tmp_path / name, content)
    assert name in str(error.value)


def test_two_lists_must_agree(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "obj.names").write_text("a\nb\n")
    (tmp_path / "meta.json").write_text("{}")  # says less than a list of names
    assert find_class_list([tmp_path]).names == ["a", "b"]
    (tmp_path / "obj.names").write_text("b\na\n")
    with pytest.raises(FovealError, match=r"2 in classes\.txt and 2 others in obj\.names"):
        find_class_list([tmp_path])


def test_lists_of_all_parts_must_agree(tmp_path: Path) -> None:
    for part, names in (("train", "a\nb\n"), ("val", "b\na\n")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "classes.txt").write_text(names)
    with pytest.raises(FovealError, match=r"2 in train.classes\.txt and 2 others in val.classes\.txt"):
        find_class_list([tmp_path, tmp_path / "train", tmp_path / "val"])
