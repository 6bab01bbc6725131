"""What inserted blocks do at their default learning rate and at others, given as factors of the network's.

    python benchmarks/block_rates.py --data path/to/data --out benchmarks/results/block_rates.json

``path/to/data`` holds ``cifar10-jpeg`` and ``tiny-imagenet-50``; the bundled scenes are the third data set. On a small
part of each, under AdamW and under SGD, every block of the default comparison is put into one network and compared with
none over the same seeds, at each factor. Runs are short, so the table says what a rate does in the first hundreds of
steps, where scales that start at zero are driven too far, and no more. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.compare import BLOCKS, compare
from foveal.data import open_dataset
from foveal.files import write_json
from foveal.machine import environment

COUNTS = {"train": 4000, "val": 2000}
DATA = ("scenes", "cifar10-jpeg", "tiny-imagenet-50")
RATES = {"adamw": 0.01, "sgd": 0.1}
SIZE = 32


def write_part(data: str, folder: Path, counts: Mapping[str, int]) -> None:
    """The first images of every class as PNG files of 32 pixels, the same number of each."""
    for part, count in counts.items():
        images = open_dataset(data, part)
        left = dict.fromkeys(range(len(images.classes)), count // len(images.classes))
        for i in range(len(images)):
            item = images[i]
            label = int(item["label"])
            if left[label] == 0:
                continue
            left[label] -= 1
            place = folder / part / images.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(item["image"].permute(1, 2, 0).numpy()).resize((SIZE, SIZE))
            picture.save(place / f"{i:05}.png")


def compared(data: str, optimizer: str, factor: float, given: argparse.Namespace) -> dict[str, Any]:
    """What `foveal.compare` finds of every block at one rate."""
    name, lr = Path(data).name, RATES[optimizer]
    place = data
    if data != "scenes":
        part = given.folder / f"{name}-part"
        if not (part / "val").exists():
            write_part(data, part, COUNTS)
        place = str(part)
    result = compare(
        list(BLOCKS),
        seeds=given.seeds,
        control=False,
        self_check=False,
        tune=0,
        data=place,
        data_options={"length": COUNTS["train"]} if data == "scenes" else {},
        model="cifar_resnet8",
        image_size=24,
        epochs=given.epochs,
        batch_size=32,
        optimizer=optimizer,
        lr=lr,
        inserted_lr=factor * lr,
        weight_decay=0.01 if optimizer == "adamw" else 5e-4,
        augment=False,
        jobs=given.jobs,
        out=str(given.folder / f"{name}-{optimizer}-{factor:g}"),
    )
    return json.loads((result.folder / "results.json").read_text(encoding="utf-8"))


def shown(variant: dict[str, Any]) -> str:
    """A variant's difference to none in points, with its interval."""
    found = variant["to_none"]
    words = f"{variant['name']:14} {100 * found['mean']:+.1f}"
    if found["low"] is None:  # too few seeds
        return words
    low, high = (f"{100 * found[end]:+.1f}" for end in ("low", "high"))
    return f"{words} ({low} to {high}), p {found['p_corrected']:.3f}"


def main() -> None:
    """Compare what is missing, print a line a block, write all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", choices=DATA, default=DATA, help="these data sets")
    parser.add_argument("--optimizers", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--factors", nargs="+", type=float, default=[0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/rates"), help="for images and runs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    given = parser.parse_args()
    rows = []
    for data in given.only:
        for optimizer in given.optimizers:
            for factor in given.factors:
                place = data if data == "scenes" else str(Path(given.data) / data)
                found = compared(place, optimizer, factor, given)
                print(f"\n{data}, {optimizer}, blocks at {factor:g} times {RATES[optimizer]:g}:")
                for variant in found["variants"]:
                    if variant["to_none"] is not None:
                        print("  " + shown(variant))
                setting = {"data": data, "optimizer": optimizer, "lr": RATES[optimizer], "factor": factor}
                rows.append({**setting, **{key: found[key] for key in ("variants", "runs")}})
    if given.out is not None:
        setting = {"seeds": given.seeds, "epochs": given.epochs, "images": COUNTS}
        write_json(given.out, {**setting, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
