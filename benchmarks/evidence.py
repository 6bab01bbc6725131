"""The studies behind docs/evidence.md: each one comparison, repeated and continued by one command.

    python benchmarks/evidence.py arrangements --data path/to/data

where ``path/to/data`` holds the data sets that the study names, among them ``cifar10-jpeg``. Runs are kept in
``runs/evidence/NAME``; the same command goes on where it was stopped. At its end the figures of every run are in
``benchmarks/results/evidence_NAME.json``, and the table is printed: every variant against the first one, and the pairs
that the study was made for, which were named before it ran. Each table has a correction (Holm) of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from block_rates import write_part
from foveal.compare import compare
from foveal.files import write_text
from foveal.statistics import Difference, differences_to
from foveal.train import TrainConfig, fit

FOLDER = Path("runs/evidence")
RESULTS = Path("benchmarks/results")
EVERYWHERE = "@residual:1,2,3"
ARRANGEMENTS = ("channel-spatial", "spatial-channel", "parallel", "channel", "spatial")
PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
SIMILARITIES = ("dot", "scaled_dot", "cosine", "concatenation", "perceptron")
SMALL_IMAGES = {
    "image_size": 24,
    "batch_size": 32,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "augment": False,
    "precision": "bfloat16",
}
"""Of images of 32 pixels and more, what two cores can train in a quarter of a minute a run."""


@dataclass(frozen=True)
class Study:
    """One row of docs/evidence.md.

    Attributes:
        options: of `foveal.compare.compare`.
        images: training and validation images, as many of each class, of the data set ``data``; None takes all.
        pairs: baseline -> variants that are compared with it, besides the comparison with the first variant.
        weights: a data set on which the network that all variants begin from is trained first.
    """

    options: Mapping[str, Any]
    data: str = "cifar10-jpeg"
    images: tuple[int, int] | None = None
    pairs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: str | None = None


SE = f"se(reduction=4){EVERYWHERE}"


def cbam(arrangement: str) -> str:
    """The insertion of one arrangement."""
    return f"cbam(reduction=4,arrangement={arrangement}){EVERYWHERE}"


def nonlocal_(pairwise: str) -> str:
    """The insertion of one pairwise function."""
    return f"nonlocal(pairwise={pairwise})@residual:3"


def self_attention(similarity: str) -> str:
    """The insertion of one similarity."""
    return f"selfattention(similarity={similarity})@residual:3"


def starting(block: str, start: str) -> str:
    """The insertion of a block with one of its two starts."""
    return f"{block}(reduction=4,start={start}){EVERYWHERE}"


SCRATCH = {**SMALL_IMAGES, "model": "cifar_resnet8", "lr": 0.01, "epochs": 2}
STUDIES = {
    "arrangements": Study(
        {**SCRATCH, "insert": [SE, *map(cbam, ARRANGEMENTS)]},
        images=(4000, 2000),
        pairs={cbam("channel-spatial"): [SE, *map(cbam, ARRANGEMENTS[1:])]},
    ),
    "tuned": Study(
        {**SCRATCH, "insert": [SE, cbam("channel-spatial")], "epochs": 3, "tune": 3},
        images=(4000, 2000),
        pairs={cbam("channel-spatial"): [SE]},
    ),
    "tiny": Study(
        {**SCRATCH, "insert": [SE, cbam("channel-spatial")]},
        data="tiny-imagenet-50",
        images=(10000, 2500),
        pairs={cbam("channel-spatial"): [SE]},
    ),
    "starts": Study(
        {
            **SMALL_IMAGES,
            "insert": [starting(block, start) for block in ("se", "cbam") for start in ("identity", "paper")],
            "control": False,
            "lr": 0.003,
            "epochs": 2,
        },
        images=(2000, 2000),
        weights="tiny-imagenet-50",
        pairs={starting(block, "paper"): [starting(block, "identity")] for block in ("se", "cbam")},
    ),
    "nonlocal": Study(
        {**SCRATCH, "insert": list(map(nonlocal_, PAIRWISE)), "control": False},
        images=(4000, 2000),
        pairs={nonlocal_("embedded_gaussian"): [nonlocal_(name) for name in PAIRWISE[1:]]},
    ),
    "selfattention": Study(
        {**SCRATCH, "insert": list(map(self_attention, SIMILARITIES)), "control": False},
        images=(4000, 2000),
        pairs={self_attention("dot"): [self_attention(name) for name in SIMILARITIES[1:]]},
    ),
}
PRETRAINING = {**SCRATCH, "epochs": 4}


def part_of(data: Path, counts: tuple[int, int] | None) -> Path:
    """The data set, or a folder with so many training and validation images of it, written once."""
    if counts is None:
        return data
    part = FOLDER / "data" / f"{data.name}-{counts[0]}-{counts[1]}"
    if not part.exists():
        unfinished = part.with_name(f".{part.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_part(str(data), unfinished, {"train": counts[0], "val": counts[1]})
        unfinished.rename(part)
    return part


def pretrained_on(data: Path) -> Path:
    """The weights of the plain network after its training on all of a data set, trained once."""
    run = FOLDER / f"pretraining-{data.name}"
    weights = run / "weights" / "best.safetensors"
    if not weights.exists():
        fit(TrainConfig(data=str(part_of(data, (10000, 1000))), out=str(run), **PRETRAINING))
    return weights


def values_of(results: Path) -> dict[str, dict[int, float]]:
    """Variant, as the study writes it -> seed -> the metric, of the runs that ended."""
    found = json.loads(results.read_text(encoding="utf-8"))
    written = {
        one["name"]: one["described"] if one["kind"] == "attention" else one["name"]
        for one in found["variants"]
    }
    values: dict[str, dict[int, float]] = {written[name]: {} for name in written}
    for run in found["runs"]:
        if "metric" in run:
            values[written[run["variant"]]][run["seed"]] = run["metric"]
    return values


def line(name: str, found: Difference) -> str:
    """One difference in points, with its interval and both p values."""
    mean, low, high = (f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high))
    return f"{name:52} {mean} ({low} to {high})  p {found.p:.3f}, corrected {found.p_corrected:.3f}: {found.finding}"


def show(study: Study, results: Path) -> None:
    """Print every variant against the first, then the study's own pairs."""
    values = values_of(results)
    first = next(iter(values))
    for baseline, others in {first: [name for name in values if name != first], **study.pairs}.items():
        found = differences_to(values[baseline], {name: values[name] for name in others})
        print(f"\nagainst {baseline}, {100 * sum(values[baseline].values()) / len(values[baseline]):.1f} %:")
        for name, difference in found.items():
            print("  " + line(name, difference))


def main() -> None:
    """Run or continue one study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time")
    given = parser.parse_args()
    study = STUDIES[given.study]
    options = dict(study.options)
    if study.weights is not None:
        options["from_weights"] = str(pretrained_on(given.data / study.weights))
    result = compare(
        data=str(part_of(given.data / study.data, study.images)),
        self_check=False,
        jobs=given.jobs,
        out=str(FOLDER / given.study),
        **{"tune": 0, **options},
    )
    results = RESULTS / f"evidence_{given.study}.json"
    found = (result.folder / "results.json").read_text(encoding="utf-8")
    # where the data were on this machine is nobody's business
    write_text(results, found.replace(json.dumps(str(given.data)), '"path/to/data"'))
    show(study, results)


if __name__ == "__main__":
    main()
