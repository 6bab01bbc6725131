"""Does attention help segmentation? DANet and its parts against equal heads without, on CamVid at 240 x 180.

    python benchmarks/camvid.py --data path/to/camvid --out benchmarks/results/camvid.json --seeds 3

One schedule, one backbone, one order of the images for all: ResNet-18 from random weights, SGD with momentum, poly
schedule, random scale, crop and flip, best of nothing: the weights of the last epoch are scored on the test part, by
mIoU over the whole data set and whole images. Needs a CUDA GPU to end in minutes.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.models import create_model
from foveal.train.recipe import EpochBatches, rate_factor, seed_for
from foveal.train.segment import confusion, scores, segmentation_loss

CLASSES, IGNORED = 11, 11
VARIANTS = {
    "fcn": {"name": "fcn_resnet18"},
    "fcn_nonlocal": {"name": "fcn_nonlocal_resnet18"},
    "danet_position": {"name": "danet_position_resnet18"},
    "danet_channel": {"name": "danet_channel_resnet18"},
    "danet": {"name": "danet_resnet18"},
    "danet, channel softmax of the paper": {"name": "danet_resnet18", "channel_form": "paper"},
}
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1) * 255
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1) * 255


def read(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, h, w) and masks (n, h, w), uint8, from part/images and part/labels."""
    images = sorted((folder / part / "images").iterdir())
    if not images:
        raise SystemExit(f"camvid: {folder / part / 'images'} holds no image")
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in images]
    masks = [np.asarray(Image.open(folder / part / "labels" / f"{path.stem}.png")) for path in images]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(
        np.stack(masks)
    )


def augmented(images, masks, generator):
    """Scale 0.75 to 1.75, shift and mirror, each image its own; nearest for masks, outside is ignored."""
    b = len(images)
    draw = torch.rand(b, 4, generator=generator).to(images.device)
    zoom = 0.75 * (1.75 / 0.75) ** draw[:, 0]
    room = (1 - 1 / zoom).abs()
    theta = torch.zeros(b, 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(draw[:, 3] < 0.5, -1.0, 1.0) / zoom
    theta[:, 1, 1] = 1 / zoom
    theta[:, 0, 2] = (2 * draw[:, 1] - 1) * room
    theta[:, 1, 2] = (2 * draw[:, 2] - 1) * room
    grid = F.affine_grid(theta, [b, 1, *images.shape[-2:]], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    masks = F.grid_sample(masks[:, None].float() + 1, grid, mode="nearest", align_corners=False)[:, 0].long()
    return images, torch.where(masks == 0, IGNORED, masks - 1)


def normalised(images):
    return (images.float() - MEAN.to(images.device)) / STD.to(images.device)


def run(options: dict, seed: int, parts: dict, epochs: int, batch_size: int, lr: float) -> dict:
    torch.manual_seed(seed)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    net = create_model(num_classes=CLASSES, **options)
    net = net.cuda().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    images, masks = parts["train"]
    batches = EpochBatches(len(images), batch_size, seed=seed)
    steps, step, curve = epochs * len(batches), 0, []
    for epoch in range(epochs):
        batches.epoch, total = epoch, 0.0
        for keys in batches:
            generator = torch.Generator().manual_seed(seed_for(seed, "augment", step))
            chosen = torch.tensor([i for _, i in keys], device="cuda")
            x, y = augmented(normalised(images[chosen]), masks[chosen], generator)
            for group in optimizer.param_groups:
                group["lr"] = lr * rate_factor(step, steps=steps, warmup_steps=len(batches), schedule="poly")
            with torch.autocast("cuda", torch.bfloat16):
                logits = net(x.contiguous(memory_format=torch.channels_last))
            loss = segmentation_loss(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(batches)
            step += 1
        curve.append(float(total))
    seconds = time.perf_counter() - start
    results = {part: evaluate(net, *parts[part]) for part in ("val", "test")}
    return {
        "seed": seed,
        "train_loss": curve,
        "seconds": seconds,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "scales": {n: p.item() for n, p in net.named_parameters() if n.endswith("gamma")},
        **results,
        "net": net,
    }


@torch.no_grad()
def evaluate(net, images, masks) -> dict:
    """float32, whole images."""
    net.eval()
    matrix = sum(
        confusion(
            net(normalised(x).contiguous(memory_format=torch.channels_last))["fused"].argmax(1), y, CLASSES
        )
        for x, y in zip(images.split(16), masks.split(16), strict=True)
    )
    net.train()
    return scores(matrix.cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further seed after this long")
    parser.add_argument(
        "--weights", type=Path, help="also keep the weights of the last run, as foveal.save does"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    parts = {part: tuple(t.cuda() for t in read(options.data, part)) for part in ("train", "val", "test")}
    rows: dict[str, list[dict]] = {name: [] for name in options.variants}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"out of time before seed {seed}")
            break
        for name in options.variants:
            row = run(VARIANTS[name], seed, parts, options.epochs, options.batch_size, options.lr)
            net = row.pop("net")
            rows[name].append(row)
            print(
                f"seed {seed} {name:36} test mIoU {row['test']['miou']:.4f}  {row['seconds']:.0f} s",
                flush=True,
            )
        result = {
            "device": torch.cuda.get_device_name(),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "settings": {k: str(v) for k, v in vars(options).items() if k not in ("data", "out", "weights")},
            "variants": rows,
        }
        options.out.write_text(json.dumps(result, indent=1))
    for name, runs in rows.items():
        values = [r["test"]["miou"] for r in runs]
        print(f"{name:36} test mIoU {statistics.mean(values):.4f} over {len(values)} seeds")
    if options.weights:
        import foveal

        foveal.save(net.cpu().half(), options.weights)


if __name__ == "__main__":
    main()
