"""Parse an insertion written in one line, as on the command line."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from foveal.errors import FovealError

GRAMMAR = "[FILE.py:]name[(option=value, ...)][@at[:stages]]"
WORDS = {"true": True, "false": False, "none": None}


def parse_insertion(text: str) -> dict[str, Any]:
    """Read ``[FILE.py:]name[(option=value, ...)][@at[:stages]]`` as arguments of `insert`.

    Values are Python literals; anything else is a string. Stages are numbers and ranges, ``3,4`` or ``2-4``.

    Raises:
        ValueError: the text does not have that form.

    Example:
        >>> from foveal.insertion import parse_insertion
        >>> parse_insertion("cbam(reduction=8, arrangement=parallel)@residual:3,4")
        {'block': 'cbam', 'at': 'residual', 'stages': (3, 4), 'reduction': 8, 'arrangement': 'parallel'}
        >>> parse_insertion("se")
        {'block': 'se', 'at': 'residual', 'stages': None}
        >>> parse_insertion("blocks/mine.py:ECA(kernel=5)@block")
        {'block': 'blocks/mine.py:ECA', 'at': 'block', 'stages': None, 'kernel': 5}
    """
    form = re.fullmatch(
        r"\s*((?:.+?\.py:)?[A-Za-z_]\w*)\s*(?:\((.*)\))?\s*(?:@([^:]+?)(?::([\d,\s-]+))?)?\s*", text
    )
    if form is None:
        raise FovealError(f"an insertion must be written {GRAMMAR}, got {text!r}")
    name, options, at, stages = form.groups()
    return {
        "block": name,
        "at": at or "residual",
        "stages": _stages(stages, text) if stages else None,
        **parse_options(options or "", text, reserved=("block", "at", "stages")),
    }


def parse_options(options: str, text: str, reserved: Sequence[str] = ()) -> dict[str, Any]:
    """Options as they are written in brackets, without these.

    Args:
        text: all that was written, for the message.
        reserved: names that no option may have.

    Raises:
        FovealError: one of them has no value, or a name that it may not have.

    Example:
        >>> parse_options("stages=3, strides=[4, 8], start_boxes=grid", "")
        {'stages': 3, 'strides': [4, 8], 'start_boxes': 'grid'}
    """
    found = dict(_option(part, text) for part in _split(options))
    taken = [name for name in reserved if name in found]
    if taken:
        raise FovealError(
            f"options must be written option=value with a name other than {', '.join(reserved)}, got {taken[0]!r} in "
            f"{text!r}"
        )
    return found


def _stages(written: str, text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in written.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise FovealError(f"stages must be numbers and ranges such as 3,4 or 2-4, got {text!r}")
        first = int(ends[1])
        numbers += range(first, int(ends[2] or first) + 1)
    return tuple(numbers)


def _split(options: str) -> list[str]:
    """Parts between commas that are not inside brackets."""
    parts, depth, part = [], 0, ""
    for character in options:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    return [part for part in [*parts, part] if part.strip()]


def _option(part: str, text: str) -> tuple[str, Any]:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals or not key.isidentifier() or not value:
        raise FovealError(f"options must be written option=value, got {part.strip()!r} in {text!r}")
    if value.lower() in WORDS:
        return key, WORDS[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def block_name(text: str) -> str:
    """The short name of what is inserted: without file, options and place.

    Example:
        >>> block_name("blocks/mine.py:ECA(kernel=5)@block"), block_name("se@residual:3")
        ('ECA', 'se')
    """
    return parse_insertion(text)["block"].rpartition(":")[2]
