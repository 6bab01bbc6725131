"""How often `foveal compare` finds a difference between a network and itself: A/A comparisons from a pool of runs.

    python benchmarks/aa.py --out benchmarks/results/aa.json

trains the plain network of the default comparison 1,600 times, with seeds of its own each, on fewer of the bundled
scenes and for one epoch, through the same plan, engine and worker as `foveal compare`. They make 100 comparisons of 8
seeds for the baseline and 8 for the "variant" that share no run. Comparisons of several variants are drawn from all
runs, without replacement within one: they share runs of the pool, so that their rate has the right expectation and a
wider spread. What is counted is a comparison in which anything is called better or worse.
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
TRAINING = {"data_options": {"length": 2560}, "epochs": 1, "accelerator": "cpu", "channels_last": True}


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


def findings_of(chosen: list[float]) -> list[str]:
    """What a comparison of the network with itself finds, variant by variant: the first 8 runs are the baseline's."""
    variants = len(chosen) // SEEDS - 1
    groups = [dict(enumerate(chosen[SEEDS * k : SEEDS * (k + 1)])) for k in range(variants + 1)]
    found = differences_to(groups[0], {str(k): group for k, group in enumerate(groups[1:])})
    return [one.finding for one in found.values()]


def main() -> None:
    """Train what is missing, draw, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2 * SEEDS * COMPARISONS)
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
        own = len(values) >= 2 * SEEDS * COMPARISONS and variants == 1
        generator = random.Random(0)
        order = generator.sample(values, len(values))
        findings = [
            findings_of(
                order[2 * SEEDS * k : 2 * SEEDS * (k + 1)]
                if own
                else generator.sample(values, SEEDS * (variants + 1))
            )
            for k in range(COMPARISONS)
        ]
        better = sum("better" in one for one in findings)
        anything = sum("better" in one or "worse" in one for one in findings)
        document[f"with_{variants}_variants"] = {
            "better": better,
            "better_or_worse": anything,
            "runs_of_their_own": own,
        }
        print(
            f"{variants} against the same: better in {better}, better or worse in {anything} of {COMPARISONS}"
        )
    if given.out is not None:
        write_json(given.out, document)


if __name__ == "__main__":
    main()
