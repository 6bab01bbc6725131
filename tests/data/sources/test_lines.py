import json

import pytest

from foveal.data.sources.lines import read_json_lists, read_text, read_xml
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_may_have_a_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("große 图\n", encoding=encoding)
    assert read_text(tmp_path / "a.txt") == "große 图\n"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", "got another encoding"),
        ("utf-16-le", "got zeros between"),
        ("utf-32", "got zeros between"),
    ],
)
def test_a_text_of_another_encoding_is_refused_by_name(tmp_path, encoding, message):
    (tmp_path / "a.txt").write_text("ö\n" if encoding == "latin-1" else "o\n", encoding=encoding)
    with pytest.raises(FovealError, match=rf"a list of videos must be UTF-8, {message}.*a\.txt"):
        read_text(tmp_path / "a.txt", "a list of videos")
