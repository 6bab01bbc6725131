"""From trained weights to a file that another runtime loads, proven before it is there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foveal
from foveal.errors import FovealError
from foveal.export.answers import SAME_SCORE, finish_page, prove_script, script_input
from foveal.export.fault import first_fault
from foveal.export.pairs import bytes_of_pairs, no_tiles, pair_lines
from foveal.export.program import INPUT, Program, free_axes, network_name, record, shipment_of
from foveal.export.proof import (
    TOLERANCES,
    Batch,
    Check,
    Run,
    RuntimeNet,
    check,
    make_batches,
    real_images,
)
from foveal.export.quantize import BATCH, calibration_inputs, to_int8
from foveal.export.script import script_text
from foveal.export.tensorrt import engine_script
from foveal.files import write_json, write_text
from foveal.folders import whole_folder
from foveal.inference import Predictor, predictor
from foveal.machine import versions
from foveal.model_info import LARGEST_SIZE
from foveal.tasks import items_of
from foveal.tasks.shipping import Shipment

__all__ = ["FORMATS", "Exported", "export"]

FORMATS = ("onnx", "openvino", "aotinductor", "pt2", "web")
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
RUN_BY_PYTORCH = ("aotinductor", "pt2")
RUNTIMES |= dict.fromkeys(RUN_BY_PYTORCH, "torch and torchvision")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with the file, ``foveal.json`` and ``infer.py``.
        file: what the runtime loads, or the page.
        checks: outputs beside the network's.
        answer_difference: of the scores of ``infer.py``, or of the page, from those of `foveal predict`; nan where
            there is no Node.js to try the page in.
        seconds: that it took.
    """

    folder: Path
    file: Path
    checks: list[Check]
    answer_difference: float
    seconds: float


def export(
    weights: str | os.PathLike[str] | Predictor,
    to: str = "onnx",
    *,
    static: bool = False,
    with_preprocessing: bool = False,
    half: bool = False,
    int8: bool = False,
    calibrate: str | None = None,
    images: str | None = None,
    image_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Exported:
    """Write a network for another runtime, with a script that uses it, and prove both on real images.

    Nothing is left where a proof fails.

    Args:
        weights: a file of `foveal train`, the name of a model with published weights, or a predictor.
        to: "onnx", "openvino", "aotinductor" (machine code for this processor), "pt2" (torch.export) or "web" (one
            page for a browser).
        static: record one image of one size; by default batch, height and width are free, of clips the batch.
        with_preprocessing: the file takes the bytes 0..255 of resized images and normalises them itself.
        half: compute in float16.
        int8: quantise, for "onnx" and "openvino"; gates and softmax stay in float where that is more accurate.
        calibrate: for that, a folder of images like those to come.
        images: folder of images for the proof; by default those that come with foveal.
        image_size: at which the network sees images; by default as it was trained.
        out: a folder that does not exist yet; by default the first free runs/export/NAME-FORMAT.
        say: is called with a line about each step.

    Raises:
        FovealError: a runtime is not installed, the network cannot be recorded, the file or the script computes
            something else, or ``out`` exists.

    Example:
        >>> import tempfile
        >>> from foveal.inference import open_bundled
        >>> done = export(open_bundled(), "pt2", out=tempfile.mkdtemp() + "/digits")
        >>> sorted(path.name for path in done.folder.iterdir())
        ['foveal.json', 'infer.py', 'model.pt2']
    """
    began = time.monotonic()
    kind = format_named(to)
    ready = weights if isinstance(weights, Predictor) else predictor(weights, "cpu")
    if image_size is not None:
        if not 2 <= image_size <= LARGEST_SIZE:
            raise FovealError(f"image_size must be 2 to {LARGEST_SIZE}, got {image_size}")
        ready = replace(ready, info=replace(ready.info, image_size=image_size))
    check_int8(kind, to, int8=int8, half=half, normalise=with_preprocessing, calibrate=calibrate)
    if to == "web":
        kind.require(shipment_of(ready), half=half)
    shipment, precision = shipment_of(ready), "int8" if int8 else "float16" if half else "float32"
    with (
        whole_folder(out, "runs/export", f"{ready.info.model or 'network'}-{to}") as (folder, place),
        ExitStack() as stack,
    ):
        shown = real_images(ready, images)
        example_file = stack.enter_context(script_input(ready, images))
        # a file of one shape takes that of the image which its script is tried with
        shown = [ready.read(example_file), *shown] if static else shown
        batches = make_batches(ready, shown, static=static, normalise=with_preprocessing)
        batches = run_network(ready, shipment, batches)
        example = torch.from_numpy(batches[0].input)
        shape = tuple(example.shape) if static else None
        calibration = [] if calibrate is None else calibration_inputs(ready, calibrate, say, shape)
        program = record(
            ready,
            example,
            static=static,
            half=half,
            normalise=with_preprocessing,
            for_pytorch=to in RUN_BY_PYTORCH,
        )
        say(f"recorded at {shape_text(example.shape)}: {time.monotonic() - began:.1f} s")
        facts = description(ready, shipment, example, to=to, precision=precision, static=static)
        with of_others(ready, to):
            kind.write(program, folder / kind.FILE, json.dumps(facts))
            megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            say(f"written {kind.FILE}, {megabytes:.1f} MB: {time.monotonic() - began:.1f} s")
            if int8:
                facts["int8"] = to_int8(
                    ready, shipment, kind, folder / kind.FILE, calibration, say, batch=1 if static else BATCH
                )
            if pairs := bytes_of_pairs(program):
                tiled = getattr(kind, "in_tiles", no_tiles)(folder / kind.FILE)
                for line in pair_lines(pairs, tiled):
                    say(line)
                facts["pairs_of_positions"] = {
                    path: {"in_tiles": path in tiled, "bytes_at_1024x2048": 0 if path in tiled else count}
                    for path, count in pairs.items()
                }
            run = kind.load(str(folder / kind.FILE))
            checks = prove(ready, program, kind, folder / kind.FILE, run, batches, TOLERANCES[precision], say)
        write_json(folder / "foveal.json", {**facts, "checks": [asdict(one) for one in checks]})
        reference = (
            ready if precision == "float32" else replace(ready, net=RuntimeNet(run, shipment, ready.net))
        )
        if to == "web":
            allowed = SAME_SCORE[precision]
            difference = finish_page(reference, folder, facts, shipment, example_file, allowed, say)
        else:
            of_clips = hasattr(ready.task, "example_size")
            functions = [kind.load, *shipment.script]
            text = script_text(RUNTIMES[to], functions, ready.info, of_clips=of_clips)
            write_text(folder / "infer.py", text)
            difference = prove_script(reference, folder / "infer.py", example_file, SAME_SCORE[precision])
            say(f"infer.py answers as foveal predict: scores within {difference:.1e}")
        if to == "onnx" and not int8:
            text = engine_script(folder / kind.FILE, ready.net, facts["input"], example.shape)
            write_text(folder / "build_engine.py", text)
        made = next(folder.glob("index.html"), folder / kind.FILE).name
    seconds = time.monotonic() - began
    say(f"{place}: {', '.join(sorted(path.name for path in place.iterdir()))} in {seconds:.1f} s")
    return Exported(place, place / made, checks, difference, seconds)


def format_named(name: str) -> Any:
    """The module that writes and reads a format.

    Raises:
        FovealError: there is no such format, or what it needs is not installed.
    """
    if name not in FORMATS:
        raise FovealError(f"to must be one of {', '.join(FORMATS)}, got {name}")
    kind = import_module(f"foveal.export.{name}")
    missing = [package for package in kind.NEEDS if find_spec(package) is None]
    if missing:
        raise FovealError(f'{name} needs {", ".join(missing)}: pip install "foveal[export]"')
    return kind


@contextmanager
def of_others(ready: Predictor, to: str) -> Iterator[None]:
    """What an exporter or a runtime raises, whatever it is, as one line; a full disk and the like stay as they are.

    Raises:
        FovealError: with its reason.
    """
    try:
        yield
    except (FovealError, OSError, MemoryError):
        raise
    except Exception as error:
        name, reason = network_name(ready), " ".join(str(error).split())[:300] or type(error).__name__
        raise FovealError(
            f"{name} cannot be exported to {to}, which says: {reason}; nothing was kept"
        ) from error


def check_int8(kind: Any, to: str, *, int8: bool, half: bool, normalise: bool, calibrate: str | None) -> None:
    """Refuse options of quantisation that do not go together."""
    if int8 != (calibrate is not None):
        raise FovealError("int8 must come with calibrate, a folder of images like those to come")
    if int8 and not hasattr(kind, "quantize"):
        raise FovealError(f"int8 must be for onnx or openvino, got {to}")
    if int8 and (half or normalise):
        raise FovealError("int8 must be given without half and with_preprocessing")


def run_network(ready: Predictor, shipment: Shipment, batches: Sequence[Batch]) -> list[Batch]:
    """The batches with what the network itself gives for them.

    Raises:
        FovealError: it does not take images of that size, or gives nothing that could be compared.
    """
    done = []
    for number, batch in enumerate(batches):
        try:
            with torch.no_grad():
                outputs = shipment.call(ready.net, batch.prepared)
            wanted = tuple(output.float() for output in outputs)
        except Exception as error:  # of the network's own code, whatever it is
            reason = " ".join(str(error).split())[:200]
            size = shape_text(batch.prepared.shape[2:])
            if number == 0:
                what = f"image_size must be one that the network takes, got {ready.info.image_size} ({size})"
            else:
                what = f"the network must take any size, but not {size}; --static exports one size"
            raise FovealError(f"{what}: {reason}") from error
        if not any(output.isfinite().any() for output in wanted):
            size = shape_text(batch.prepared.shape)
            raise FovealError(f"the network must give numbers, got none that is finite for images {size}")
        done.append(replace(batch, wanted=wanted))
    return done


def description(
    ready: Predictor, shipment: Shipment, example: Tensor, *, to: str, precision: str, static: bool
) -> dict[str, Any]:
    """What ``foveal.json`` and the file's own metadata say."""
    info = ready.info
    free = free_axes(shipment, static)
    sizes = [free.get(axis, size) for axis, size in enumerate(example.shape)]
    packages = [
        name for name in ("onnx", "onnxruntime", "openvino", "nncf") if name in format_named(to).NEEDS
    ]
    return {
        "foveal": foveal.__version__,
        "format": to,
        "file": format_named(to).FILE,
        "precision": precision,
        "task": info.task,
        "model": info.model,
        "plan": [
            {"site": one.site, "block": one.block, "options": one.options}
            for one in foveal.inserted(ready.net)
        ],
        "classes": info.classes,
        "input": {"name": INPUT, "shape": sizes, "type": str(example.dtype).removeprefix("torch.")},
        "outputs": list(shipment.outputs),
        "preprocessing": {
            **shipment.preprocessing,
            "interpolation": info.interpolation,
            "mean": list(info.mean),
            "std": list(info.std),
            "normalised_in_graph": example.dtype == torch.uint8,
        },
        "versions": {**versions(), **{name: version(name) for name in packages}},
    }


def prove(
    ready: Predictor,
    program: Program,
    kind: Any,
    path: Path,
    run: Run,
    batches: Sequence[Batch],
    allowed: float,
    say: Callable[[str], object],
) -> list[Check]:
    """Compare a file with the network on every batch, and say what came of each.

    Raises:
        FovealError: a difference is above what is ``allowed``.
    """
    shipment, checks = shipment_of(ready), []
    items = items_of(ready.task)
    for batch in batches:
        done = check(shipment, run, batch)
        say(
            f"{items} {shape_text(done.shape)}: largest difference {done.difference:.1e} of the largest output, "
            f"{shipment.agreement_of} agreement {done.agreement:.2%}"
        )
        if not done.difference <= allowed:
            raise FovealError(refusal(ready, program, path, kind, batch, done, allowed))
        checks.append(done)
    return checks


def refusal(
    ready: Predictor, program: Program, path: Path, kind: Any, batch: Batch, done: Check, allowed: float
) -> str:
    """Why a file is not kept: float16 alone changes the answer, or the first node that differs."""
    values = getattr(kind, "values", None)
    if (rounded := rounding(ready, program, batch)) > allowed:
        where = (
            f"the file is right: in float16 the network itself differs by {rounded:.2g} in PyTorch, as where a "
            "number overflows; export it without half"
        )
    elif values is None:
        where = "which node it is cannot be asked of compiled code"
    else:
        where = first_fault(program, path, values, batch.input, allowed)
    return (
        f"{kind.FILE} differs from the network by {done.difference:.2g} of the largest output for images "
        f"{shape_text(done.shape)}, where {allowed:g} is allowed; {where}; nothing was kept"
    )


def rounding(ready: Predictor, program: Program, batch: Batch) -> float:
    """By how much float16 alone changes the network's outputs, without any file; 0 where it is not asked for."""
    if not program.net.half_type:
        return 0.0

    def in_pytorch(images: Any) -> list[Any]:
        with torch.no_grad():
            return [output.numpy() for output in program.net(torch.from_numpy(images))]

    return check(shipment_of(ready), in_pytorch, batch).difference


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it.

    Example:
        >>> shape_text((2, 3, 224, 224))
        '2x3x224x224'
    """
    return "x".join(map(str, shape))
