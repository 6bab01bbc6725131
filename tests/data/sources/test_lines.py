import json

import pytest

from foveal.data.sources.lines import read_json_lists, read_xml
from foveal.errors import FovealError


def test_json_reads_as_json_does_and_knows_the_line_of_every_entry(tmp_path):
    content = {"a": [{"x": [1, {"y": "]}"}]}, 2, "é\n"], "b": {}, "c": [], "d": None, "e": [[]]}
    for indent in (None, 1):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
        values, lines = read_json_lists(path)
        assert values == content
        assert set(lines) == {"a", "c", "e"}
        text = path.read_text().splitlines()
        if indent:
            assert text[lines["a"][1] - 1].strip() == "2,"


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": [1,]}', '{"a": [1 2]}', '{"a": 1} x', '{"a": [1', "nul", '{"a" 1}']
)
def test_what_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FovealError, match=r"must be JSON, got .*a.json, line 1"):
        read_json_lists(path)


def test_xml_elements_know_their_line(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<a>\n<b>x</b>\n<b><c>y</c></b></a>")
    root = read_xml(path)
    assert [(b.line, b.text) for b in root.find_all("b")] == [(2, "x"), (3, "")]
    assert root.find_all("b")[1].find("c").text == "y"


def test_xml_beyond_any_annotation_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.data.sources.lines.LARGEST_XML", 10)
    path = tmp_path / "a.xml"
    path.write_text("<a>" + " " * 20 + "</a>")
    with pytest.raises(FovealError, match="at most 10 bytes"):
        read_xml(path)
