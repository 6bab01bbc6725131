"""How often `foveal compare` finds a difference between a network and itself: A/A comparisons from a pool of runs.

    python benchmarks/aa.py --runs 240 --out benchmarks/results/aa.json

trains the plain network of the default comparison so many times, with seeds of its own each, on a smaller and shorter
version of the bundled scenes, through the same plan, engine and worker as `foveal compare`. Then it draws, 100 times,
as many runs as a comparison has, without replacement within a comparison: 8 for the baseline, 8 for each "variant". The
100 comparisons share runs of the pool, so that the rate has the right expectation and a wider spread than that of 100
comparisons of their own. What is counted is a comparison in which anything is called better or worse.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.compare.plan import Plan, plan_comparison
from foveal.compare.progress import Progress
from foveal.compare.runner import Runner
from foveal.compare.variants import NONE
from foveal.files import write_json
from foveal.folders import locked
from foveal.machine import environment
from foveal.statistics import differences_to

COMPARISONS = 100
SEEDS = 8
TRAINING = {"data_options": {"length": 640}, "epochs": 1, "accelerator": "cpu", "channels_last": True}


def pool(runs: int, folder: Path, jobs: int | None) -> list[float]:
    """The accuracies of so many runs of the plain network; finished ones are kept in the folder."""
    planned = plan_comparison(["se(reduction=4)@residual:3"], seeds=runs, control=False, training=TRAINING)
    plan: Plan = replace(planned, variants=[NONE])
    folder.mkdir(parents=True, exist_ok=True)
    with (
        locked(folder, "a comparison"),
        Runner(folder, "local", jobs, plan.job.device, Progress(plan)) as runner,
    ):
        results = runner.do(plan, plan.jobs, folder)
    return [results[job.key]["metric"] for job in plan.jobs]


def drawn(values: list[float], variants: int, generator: random.Random) -> list[str]:
    """What a comparison of the network with itself finds, variant by variant."""
    chosen = generator.sample(values, SEEDS * (variants + 1))
    groups = [dict(enumerate(chosen[SEEDS * k : SEEDS * (k + 1)])) for k in range(variants + 1)]
    found = differences_to(groups[0], {str(k): group for k, group in enumerate(groups[1:])})
    return [one.finding for one in found.values()]


def main() -> None:
    """Train what is missing, draw, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/aa"), help="where finished runs are kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    given = parser.parse_args()
    values = pool(given.runs, given.folder, given.jobs)
    document: dict[str, Any] = {
        "runs": len(values),
        "comparisons": COMPARISONS,
        "seeds": SEEDS,
        "training": TRAINING,
    }
    document |= {"accuracies": values, "environment": environment()}
    for variants in (1, 6):
        generator = random.Random(0)
        findings = [drawn(values, variants, generator) for _ in range(COMPARISONS)]
        better = sum("better" in one for one in findings)
        anything = sum("better" in one or "worse" in one for one in findings)
        document[f"with_{variants}_variants"] = {"better": better, "better_or_worse": anything}
        print(
            f"{variants} against the same: better in {better}, better or worse in {anything} of {COMPARISONS}"
        )
    if given.out is not None:
        write_json(given.out, document)


if __name__ == "__main__":
    main()
