"""Paths of this machine, which are kept out of what is uploaded."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def without_paths(value: Any, removed: list[str]) -> Any:
    """``value`` with every absolute path in it cut to its last name; what was cut is added to ``removed``.

    Example:
        >>> removed = []
        >>> without_paths({"data": "/home/ann/leaves", "size": [3]}, removed), removed
        ({'data': 'leaves', 'size': [3]}, ['/home/ann/leaves'])
    """
    if isinstance(value, dict):
        # a class may have any name
        return {k: v if k == "classes" else without_paths(v, removed) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner, removed) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                removed.append(value)
                return kind(value).name
    return value
