"""ONNX, for ONNX Runtime and whatever else reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.export.program import INPUT, Program, quiet
from foveal.export.rewrite import (
    ATTENTION,
    gate_by_convolution,
    join_attention,
    multiply_matrices,
    pool_globally,
    reduce_in_groups,
)

FILE = "model.onnx"
NEEDS = ("onnx", "onnxscript", "onnxruntime")
CONTENT_LIMIT = 2**31
"""Bytes that one ONNX file can hold; weights beyond lie in a file beside it."""


def write(program: Program, path: Path, about: str) -> None:
    """Write the graph with readable node names, checked by ``onnx.checker``, with ``about`` in its metadata."""
    import onnx

    model = to_model(program, for_onnxruntime=True)
    entry = model.metadata_props.add()
    entry.key, entry.value = "foveal", about
    onnx.save(
        model, path, save_as_external_data=model.ByteSize() > CONTENT_LIMIT, location=f"{path.name}.data"
    )
    onnx.checker.check_model(path, full_check=True)


def to_model(program: Program, for_onnxruntime: bool = False) -> Any:
    """The ``onnx.ModelProto`` of a recorded network.

    Args:
        for_onnxruntime: write statistics over channels and attention as ONNX Runtime computes them quickly. In OpenVINO
            the first would cost a twentieth of the network, and the second it finds by itself.

    Raises:
        FovealError: ONNX has no operator for something in it; the message names the module.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(_translated(program))
    if for_onnxruntime:
        reduce_in_groups(model)
        gate_by_convolution(model)
        join_attention(model)
        multiply_matrices(model)
    _name_nodes(model, program)
    _name_sizes(model, program)
    return model


@lru_cache(maxsize=1)
def _translated(program: Program) -> Any:
    """The model as PyTorch writes it, with global pooling; the last one is kept, not to be changed."""
    import torch

    from foveal.export.functional import FunctionalProgram

    try:
        with quiet("torch.onnx", "onnxscript", "onnx_ir"):
            made: Any = torch.onnx.export(
                FunctionalProgram(program.exported),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(program.names),
            )
    except torch.onnx.OnnxExporterError as error:
        raise FovealError(f"{_not_translated(program, error)} cannot be written as ONNX") from error
    model = made.model_proto
    pool_globally(model)
    return model


def _not_translated(program: Program, error: BaseException | None) -> str:
    """The operator that stopped the exporter, with its module; else the exporter's own words."""
    words = ""
    while error is not None:
        words = " ".join(str(error).split())[:300]
        named = re.search(r"node (?:%|name: )?(\w+)", words)
        for node in program.exported.graph.nodes if named else ():
            if named and node.name == named[1]:
                stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                return f"{node.target} in {program.readable(stack[-1]) if stack else 'the network'}"
        error = error.__cause__
    return words


def _name_nodes(model: Any, program: Program) -> None:
    """Name each node by its module and its operator: ``layer3.0.bn2.cbam/ReduceMax``."""
    taken: dict[str, int] = {}
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        modules = [one for one in re.findall(r"'([^']*)'", scopes)[:-1] if not one.startswith("_")]
        where = program.readable(modules[-1]) if modules else ""
        name = f"{where}/{node.op_type}" if where else node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        # paths of this machine and stack traces are nobody's business
        del node.metadata_props[:]


def _name_sizes(model: Any, program: Program) -> None:
    """Call the free sizes by their names; sizes inside, which are formulas of these, say nothing."""
    del model.graph.value_info[:]
    if not program.free:
        return
    (image,) = model.graph.input
    sizes = image.type.tensor_type.shape.dim
    renamed = {}
    for place, name in program.free.items():
        renamed[sizes[place].dim_param] = name
        sizes[place].dim_param = name
    for output in model.graph.output:
        for size in output.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = renamed.get(size.dim_param, size.dim_param)


def load(path):
    """A function from the input of the file to its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def in_tiles(path: Path) -> set[str]:
    """The modules whose softmax the runtime takes in tiles."""
    return {name.rpartition("/")[0] for name in nodes(path) if name.endswith(f"/{ATTENTION}")}


def nodes(path: Path) -> list[str]:
    """The names of all nodes of a file, in its order."""
    import onnx

    return [node.name for node in onnx.load(path, load_external_data=False).graph.node]


def quantize(path: Path, target: Path, inputs: Sequence[Any], left: Sequence[str]) -> None:
    """Write ``target``: static quantisation with calibrated ranges, signs of quantisation around each operator (QDQ).

    Weights take 7 of their 8 bits, a scale for each channel: processors without VNNI add two products in 16 bits.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> Any:
            one = next(self.left, None)
            return None if one is None else {INPUT: one}

    quantize_static(
        path,
        target,
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        nodes_to_exclude=list(left),
    )


def values(path: Path, names: Sequence[str]) -> tuple[list[tuple[str, str]], Callable[..., list[Any]]]:
    """Of the tensors named, those in the graph, each with its node, and a function that computes them.

    Returns:
        (name of the tensor, name of the node) in the order of the graph; and ``run(images, names) -> arrays``.
    """
    import onnx
    import onnxruntime

    model: Any = onnx.load(path)
    made = {output: node.name for node in model.graph.node for output in node.output}

    def run(images: Any, wanted: Sequence[str]) -> list[Any]:
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
        options = onnxruntime.SessionOptions()
        # unfused, so that every tensor is there
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, {INPUT: images}))

    order = [name for name in made if name in set(names)]
    return [(name, made[name]) for name in order], run
