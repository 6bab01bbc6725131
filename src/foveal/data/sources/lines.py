"""Reading JSON and XML so that every entry knows the line it stands in."""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from foveal.errors import FovealError
from foveal.image_files import open_regular

LARGEST_XML = 2**24
"""Bytes of an annotation file of one image; a hundred thousand boxes take ten million."""
WHITE = re.compile(r"[ \t\n\r]*")


def read_text(path: Path, what: str = "annotations") -> str:
    """A text file in UTF-8, with or without a mark, or in UTF-16 with its mark.

    Args:
        what: what the file is, for the message.

    Raises:
        FovealError: it has another encoding, or is no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise FovealError(f"{what} must be UTF-8, got another encoding in {path}: {error}") from None
    if "\0" in text:
        raise FovealError(
            f"{what} must be UTF-8, got zeros between the letters in {path}, as UTF-16 and UTF-32 have them"
        )
    return text


def with_slashes(name: str) -> str:
    """The name of a file as a list gives it, with ``/`` between its parts where Windows wrote the list.

    Example:
        >>> with_slashes("images\\\\1.png")
        'images/1.png'
    """
    return name.replace("\\", "/")


def read_json_lists(path: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """A JSON object, and for each of its lists the line of every entry.

    Raises:
        FovealError: it is no JSON object; the message has the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.json"
        >>> _ = file.write_text('{"info": 1, "images": [{"id": 7},\\n  {"id": 8}]}')
        >>> read_json_lists(file)
        ({'info': 1, 'images': [{'id': 7}, {'id': 8}]}, {'images': [1, 2]})
    """
    text = read_text(path)
    breaks = [match.start() for match in re.finditer("\n", text)]
    decoder = json.JSONDecoder()
    try:
        return _object(text, decoder, breaks)
    except json.JSONDecodeError as error:
        raise FovealError(f"annotations must be JSON, got {path}, line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise FovealError(f"annotations must be JSON of a sane depth, got {path}") from None


def _object(
    text: str, decoder: json.JSONDecoder, breaks: list[int]
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The top level by hand, everything below it by `json`."""
    values: dict[str, Any] = {}
    lines: dict[str, list[int]] = {}
    at = _expected(text, 0, "{")
    while text[at : at + 1] != "}":
        key, at = decoder.raw_decode(text, at)
        at = _expected(text, _white(text, at), ":")
        if text[at : at + 1] == "[":
            entries, starts = [], []
            at = _white(text, at + 1)
            while text[at : at + 1] != "]":
                starts.append(bisect_right(breaks, at) + 1)
                entry, at = decoder.raw_decode(text, at)
                entries.append(entry)
                at = _separated(text, at, "]")
            values[key], lines[key], at = entries, starts, at + 1
        else:
            values[key], at = decoder.raw_decode(text, at)
        at = _separated(text, at, "}")
    if _white(text, at + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, at + 1)
    return values, lines


def _white(text: str, at: int) -> int:
    match = WHITE.match(text, at)
    assert match is not None
    return match.end()


def _expected(text: str, at: int, sign: str) -> int:
    at = _white(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"Expecting '{sign}'", text, at)
    return _white(text, at + 1)


def _separated(text: str, at: int, end: str) -> int:
    """Behind the comma after an entry, or at the sign that ends the list."""
    at = _white(text, at)
    if text[at : at + 1] == end:
        return at
    at = _expected(text, at, ",")
    if text[at : at + 1] == end:
        raise json.JSONDecodeError("Expecting an entry behind the comma", text, at)
    return at


@dataclass
class Element:
    """An element of an XML file, with the line in which it begins."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, path: str) -> Element | None:
        """The first child of that name, or child's child behind a ``/``."""
        name, _, rest = path.partition("/")
        child = next((child for child in self.children if child.tag == name), None)
        return child.find(rest) if child is not None and rest else child

    def find_all(self, name: str) -> list[Element]:
        """All children of that name."""
        return [child for child in self.children if child.tag == name]


def read_xml(path: Path) -> Element:
    """The root of an XML file. Entities of its own are refused, as they may grow without bound.

    Raises:
        FovealError: it is no XML, or too large; the message has the line.
    """
    with open_regular(path) as file:
        content = file.read(LARGEST_XML + 1)
    if len(content) > LARGEST_XML:
        raise FovealError(f"an XML file may have at most {LARGEST_XML} bytes, got more in {path}")
    parser = expat.ParserCreate()
    top = Element("", 0)
    open_elements = [top]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        open_elements.pop()

    def data(text: str) -> None:
        open_elements[-1].text += text

    def refuse(*_: Any) -> None:
        raise FovealError(
            f"an XML file must not define entities, got {path}, line {parser.CurrentLineNumber}"
        )

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        reason = expat.errors.messages[error.code]
        raise FovealError(f"annotations must be XML, got {path}, line {error.lineno}: {reason}") from None
    return top.children[0]
