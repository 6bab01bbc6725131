"""What SE and CBAM cost in each runtime, in processor time of one thread: for machines that are busy with other things.

python benchmarks/export_cpu_time.py --out benchmarks/results/export_cpu_time.json
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from foveal.bench import describe_machine
from foveal.export.bench import NETWORKS as KNOWN
from foveal.export.bench import live_predictor, runner, write_files
from foveal.files import write_json

NETWORKS = ("resnet50", "seresnet50", "cbam_resnet50")
RUNTIMES = ("eager", "fuse", "onnx", "openvino")
ROUNDS = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    # OpenVINO and ONNX Runtime take as many threads as cores are left to them
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    images = torch.randn(1, 3, 224, 224).numpy()
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name in NETWORKS:
            predictor = live_predictor(name, KNOWN[name])
            write_files(predictor, RUNTIMES, Path(folder), (224, 224))
            for runtime in RUNTIMES:
                calls[runtime, name] = runner(predictor, runtime, Path(folder), (224, 224))
        samples = {key: [] for key in calls}
        for _ in range(ROUNDS):
            for key, run in calls.items():
                began = time.process_time()
                run(images)
                samples[key].append(1e3 * (time.process_time() - began))
    rows = []
    for (runtime, name), own in samples.items():
        plain = samples[runtime, NETWORKS[0]]
        row = {
            "runtime": runtime,
            "network": name,
            "cpu_ms": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, plain, strict=True)),
            "ratio_of_least": min(own) / min(plain),
        }
        print(row)
        rows.append(row)
    if out is not None:
        write_json(out, {"machine": describe_machine(), "rows": rows})


if __name__ == "__main__":
    main()
