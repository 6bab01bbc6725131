"""Curves and predictions of the CamVid study, from its run folders.

python docs/images/camvid.py runs/camvid path/to/camvid

Writes camvid.png from each run's metrics.csv, and camvid-predictions.png from the masks that
``foveal predict path/to/camvid/test/images --weights runs/camvid/HEAD-0/weights/last.safetensors --out
runs/camvid/pred/HEAD`` wrote. The photographs are not part of the picture: their licence is not ours.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from foveal.palette import coloured, palette

LABELS = {
    "fcn": "FCN",
    "fcn_nonlocal": "FCN + Non-local",
    "danet_position": "DANet, position only",
    "danet_channel": "DANet, channel only",
    "danet": "DANet",
    "danet-paper": "DANet, softmax of the paper",
}
DRAWN = ("fcn", "fcn_nonlocal", "danet")
SCENES = 5
IGNORED, WRONG = 11, (255, 255, 255)


def curves(runs: Path) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for head, label in LABELS.items():
        tables = sorted(runs.glob(f"{head}-[0-9]/metrics.csv"))
        rows = [[float(row["val_miou"]) for row in csv.DictReader(table.open())] for table in tables]
        values = 100 * np.array(rows)
        # single epochs jump: the mean over five of them and over seeds is what can be told apart
        smooth = np.apply_along_axis(lambda v: np.convolve(v, np.ones(5) / 5, "valid"), 1, values)
        epochs = np.arange(5, values.shape[1] + 1)
        (line,) = axes.plot(epochs, smooth.mean(0), label=label)
        axes.fill_between(epochs, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.12)
    axes.set(
        xlabel="epoch", ylabel="validation mIoU, %", title="mean over seeds, band: lowest to highest seed"
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def predictions(runs: Path, data: Path) -> Figure:
    """Scenes spread evenly over the test part, not chosen; a column each, a row for each head."""
    classes = (data / "classes.txt").read_text().split()
    colours = palette(classes)
    masks = sorted((runs / "pred" / DRAWN[0] / "masks").iterdir())
    masks = masks[:: len(masks) // SCENES][:SCENES]
    figure = Figure(figsize=(2.1 * SCENES + 0.3, 1.7 * len(DRAWN) + 0.7), layout="constrained")
    panels = figure.subplots(len(DRAWN), SCENES)
    for row, head in enumerate(DRAWN):
        for column, mask in enumerate(masks):
            said = np.asarray(Image.open(runs / "pred" / head / "masks" / mask.name))
            true = np.asarray(Image.open(data / "test" / "labels" / mask.name))
            picture = coloured(said, colours)
            wrong = (said != true) & (true != IGNORED)
            picture[wrong] = WRONG
            panels[row, column].imshow(picture, interpolation="nearest")
            panels[row, column].set(xticks=[], yticks=[])
        panels[row, 0].set_ylabel(LABELS[head], fontsize=9)
    patches = [Patch(color=c / 255, label=n) for n, c in zip(classes, colours, strict=True)]
    patches.append(Patch(facecolor="white", edgecolor="grey", label="wrong"))
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def main() -> None:
    runs, data = map(Path, sys.argv[1:])
    here = Path(__file__)
    curves(runs).savefig(here.with_suffix(".png"), dpi=110)
    predictions(runs, data).savefig(here.with_name("camvid-predictions.png"), dpi=110)


if __name__ == "__main__":
    main()
