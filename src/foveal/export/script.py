"""The script beside a file, which answers for images without foveal; and whether it answers as foveal does."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.model_info import ModelInfo

HEAD = '''"""Answers for {what}, one line of JSON each: python infer.py {example} ...

Written by foveal; needs numpy, Pillow{more} and {runtime}.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

here = Path(__file__).parent
about = json.loads((here / "foveal.json").read_text(encoding="utf-8"))
'''

LOOP = """
run, status = load(str(here / about["file"])), 0
for name in sys.argv[1:]:
    try:
        image = read(name, "{mode}", {top})
        images = prepare(image, about["preprocessing"])
        if any(type(size) is int and size != own for size, own in zip(about["input"]["shape"], images.shape)):
            raise ValueError(f"it becomes {{images.shape}}, where {{about['input']['shape']}} alone is taken")
    except Exception as error:  # one file without an answer keeps no other from its own
        print(f"{{name}} has no answer: {{error}}", file=sys.stderr)
        status = 1
        continue
    print(json.dumps({{"file": name, **answer(run(images), image, name, about)}}), flush=True)
sys.exit(status)
"""


def script_text(
    runtime: str, functions: Sequence[Callable[..., Any]], info: ModelInfo, *, of_clips: bool = False
) -> str:
    """The Python of ``infer.py``.

    Args:
        runtime: what it needs beside numpy and Pillow, as people install it.
        functions: that are copied into it: ``load``, ``read``, ``prepare`` and ``answer``, and those these call.
        info: of the network: grey or in colours, and how many bits greys have.
        of_clips: whether it takes clips rather than images.
    """
    sources = "\n\n".join(inspect.getsource(function) for function in functions)
    mode = "L" if info.channels == 1 else "RGB"
    what = "clips: videos, animated images, and folders of frames" if of_clips else "images"
    more = ", for videos PyAV," if of_clips else ""
    example = "clip.mp4 clip.gif frames/" if of_clips else "photo.jpg"
    head = HEAD.format(runtime=runtime, what=what, more=more, example=example)
    return f"{head}\n\n{sources}\n{LOOP.format(mode=mode, top=2**info.grey_bits - 1)}"


def run_script(script: Path, image: Path, folder: Path) -> dict[str, Any]:
    """What a script answers for an image, run as a person would, in ``folder``.

    Raises:
        FovealError: it fails.
    """
    # a checkout of foveal on the path would hide that the script needs it
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script.resolve()), str(image.resolve())],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FovealError(f"the script beside the file must run, got {last}")
    return json.loads(done.stdout.splitlines()[-1])


def label_difference(
    wanted: Sequence[tuple[str, float]], found: Sequence[Sequence[Any]], tolerance: float
) -> float:
    """The largest difference of a score; infinite where labels differ that scores tell apart.

    Example:
        >>> label_difference([("cat", 0.75), ("dog", 0.25)], [["cat", 0.5], ["dog", 0.5]], 0.01)
        0.25
        >>> label_difference([("cat", 0.501), ("dog", 0.499)], [["dog", 0.501], ["cat", 0.499]], 0.01) < 0.01
        True
        >>> label_difference([("cat", 0.75)], [["dog", 0.75]], 0.01)
        inf
    """
    if len(wanted) != len(found):
        return float("inf")
    largest = 0.0
    scores = dict(wanted)
    for (label, score), (other, there) in zip(wanted, found, strict=True):
        largest = max(largest, abs(score - there))
        tied = abs(scores.get(other, float("inf")) - score) <= tolerance
        if label != other and not tied:
            return float("inf")
    return largest
