"""Lines for a terminal and words of a page, in which names from the world are shown and never obeyed."""

from __future__ import annotations

import html
import math
import sys
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# marks that turn the order of the letters around
TURNING = {chr(code) for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """Text in which control characters, marks of direction and bytes that are no text are escaped.

    Example:
        >>> printable("caf\\udce9 \\x1b[2J 图\\n")
        'caf\\\\udce9 \\\\x1b[2J 图\\n'
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in "\n\t" and (c in TURNING or unicodedata.category(c) in ("Cc", "Cs"))
        else c
        for c in text
    )


def escape(text: str) -> str:
    """Text for a page: what would be markup, a control character or a mark of direction there is escaped.

    Example:
        >>> escape("<b>\\u202egnp.exe")
        '&lt;b&gt;\\\\u202egnp.exe'
    """
    return html.escape(printable(text))


def plain(text: str, style: str = "") -> Text:
    """A piece of a table or a line, in which neither control characters nor markup nor names of emoji are obeyed."""
    from rich.text import Text

    return Text(printable(text), style)


def time_left(seconds: float) -> str:
    """An estimate of what is left, no more exact than it is.

    Example:
        >>> time_left(42.4), time_left(200), time_left(3 * 3600)
        ('about 42 s left', 'about 4 min left', 'about 3.0 h left')
    """
    if seconds > 2 * 3600:
        return f"about {seconds / 3600:.1f} h left"
    return f"about {math.ceil(seconds / 60)} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def write_out(text: str) -> None:
    """Write to the standard output."""
    sys.stdout.write(printable(text))


def write_error(text: str) -> None:
    """Write one line to the standard error output, as this terminal's encoding can show it."""
    encoding = sys.stderr.encoding or "utf-8"
    line = printable(" ".join(text.split()))
    with suppress(BrokenPipeError):
        print(line.encode(encoding, errors="backslashreplace").decode(encoding), file=sys.stderr)
