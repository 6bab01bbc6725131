"""Curves of the CamVid study from its run folders.

python docs/images/camvid.py runs/camvid
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

LABELS = {
    "fcn": "FCN",
    "fcn_nonlocal": "FCN + Non-local",
    "danet_position": "DANet, position only",
    "danet_channel": "DANet, channel only",
    "danet": "DANet",
}


def main() -> None:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for head, label in LABELS.items():
        tables = sorted(Path(sys.argv[1]).glob(f"{head}-[0-9]/metrics.csv"))
        runs = [[float(row["val_miou"]) for row in csv.DictReader(table.open())] for table in tables]
        values = 100 * np.array(runs)
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
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
