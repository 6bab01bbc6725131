"""OpenVINO's own format, made from the ONNX graph, so that nodes have the same names."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveal.export.onnx import to_model
from foveal.export.program import INPUT, Program

FILE = "model.xml"
NEEDS = ("openvino", "onnx", "onnxscript")
GRAPH_BYTES = 2**20
"""Room that ``model.xml`` takes at most, about."""


def write(program: Program, path: Path, about: str) -> None:
    """Write ``model.xml`` and ``model.bin``; weights keep the precision they were recorded in."""
    import openvino

    model = openvino.convert_model(_serialized(program))
    model.set_rt_info(about, ["foveal"])
    _save(model, path)


def _save(model: Any, path: Path) -> None:
    """`openvino.save_model`, whose own error on a full disk says nothing of the disk.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        weights = sum(node.data.nbytes for node in model.get_ops() if node.get_type_name() == "Constant")
        fits = shutil.disk_usage(path.parent).free > weights + GRAPH_BYTES
        code = errno.EIO if fits else errno.ENOSPC
        raise OSError(code, os.strerror(code)) from error


def _serialized(program: Program) -> Any:
    import io

    return io.BytesIO(to_model(program).SerializeToString())


def load(path):
    """A function from the input of the file to its outputs, in float32; leave that out for the machine's fastest."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: list(model(images).values())


def load_as_set(path):
    """As `load`, in the precision that the runtime prefers: bfloat16 where the processor has it."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU")
    return lambda images: list(model(images).values())


def in_tiles(path: Path) -> set[str]:
    """As of `foveal.export.onnx.in_tiles`: the runtime makes one operation of two products and a softmax."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    left = set()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str).lower() == "softmax":
            left |= set(facts["originalLayersNames"].astype(str).split(","))
    softmaxes = {name for name in nodes(path) if re.search(r"/Softmax(_\d+)?$", name)}
    return {name.rpartition("/")[0] for name in softmaxes - left}


def nodes(path: Path) -> list[str]:
    """As of `foveal.export.onnx.nodes`."""
    import openvino

    return [node.get_friendly_name() for node in openvino.Core().read_model(path).get_ordered_ops()]


def quantize(path: Path, target: Path, inputs: Sequence[Any], left: Sequence[str]) -> None:
    """As of `foveal.export.onnx.quantize`, by nncf."""
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    ignored = nncf.IgnoredScope(names=list(left), validate=False) if left else None
    made = nncf.quantize(model, nncf.Dataset(list(inputs)), subset_size=len(inputs), ignored_scope=ignored)
    _save(made, target)


def values(path: Path, names: Sequence[str]) -> tuple[list[tuple[str, str]], Callable[..., list[Any]]]:
    """As of `foveal.export.onnx.values`."""
    import openvino

    core = openvino.Core()

    def made(model: Any) -> dict[str, Any]:
        outputs = (output for node in model.get_ordered_ops() for output in node.outputs())
        return {name: output for output in outputs for name in output.get_names()}

    def run(images: Any, wanted: Sequence[str]) -> list[Any]:
        model = core.read_model(path)
        there = made(model)
        make: Any = openvino.Model
        exposed = make([there[name] for name in wanted], model.get_parameters(), "exposed")
        compiled = core.compile_model(exposed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return list(compiled({INPUT: images}).values())

    there = made(core.read_model(path))
    wanted = set(names)
    return [(name, there[name].get_node().get_friendly_name()) for name in there if name in wanted], run
