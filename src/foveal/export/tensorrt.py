"""A script that builds a TensorRT engine from the ONNX file on a machine that has TensorRT; not run here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from foveal.export.onnx import nodes
from foveal.export.quantize import float_nodes

SCRIPT = '''"""Builds model.engine for the NVIDIA GPU of this machine: python build_engine.py [--fp16]

Written by foveal for TensorRT 10; it was not run where it was written. Shapes from the first to the last of
SHAPES are taken; the middle one is tuned for.
"""

import argparse
from pathlib import Path

import tensorrt as trt

SHAPES = {shapes}
# gates and softmax: exponentials and products that leave the range of float16
FLOAT32 = {float32}

parser = argparse.ArgumentParser()
parser.add_argument("--fp16", action="store_true", help="compute in float16, but for gates and softmax")
fp16 = parser.parse_args().fp16
here = Path(__file__).parent
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
network = builder.create_network(0)
reader = trt.OnnxParser(network, logger)
if not reader.parse_from_file(str(here / "{file}")):
    raise SystemExit("\\n".join(str(reader.get_error(i)) for i in range(reader.num_errors)))
config = builder.create_builder_config()
profile = builder.create_optimization_profile()
profile.set_shape("{input}", *SHAPES)
config.add_optimization_profile(profile)
if fp16:
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        # layers of a node that the file explains by a function carry its name in front
        if layer.name.startswith(tuple(FLOAT32)) and all(one.dtype == trt.float32 for one in outputs):
            layer.precision = trt.float32
            for i in range(layer.num_outputs):
                layer.set_output_type(i, trt.float32)
engine = builder.build_serialized_network(network, config)
if engine is None:
    raise SystemExit("TensorRT could not build the engine; see above")
(here / "model.engine").write_bytes(engine)
print("written", here / "model.engine")
'''


def engine_script(model: Path, net: nn.Module, entry: dict[str, Any], example: Sequence[int]) -> str:
    """The Python of ``build_engine.py``.

    Args:
        model: the ONNX file.
        net: the network, whose gates and softmax stay in float32.
        entry: name and shape of the input as ``foveal.json`` has them.
        example: shape at which the network was recorded; from half to twice its sides and 1 to 8 images are taken,
            unless the file has one shape only.
    """
    free = [not isinstance(size, int) for size in entry["shape"]][1:]
    shapes = [tuple(entry["shape"])] * 3
    if "batch" in entry["shape"]:
        least = [max(1, size // 2) if one else size for size, one in zip(example[1:], free, strict=True)]
        most = [2 * size if one else size for size, one in zip(example[1:], free, strict=True)]
        shapes = [(1, *least), (1, *example[1:]), (8, *most)]
    kept = sorted(float_nodes(net, nodes(model)))
    return SCRIPT.format(
        profile="SHAPES",
        shapes=shapes,
        float32=json.dumps(kept, indent=4),
        file=model.name,
        input=entry["name"],
    )
