"""Which learning rate inserted blocks want, as a factor of the network's: by optimiser and data, for every block.

    python benchmarks/block_rates.py --data path/to/cifar10-jpeg --optimizer adamw --out benchmarks/results/rates.json

``foveal compare --tune 4`` on a small part of the data with the rate of the blocks at three tenths of the network's: it
tries that rate, and 0.3, 3 and 0.1 times it, each once and the better half three times, on a quarter of the training
images that the trials do not see. Runs are short, so the table says what a rate does in the first
hundreds of steps, where scales that start at zero are driven too far, and no more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from foveal.compare import BLOCKS, compare
from foveal.data import open_dataset
from foveal.files import write_json
from foveal.machine import environment

COUNTS = {"train": 6400, "val": 1000}
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


def main() -> None:
    """Write the part if it is not there, tune, print a row a block."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--optimizer", choices=list(RATES), default="adamw")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/rates"), help="where images and runs are kept"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    given = parser.parse_args()
    name = Path(given.data).name
    data = given.data
    if given.data != "scenes":
        part = given.folder / f"{name}-part"
        if not (part / "val").exists():
            write_part(given.data, part, COUNTS)
        data = str(part)
    lr = RATES[given.optimizer]
    result = compare(
        list(BLOCKS),
        seeds=1,
        control=False,
        self_check=False,
        tune=4,
        data=data,
        model="cifar_resnet8",
        image_size=24,
        epochs=given.epochs,
        batch_size=32,
        optimizer=given.optimizer,
        lr=lr,
        inserted_lr=0.3 * lr,
        weight_decay=0.01 if given.optimizer == "adamw" else 5e-4,
        augment=False,
        jobs=given.jobs,
        out=str(given.folder / f"{name}-{given.optimizer}"),
    )
    tuning = json.loads((result.folder / "results.json").read_text(encoding="utf-8"))["tuning"]
    values = tuning["values"]
    for variant, found in values.items():
        rates = sorted(found, key=float, reverse=True)
        shown = "  ".join(
            f"x {f}: {100 * sum(found[f]) / len(found[f]):.1f} ({len(found[f])})" for f in rates if found[f]
        )
        print(f"{variant:14} {shown}")
    if given.out is not None:
        document = {"data": name, "optimizer": given.optimizer, "lr": lr, "epochs": given.epochs}
        write_json(given.out, {**document, "tuning": tuning, "environment": environment()})


if __name__ == "__main__":
    main()
