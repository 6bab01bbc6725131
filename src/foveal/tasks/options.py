"""Values for the options of a task, which may come from a file or from a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from foveal.errors import FovealError


def make_options(kind: type, given: Mapping[str, Any], task: str) -> Any:
    """An instance of a task's options.

    Args:
        kind: the dataclass, ``Options`` or ``InferenceOptions`` of a task.
        given: option -> value; the others have their defaults.
        task: the task's name, for the message.

    Raises:
        FovealError: the task has no such option, or a value is out of its range.
    """
    known = [f.name for f in fields(kind)]
    unknown = [name for name in given if name not in known]
    if unknown:
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FovealError(
            f"options of task {task} are {', '.join(known) or 'none'}, got {', '.join(unknown)}{hint}"
        )
    return kind(**given)
