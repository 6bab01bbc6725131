"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place in one step.

    On any error, a full disk or Ctrl-C among them, ``path`` keeps what it had and nothing is left beside it.
    Several processes may write the same file: the last one's stays.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``filename`` says which file.
    """
    part = part_of(path)
    try:
        write(part)
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def part_of(path: Path) -> Path:
    """Where this process writes a file before it is whole.

    Example:
        >>> part_of(Path("net.safetensors")).name == f".net.safetensors.{os.getpid()}.part"
        True
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_bytes(path: Path, content: bytes) -> None:
    """`write_whole` of bytes, which reach the disk before the old file goes: weights survive a loss of power."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a UTF-8 text."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of a JSON document."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: None for every number that is not finite, inside mappings and sequences too.

    Example:
        >>> finite({"mean": 0.5, "interval": (math.nan, 1.0)})
        {'mean': 0.5, 'interval': [None, 1.0]}
    """
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
