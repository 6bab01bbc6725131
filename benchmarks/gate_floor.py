"""What a gate costs in ONNX Runtime and OpenVINO when its values cost nothing: the least that any gate can cost there.

In the file of a ResNet-50 with SE blocks each gate is made an input of the file, so that of a block only the product
with the map is left. A mask over positions, as CBAM ends in, is given in the same place. No rewriting of what makes a
gate can cost less than this.

python benchmarks/gate_floor.py --out benchmarks/results/gate_floor.json
"""

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import helper

from foveal.bench import describe_machine
from foveal.export.bench import NETWORKS, REST_S, SAMPLE_MS, file_of, live_predictor, write_files
from foveal.files import write_json
from foveal.measure import measure_time

SIZE, RUNTIMES = 224, ("onnx", "onnx static", "openvino", "openvino static")


def give_gates(path: Path, target: Path, mask: bool = False, fixed: bool = False) -> dict[str, np.ndarray]:
    """Write the file with its gates as inputs, and return values for them.

    Args:
        mask: masks over the positions of a map instead of gates of its channels.
        fixed: fix the sizes of images in the file.
    """
    model = onnx.load(path)
    sized = copy.deepcopy(model)
    for axis, size in enumerate((1, 3, SIZE, SIZE)):
        sized.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    shapes = {
        one.name: [axis.dim_value for axis in one.type.tensor_type.shape.dim]
        for one in onnx.shape_inference.infer_shapes(sized).graph.value_info
    }
    graph = (sized if fixed else model).graph
    given: dict[str, np.ndarray] = {}
    for node in [node for node in graph.node if node.op_type == "Unsqueeze"]:
        (gate,) = node.output
        shape = shapes[gate]
        if mask:
            (product,) = (one for one in graph.node if gate in one.input)
            shape = [1, 1, *shapes[product.output[0]][2:]]
        graph.node.remove(node)
        graph.input.append(helper.make_tensor_value_info(gate, onnx.TensorProto.FLOAT, shape))
        given[gate] = np.random.default_rng(len(given)).random(shape, dtype=np.float32)
    wanted = {one.name for one in graph.output}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
    for kind in (graph.node, graph.initializer):
        unused = [one for one in kind if not wanted.intersection(getattr(one, "output", [one.name]))]
        for one in unused:
            kind.remove(one)
    onnx.save(sized if fixed else model, target)
    return given


def onnx_call(path: Path, inputs: dict[str, np.ndarray]) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return partial(session.run, None, inputs)


def openvino_call(path: Path, inputs: dict[str, np.ndarray]) -> Any:
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return partial(compiled, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    images = {"images": np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[tuple[str, str], tuple[Path, dict[str, np.ndarray]]] = {}
        for name in ("resnet50", "seresnet50", "cbam_resnet50"):
            predictor = live_predictor(name, NETWORKS[name])
            write_files(predictor, RUNTIMES, Path(folder), (SIZE, SIZE))
            for runtime in RUNTIMES:
                file = file_of(predictor, runtime, Path(folder))
                assert file is not None
                files[runtime, name] = file, images
        # OpenVINO reads ONNX Runtime's file of free sizes as it would its own
        for runtime in RUNTIMES:
            source = "onnx static" if runtime == "onnx static" else "onnx"
            for name in ("gates given", "masks given"):
                if source == "onnx static" and name == "masks given":
                    continue  # its gates are weights of convolutions, which masks cannot be
                target = Path(folder, f"{runtime} {name}.onnx")
                options_of = {"mask": name == "masks given", "fixed": runtime.endswith("static")}
                given = give_gates(files[source, "seresnet50"][0], target, **options_of)
                files[runtime, name] = target, images | given
        for runtime in RUNTIMES:
            call = openvino_call if "openvino" in runtime else onnx_call
            calls = {name: call(*file) for (where, name), file in files.items() if where == runtime}
            times = measure_time(calls, repeats=options.rounds, warmup=1, minimum_ms=SAMPLE_MS, rest_s=REST_S)
            for name, time in times.items():
                ratio = round(time.over(times["resnet50"]), 3)
                rows.append(
                    {"runtime": runtime, "network": name, "time_ms": round(time.time_ms, 2), "ratio": ratio}
                )
                print(
                    f"{runtime:15} {name:14} {time.time_ms:7.1f} ms {100 * (ratio - 1):+6.1f} %", flush=True
                )
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "rows": rows})


if __name__ == "__main__":
    main()
