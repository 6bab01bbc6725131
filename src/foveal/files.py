"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, bring it to the disk, then put it in its place in one step.

    On any error, a full disk or Ctrl-C among them, ``path`` keeps what it had and nothing is left beside it. After
    a loss of power there is the old file or the new one. Several processes may write the same file: the last
    one's stays.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``filename`` says which file.
    """
    temporary = temporary_path(path)
    try:
        # made here and not by the writer: a link that somebody put in this place is not followed
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def temporary_path(path: Path) -> Path:
    """Where a file is written before it is whole: hidden, beside its place, with a name nobody can guess.

    Example:
        >>> temporary_path(Path("net.safetensors")).name.startswith(".net.safetensors.")
        True
    """
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.part")


def is_temporary(path: Path) -> bool:
    """Whether a file has a name that `temporary_path` gave it.

    Example:
        >>> is_temporary(temporary_path(Path("a.csv"))), is_temporary(Path(".notes.part"))
        (True, False)
    """
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.part", path.name, re.DOTALL) is not None


def _sync(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk; file systems that cannot sync a folder are left alone."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name of an existing file for libraries that take names in UTF-8 alone: its own, or else one of the open file.

    Names in another encoding exist where names are bytes, and there an open file has a name below ``/dev/fd``.

    Example:
        >>> with utf8_path("net.safetensors") as name:
        ...     name
        'net.safetensors'
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield name


def write_bytes(path: Path, content: bytes) -> None:
    """`atomic_write` of bytes."""
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """`atomic_write` of a UTF-8 text. File names that are no UTF-8 keep their bytes as ``\\udcXX`` escapes."""
    content = text.encode("utf-8", errors="backslashreplace")
    write_bytes(path, content)


def write_json(path: Path, content: Any) -> None:
    """`atomic_write` of a JSON document; numbers that are not finite become null."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """A JSON document, indented; numbers that are not finite become null, as JSON has no others."""
    return json.dumps(finite_or_none(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite_or_none(value: Any) -> Any:
    """``value`` as JSON can hold it: None for every number that is not finite, inside mappings and sequences too.

    Example:
        >>> finite_or_none({"mean": 0.5, "interval": (math.nan, 1.0)})
        {'mean': 0.5, 'interval': [None, 1.0]}
    """
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header line of all their names; figures to 6 significant digits.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.

    Example:
        >>> print(csv_text([{"epoch": 1, "loss": 0.12345678}]))
        epoch,loss
        1,0.123457
        <BLANKLINE>
    """
    text = io.StringIO()
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([csv_cell(name) for name in names])
        for row in rows:
            writer.writerow([csv_cell(row.get(name, "")) for name in names])
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """One value for a CSV file.

    Example:
        >>> csv_cell(1 / 3), csv_cell("=1+1"), csv_cell("-1"), csv_cell("cat")
        ('0.333333', "'=1+1", "'-1", 'cat')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
