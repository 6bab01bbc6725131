"""The script beside a file, and the page around it, answer as ``foveal predict`` does: both are run and asked."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveal.data.bundled import photograph_files
from foveal.errors import FovealError
from foveal.export.script import label_difference, run_script
from foveal.inference import Predictor, image_files
from foveal.look.images import bundled_images
from foveal.tasks.shipping import Shipment

SAME_SCORE = {"float32": 1e-3, "float16": 5e-3, "int8": 0.02}
"""By so much the script's scores may differ from those of `foveal predict`, or, in less than float32, from those of the
same file behind foveal's own preparation: its last bit may decide how a value is rounded to eight."""


def prove_script(reference: Predictor, script: Path, image: Path, allowed: float) -> float:
    """Run the script on an image and compare its scores with those of ``reference``: the largest difference.

    Raises:
        FovealError: it fails, or its answer is another.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        said = run_script(script, image, Path(elsewhere))
    return _difference(reference, image, said, allowed, f"infer.py for {image}")


def finish_page(
    reference: Predictor,
    folder: Path,
    facts: Mapping[str, Any],
    shipment: Shipment,
    image: Path,
    allowed: float,
    say: Callable[[str], object],
) -> float:
    """Put the graph into a page, and run the page's script on its example: the largest difference of a score.

    Raises:
        FovealError: it fails, or its answer is another.
    """
    from foveal.export import web

    web.write_page(folder, facts, shipment, reference.name, image)
    png = web.example_png(image)
    said = web.run_page(folder, facts, shipment, png)
    (folder / web.FILE).unlink()
    if said is None:
        say("index.html was not tried: there is no Node.js on this machine")
        return math.nan
    difference = _difference(reference, png, said, allowed, f"index.html for {image}")
    say(f"index.html answers as foveal predict: scores within {difference:.1e}")
    return difference


def _difference(
    reference: Predictor, image: Any, said: Mapping[str, Any], allowed: float, script: str
) -> float:
    """The largest difference of a score in what a script said from what foveal says.

    Raises:
        FovealError: it is above what is ``allowed``.
    """
    wanted = reference(image)
    difference = label_difference(wanted.labels, said["labels"], allowed)
    if not difference <= allowed:
        raise FovealError(
            f"{script} must answer as foveal predict, got {said['labels'][:2]} instead of {wanted.labels[:2]}; "
            "nothing was kept"
        )
    return difference


def _is_readable(predictor: Predictor, file: Path) -> bool:
    try:
        predictor.read(file)
    except (FovealError, OSError):
        return False
    return True


@contextmanager
def script_input(predictor: Predictor, images: str | None) -> Iterator[Path]:
    """The first of a person's images or clips that can be read, or a photograph that comes with scikit-learn.

    Of clips a bundled one, written as an animated image.
    """
    of_clips = hasattr(predictor.task, "example_size")
    if images is not None:
        yield next(file for file in image_files([images], predictor.task) if _is_readable(predictor, file))
        return
    if not of_clips:
        yield photograph_files()[0]
        return
    from PIL import Image

    ((_, clip),) = bundled_images(predictor, 1)
    first, *others = [Image.fromarray(frame.numpy()) for frame in clip.permute(1, 2, 3, 0)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webp"
        first.save(path, save_all=True, append_images=others, lossless=True)
        yield path
