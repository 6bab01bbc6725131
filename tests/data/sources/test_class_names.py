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
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, leaf\n", ["background", "leaf"]),
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
