"""``foveal doctor``: what foveal finds here, and what each optional part lacks."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from foveal.machine import processor, usable_cores
from foveal.terminal import write_out

PURPOSE = {
    "docs": "build the documentation site",
    "export": "ONNX Runtime, OpenVINO and int8",
    "fid": "FID of generated images",
    "fuzz": "the fuzzing tests",
    "heic": "photographs of phones, HEIC",
    "hub": "hf-hub: names and foveal push",
    "ray": "comparisons on several machines",
    "slurm": "comparisons on SLURM",
    "tensorboard": "--logger tensorboard",
    "test": "the tests",
    "video": "video files",
    "wandb": "--logger wandb",
}
SHOWN = 3
TOOLS = {
    "g++": "a C++ compiler, which --to aotinductor and torch.compile need",
    "node": "Node.js, in which --to web is tried before it is written",
    "chromium": "Chromium, which the browser tests need",
}


def doctor() -> int:
    """Print versions, devices, threads and optional parts, with what each lacks; put it into a report of a bug."""
    try:
        wanted = requires("foveal") or []
    except PackageNotFoundError:
        write_out("foveal is not installed, only imported: pip install . in its folder\n")
        return 1
    base = lacking(wanted, "")
    lines = [
        f"foveal {version('foveal')}, Python {platform.python_version()}, {platform.platform()}",
        f"processor    {processor()}",
        *_threads_and_devices(),
        "",
        f"needed       {'; '.join(base) or 'all there'}",
        *_parts(wanted),
        "",
        *(
            f"{name:12} {'found' if shutil.which(name) else 'not found'}: {use}"
            for name, use in TOOLS.items()
        ),
    ]
    write_out("\n".join(lines) + "\n")
    return 1 if base else 0


def lacking(wanted: Iterable[str], extra: str) -> list[str]:
    """What of the requirements of an extra, or with "" of foveal itself, is missing or too old.

    Args:
        wanted: requirements as the installed package states them, such as ``av>=17; extra == 'video'``.

    Example:
        >>> lacking(["torch>=2.0", "nothing-such>=1; extra == 'video'", "torch>=99; extra == 'video'"], "")
        []
        >>> lacking(["nothing-such>=1; extra == 'video'"], "video")
        ['nothing-such is missing']
    """
    found = []
    for text in wanted:
        requirement, _, marker = text.partition(";")
        name, bounds = re.fullmatch(r"([\w.-]+)(?:\[.*?\])?\s*\(?(.*?)\)?\s*", requirement.strip()).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if _extra_of(marker) != extra:
            continue
        try:
            there = version(name)
        except PackageNotFoundError:
            found.append(f"{name} is missing")
            continue
        if wrong := [bound for bound in bounds.split(",") if not _holds(there, bound)]:
            found.append(f"{name} {there} must be {','.join(wrong)}")
    return found


def _extra_of(marker: str) -> str:
    named = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
    return named[1] if named else ""


def _holds(there: str, bound: str) -> bool:
    """Whether a version obeys one bound, by its first three numbers.

    Example:
        >>> _holds("2.14.1+cpu", ">=2.11"), _holds("3.0", "<3"), _holds("1.0", "")
        (True, False, True)
    """
    form = re.fullmatch(r"\s*(>=|==|<)\s*([\w.+]+)\s*", bound)
    if form is None:
        return True
    numbers, limit = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (there, form[2]))
    numbers, limit = (one + [0] * (3 - len(one)) for one in (numbers, limit))
    return {">=": numbers >= limit, "<": numbers < limit, "==": numbers == limit}[form[1]]


def _parts(wanted: list[str]) -> list[str]:
    """A line for each extra."""
    extras = sorted({_extra_of(text.partition(";")[2]) for text in wanted} - {""})
    lines = []
    for extra in extras:
        missing = lacking(wanted, extra)
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        shown = f"{', '.join(missing[:SHOWN])}{more}"
        state = f'{shown}: pip install "foveal[{extra}]"' if missing else "ready"
        lines.append(f"{extra:12} {state} ({PURPOSE.get(extra, 'an extra')})")
    return lines


def _threads_and_devices() -> list[str]:
    """Cores, threads and devices as PyTorch has them; one line where it cannot even be imported."""
    cores = f"cores        {usable_cores()} of {os.cpu_count()} usable"
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        return [cores, f"torch        cannot be imported: {' '.join(str(error).split())[:300]}"]
    asked = os.environ.get("OMP_NUM_THREADS")
    why = f" (OMP_NUM_THREADS={asked})" if asked else ""
    lines = [
        f"{cores}; PyTorch takes {torch.get_num_threads()} threads{why}",
        f"torch        {torch.__version__}, torchvision {torchvision.__version__}",
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            lines.append(f"cuda:{index}       {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    elif torch.version.cuda:
        lines.append(f"cuda         none found (PyTorch is built for CUDA {torch.version.cuda})")
    else:
        lines.append("cuda         none (PyTorch is built without CUDA)")
    if torch.backends.mps.is_available():
        lines.append("mps          there")
    return lines
