"""Blocks of a person's own, from a Python file that the person names: ``mine.py:MyBlock``.

Only a person's own words lead to a file that is run: an insertion that is typed, or a file given with weights. A
weights file records the name of a class and nothing more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from foveal.errors import FovealError

BlockSource = (
    Mapping[str, Callable[..., nn.Module]] | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
)
"""Classes or factories by name, a Python file that defines them, or several files."""


def split_own(block: Any) -> tuple[Path, str] | None:
    """The file and the name of ``FILE.py:NAME``; None for any other block.

    Example:
        >>> split_own("blocks/mine.py:ECA")[1], split_own("cbam")
        ('ECA', None)
    """
    form = re.fullmatch(r"(.+\.py):(\w+)", block) if isinstance(block, str) else None
    return (Path(form[1]), form[2]) if form else None


def from_file(block: Any) -> Any:
    """What ``FILE.py:NAME`` names, which runs the file; any other block as it is.

    Raises:
        FovealError: there is no such file, it does not run, or it does not define the name.
    """
    own = split_own(block)
    if own is None:
        return block
    path, name = own
    defined = defined_in(path)
    if name not in defined:
        raise FovealError(
            f"{path} must define {name}, got only {', '.join(defined) or 'no class or function'}"
        )
    return defined[name]


def own_blocks(blocks: BlockSource | None) -> dict[str, Any]:
    """Blocks by name, from a mapping, or from the files that define them, which are run."""
    if blocks is None:
        return {}
    if isinstance(blocks, Mapping):
        return {str(name): made for name, made in blocks.items()}
    files = [blocks] if isinstance(blocks, str | os.PathLike) else list(blocks)
    return {name: made for file in files for name, made in defined_in(Path(file)).items()}


def defined_in(path: Path) -> dict[str, Any]:
    """The classes and functions that a Python file defines itself, by name; the file is run."""
    module = _run(path)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def source_hash(path: Path) -> str:
    """A hash of the file's content, so that a comparison knows when a block was changed."""
    return hashlib.blake2b(_content(path), digest_size=16).hexdigest()


def sources(path: Path) -> dict[str, str]:
    """A hash of the file and of every file beside it that it imports, by path; the file is run."""
    beside = _beside[_run(path).__name__]
    files = [Path(file) for module in beside.values() if (file := getattr(module, "__file__", None))]
    return {str(path): source_hash(path)} | {
        str(path.parent / file.relative_to(path.resolve().parent)): source_hash(file)
        for file in sorted(files)
    }


_beside: dict[str, dict[str, ModuleType]] = {}
"""What each file that was run imported from its own folder: name of its module -> name -> module."""


def _lies_in(folder: str, name: str, module: ModuleType) -> bool:
    """Whether a module is what ``import name`` finds in a folder itself, not in a package of libraries below it."""
    place = os.path.join(folder, *name.split("."))
    own = getattr(module, "__dict__", {})
    is_file = own.get("__file__") in (f"{place}.py", os.path.join(place, "__init__.py"))
    return is_file or ("__file__" not in own and place in list(own.get("__path__", ())))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FovealError(
            f"a block of your own must be in a Python file, got {path}: {error.strerror}"
        ) from None


def _run(path: Path) -> ModuleType:
    """Run the file once for each content, as a module that its classes can be found in again."""
    # the folder too: what is imported may be another's
    place = hashlib.blake2b(os.fsencode(path.resolve().parent), digest_size=4).hexdigest()
    name = f"foveal_own_{path.stem}_{source_hash(path)}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    # what files of other folders imported from there may have the name of something that lies here
    others = {
        one: value
        for found in _beside.values()
        for one, value in found.items()
        if sys.modules.get(one) is value and not _lies_in(folder, one, value)
    }
    for one in others:
        del sys.modules[one]
    sys.modules[name] = module
    # as where a script is run: it may import what lies beside it
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())
        raise FovealError(
            f"{path} must run without an error, got {type(error).__name__}: {reason}"
        ) from error
    finally:
        sys.path.remove(folder)
        _beside[name] = {
            one: value for one, value in list(sys.modules.items()) if _lies_in(folder, one, value)
        }
        sys.modules.update(others)
    return module
