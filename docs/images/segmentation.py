"""Draw docs/images/scenes-segmentation.png: scenes of the test part, their masks, and what a network says.

python docs/images/segmentation.py runs/train/danet_test_resnet/weights/best.safetensors
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from foveal.train.inference import open_weights

from foveal.data import open_dataset, segmentation_eval_transform
from foveal.palette import coloured, palette

SHOWN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scenes-segmentation.png"))
    options = parser.parse_args()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    net, info = open_weights(options.weights, "cpu", task="segment")
    data = open_dataset("scenes", "test", task="segment", **info["data_options"])
    to_eval = segmentation_eval_transform(info["mean"], info["std"], shorter=info["image_size"])
    samples = [data[i] for i in range(SHOWN)]  # the first, not the best
    said = net(torch.stack([to_eval(sample)["image"] for sample in samples]))["fused"].argmax(1)
    colours = palette(info["classes"])
    figure = Figure(figsize=(1.1 * SHOWN + 0.6, 4.1), layout="constrained")
    panels = figure.subplots(3, SHOWN)
    for column, (sample, class_map) in enumerate(zip(samples, said.numpy(), strict=True)):
        rows = (
            sample["image"].permute(1, 2, 0).numpy(),
            coloured(sample["mask"].numpy(), colours),
            coloured(class_map.astype(np.uint8), colours),
        )
        for row, picture in enumerate(rows):
            panels[row, column].imshow(picture, interpolation="nearest")
            panels[row, column].set(xticks=[], yticks=[])
    for row, name in enumerate(("image", "truth", "prediction")):
        panels[row, 0].set_ylabel(name)
    patches = [Patch(color=c / 255, label=n) for n, c in zip(info["classes"], colours, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
