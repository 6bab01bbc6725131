"""What Ray costs a run of a comparison, and what more nodes bring; and 10,000 runs on 500 nodes, on paper.

    python benchmarks/clusters.py --out benchmarks/results/clusters.json

The same jobs go through the local engine and through Ray's own local cluster of 1, 2 and 3 nodes of one core each, in
turn, every process with one thread. The first runs of each, which start processes, are timed apart. Nodes share the
cores of this machine: where there are fewer cores than nodes, more of them bring nothing here.
"""

import argparse
import json
import os
import pickle
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for the loopback interface
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from foveal.bench import describe_machine
from foveal.compare.arrays import store_images
from foveal.compare.engines import make_engine
from foveal.compare.plan import Plan, plan_comparison
from foveal.files import write_json

STORE = 100_000_000
TRAINING = {"data_options": {"length": 128, "size": 24}, "accelerator": "cpu", "channels_last": True}
NODES = (1, 2, 3)


def timed(engine: Any, plan: Plan, images: Path, warm: int) -> dict[str, float]:
    """Seconds of some first runs and of all others, and what the workers themselves say that these took."""
    start = time.perf_counter()
    list(engine.run(plan.jobs[:warm], images))
    first = time.perf_counter() - start
    start = time.perf_counter()
    results = [event.result for event in engine.run(plan.jobs[warm:], images) if event.result is not None]
    whole = time.perf_counter() - start
    return {
        "first_seconds": first,
        "runs": len(results),
        "seconds": whole,
        "worker_seconds": sum(result["seconds"] for result in results),
        "runs_an_hour": 3600 * len(results) / whole,
    }


def local(plan: Plan, folder: Path, images: Path, jobs: int) -> dict[str, float]:
    """Through the local engine."""
    with make_engine("local", device="cpu", jobs=jobs, runs=99, log=folder / ".images/log.txt") as engine:
        return timed(engine, plan, images, 2 * jobs)


def on_nodes(plan: Plan, folder: Path, images: Path, nodes: int) -> dict[str, float]:
    """Through Ray, on so many nodes of one core."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": STORE, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node}
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **node)
        os.environ["RAY_ADDRESS"] = cluster.address
        log = folder / ".images/log.txt"
        with make_engine("ray", device="cpu", jobs=None, runs=99, log=log) as engine:
            return timed(engine, plan, images, 2 * nodes)
    finally:
        cluster.shutdown()


def on_paper(plan: Plan, images: Path, overhead: float) -> dict[str, float]:
    """What 10,000 runs of ten minutes on 500 nodes of one run each ask of the driver and of the object store."""
    runs, nodes, run_seconds, weights = 10_000, 500, 600.0, 45e6
    dataset = 10e9
    task = len(pickle.dumps(plan.jobs[0].to_dict()))
    result = len(json.dumps(plan.jobs[0].settings)) + 2_000
    whole = runs / nodes * run_seconds
    return {
        "runs": runs,
        "nodes": nodes,
        "run_seconds": run_seconds,
        "dataset_bytes": dataset,
        "weights_bytes": weights,
        "hours": whole / 3600,
        "tasks_at_ray": 2 * nodes,
        "task_bytes": task,
        "tasks_at_ray_bytes": 2 * nodes * task,
        "results_a_second": runs / whole,
        "result_bytes": result,
        "results_bytes": runs * result,
        # one seed of 20 keeps its weights
        "weights_bytes_in_all": runs / 20 * weights,
        "weights_bytes_a_second": runs / 20 * weights / whole,
        "images_out_of_the_driver_bytes": nodes * dataset,
        "images_seconds_at_10_gbit": nodes * dataset * 8 / 10e9,
        "driver_seconds": runs * overhead,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    training = {**TRAINING, "epochs": args.epochs}
    plan = plan_comparison(["se(reduction=4)@residual:3"], seeds=args.seeds, control=False, training=training)
    figures: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / ".images" / "0"
        images.mkdir(parents=True)
        store_images(plan.data, plan.job, images)
        stored = sum(path.stat().st_size for path in images.iterdir())
        for _ in range(args.rounds):
            for nodes in NODES:
                figures.setdefault(f"local, {nodes} at a time", []).append(local(plan, folder, images, nodes))
                figures.setdefault(f"ray, {nodes} nodes", []).append(on_nodes(plan, folder, images, nodes))
                print(nodes, {name: rounds[-1] for name, rounds in figures.items()}, flush=True)
        one = figures["local, 1 at a time"], figures["ray, 1 nodes"]
        # what a run costs beside its own seconds, one at a time, so that nothing overlaps
        beside = [fmean((r["seconds"] - r["worker_seconds"]) / r["runs"] for r in rounds) for rounds in one]
        document = {
            "machine": describe_machine(),
            "stored_bytes": stored,
            "rounds": figures,
            "overhead_seconds_a_run": {"local": beside[0], "ray": beside[1]},
            "on_paper": on_paper(plan, images, beside[1]),
        }
    write_json(Path(args.out), document)
    print(json.dumps({name: document[name] for name in ("overhead_seconds_a_run", "on_paper")}, indent=1))


if __name__ == "__main__":
    main()
