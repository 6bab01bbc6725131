"""Does attention help segmentation? DANet and its parts against equal heads without, on CamVid.

    python benchmarks/camvid.py --data path/to/camvid --folder runs/camvid --out benchmarks/results/camvid_study.json

One call of `foveal.compare`: one backbone from random weights, one schedule and, in one seed, one initial backbone and
one order of the images for all. A study that was stopped goes on where it was. The last epoch counts, never the best
one: mIoU from one confusion matrix over the test part, whole images, at the masks' own size. Time, memory and size of
every network are measured last, one after the other in turn. The folder also gets the report as one page.
"""

import argparse
import shutil
from pathlib import Path

from foveal.compare import compare

HEADS = ("fcn", "fcn_nonlocal", "danet_position", "danet_channel", "danet")
APART = ("attention=False,branch_classifiers=False", "attention=False", "branch_classifiers=False")
"""Options of ``danet`` that leave out its attention, the losses of its two branches, or both."""
IGNORED = 11


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/camvid"), help="where finished runs are kept"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=120)
    parser.add_argument("--crop-size", type=int, default=96)
    parser.add_argument("--scale-range", type=float, nargs=2, default=[0.75, 1.5], metavar="FACTOR")
    parser.add_argument("--jobs", type=int, help="runs at a time")
    parser.add_argument(
        "--apart", action="store_true", help="tell DANet's attention and its two more losses apart instead"
    )
    options = parser.parse_args()
    danet = f"danet_{options.backbone}"
    models = [f"{head}_{options.backbone}" for head in HEADS] + [f"{danet}(channel_form=paper)"]
    if options.apart:
        models = [f"{danet}({left_out})" for left_out in APART] + [danet]
    result = compare(
        models=models,
        task="segment",
        data=str(options.data),
        data_options={"ignore_index": IGNORED},
        split="test",
        seeds=options.seeds,
        tune=0,
        epochs=options.epochs,
        batch_size=16,
        lr=0.05,
        schedule="poly",
        warmup_epochs=1,
        image_size=options.image_size,
        crop_size=options.crop_size,
        scale_range=options.scale_range,
        precision="bfloat16",
        jobs=options.jobs,
        out=str(options.folder),
    )
    if options.out:
        shutil.copyfile(result.folder / "results.json", options.out)


if __name__ == "__main__":
    main()
