"""The header of a weights file: what the network is, and names, shapes and kinds of its tensors; no weight is read."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveal.errors import FovealError
from foveal.files import utf8_path
from foveal.hub import weights_file

FORMAT = 1
PLAN_TYPES: dict[str, type] = {
    "site": str,
    "path": str,
    "block": str,
    "options": dict,
    "start": str,
    "channels": int,
    "dims": int,
    "before": bool,
}
"""What the plan says of each inserted block."""
CHANGE_KEYS = ("module", "saved", "built")


@dataclass(frozen=True)
class Header:
    """What a file says before its weights.

    Attributes:
        description: the metadata: ``format``, ``version``, ``model``, ``plan``, ``changed`` and ``info``.
        shapes: shapes by name of tensor.
        kinds: by name of tensor ``"float"``, ``"integer"``, ``"bool"`` or ``"complex"``.
        file: where the file is, which a repository's name does not say.
    """

    description: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    file: Path


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read metadata and shapes; safetensors holds the header to the file's size.

    Args:
        path: a file, or a repository's name, as `foveal.hub` knows them.

    Raises:
        FovealError: not a file of ours, with what it is instead.
        FileNotFoundError: no such file.
    """
    from safetensors import SafetensorError, safe_open

    where = weights_file(path)
    with open(where, "rb") as file:
        start = file.read(9)
    # a header may be as long as a number that looks like a pickle's beginning, but then its brace follows
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{":
        raise FovealError(
            f"expected a safetensors file written by foveal.save, got a pickle in {path}, which can run code "
            "and is not opened; if you trust it, read it with torch.load(path, weights_only=True), load that into "
            "a network and write it with foveal.save"
        )
    try:
        with utf8_path(where) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            kinds = {name: _kind_in_file(one.get_dtype()) for name, one in slices.items()}
    except SafetensorError as error:
        raise FovealError(
            f"expected a safetensors file written by foveal.save, got {path}: {error}"
        ) from error
    try:
        description = json.loads(metadata["foveal"])
        description.setdefault("changed", [])
        well_formed = _is_well_formed(description)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        well_formed, description = False, {}
    if not well_formed:
        found = "metadata of another kind" if "foveal" in metadata else "no foveal metadata"
        raise FovealError(
            f"expected a safetensors file written by foveal.save (format {FORMAT}), got {found} in {path}"
        )
    return Header(description, shapes, kinds, where)


def _is_well_formed(description: dict[str, Any]) -> bool:
    model, plan, changed = (description[key] for key in ("model", "plan", "changed"))
    return (
        description["format"] == FORMAT
        and isinstance(description["info"], dict)
        and (model is None or (isinstance(model["name"], str) and isinstance(model["kwargs"], dict)))
        and isinstance(plan, list)
        and all(isinstance(entry, dict) and entry.keys() == PLAN_TYPES.keys() for entry in plan)
        and all(type(entry[key]) is kind for entry in plan for key, kind in PLAN_TYPES.items())
        and isinstance(changed, list)
        and all(isinstance(one, dict) and {*map(type, one.values())} == {str} for one in changed)
        and all(tuple(one) == CHANGE_KEYS for one in changed)
    )


def _kind_in_file(dtype: str) -> str:
    """The kind of a dtype by safetensors' name, such as ``"BF16"`` or ``"I64"``."""
    if dtype == "BOOL":
        return "bool"
    return {"F": "float", "B": "float", "C": "complex"}.get(dtype[:1], "integer")


def kind_of(dtype: torch.dtype) -> str:
    """The kind of a dtype, as `Header.kinds` has it."""
    if dtype == torch.bool:
        return "bool"
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "integer"


def state_dict_mismatch(file: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Missing, unexpected and mis-shaped names of tensors in a file; empty where all fit."""
    shaped = [name for name, shape in expected.items() if file.get(name, shape) != shape]
    wrong = {
        "missing": [name for name in expected if name not in file],
        "unexpected": [name for name in file if name not in expected],
        "mis-shaped": [f"{name} ({file[name]} instead of {expected[name]})" for name in shaped],
    }
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in wrong.items() if names)


def listed(names: Iterable[str], shown: int = 8) -> str:
    """The first names in one line, each shortened where a file made it long, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(name if len(name) <= 160 else f"{name[:157]}..." for name in names[:shown]) + more
