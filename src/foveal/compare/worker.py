"""One run of the comparison, and the process that does one after the other.

``python -m foveal.compare.worker`` reads jobs as lines of JSON from its standard input and answers each with lines
of JSON on its standard output. It ends when its input ends, in the middle of a run too: a worker never outlives
the process that asked. (Not ``multiprocessing``: that would import the caller's script again in every worker.)
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.checkpoint import save
from foveal.compare.images import load_images
from foveal.compare.variants import Variant, build
from foveal.data import train_transform
from foveal.files import write_json
from foveal.look.record import watch
from foveal.look.score import attention_map, has_map, object_mask, share_on_object
from foveal.train.classify import count, metrics
from foveal.train.config import TrainConfig
from foveal.train.lean import train_in_memory
from foveal.train.recipe import NonFiniteLoss

BATCH = 256
SHARE_IMAGES = 512
"""Images on which the share of attention on the object is measured."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to do one run; all of it can be written as JSON."""

    variant: Variant
    config: TrainConfig
    images: str
    """Folder of `foveal.compare.images.save_images`."""
    classes: list[str]
    image_size: int
    augmentation: dict[str, Any]
    """crop and flip of `train_transform`; empty for none."""
    colours: dict[str, Any]
    """mean and std to normalise by."""
    device: str
    result: str
    """Where to write the result."""
    weights: str | None
    """Where to keep the trained weights, if anywhere."""
    settings: dict[str, Any]
    """Kept with the result: what it depends on."""

    @classmethod
    def from_dict(cls, job: dict[str, Any]) -> "Job":
        return cls(**{**job, "variant": Variant(**job["variant"]), "config": TrainConfig(**job["config"])})


def run(job: Job, on_step: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Train, evaluate, measure where the attention lies, and write the result in one step.

    Returns:
        ``accuracy``, ``top5``, ``val_loss``, ``seconds``; ``share``: site -> [share of the attention on the
        object, chance], where images have objects and the block has a map. A run whose loss became infinite has
        ``failed`` instead, with the reason.
    """
    start = time.perf_counter()
    train, val = (load_images(Path(job.images), split) for split in ("train", "val"))
    net = build(job.variant, job.config, len(job.classes), job.image_size).to(job.device)
    result: dict[str, Any] = {"variant": job.variant.name, "seed": job.config.seed}
    images, labels = train["image"].to(job.device), train["label"].to(job.device)
    try:
        net = train_in_memory(
            net, images, labels, job.config, on_step=on_step, augment=preparation(job, augment=True)
        )
    except NonFiniteLoss as error:
        result["failed"] = str(error).partition(": ")[2]
    else:
        net.eval()
        found = evaluate(net, val, job)
        result |= {
            "accuracy": found["val_accuracy"],
            "top5": found["val_top5"],
            "val_loss": found["val_loss"],
        }
        if job.variant.attends:
            result["share"] = attention_shares(net, val, job)
        if job.weights is not None:
            info = {
                "classes": job.classes,
                "image_size": job.image_size,
                **job.colours,
                "data": job.config.data,
            }
            save(net, job.weights, task="classify", **info)
    result["seconds"] = round(time.perf_counter() - start, 2)
    write_json(Path(job.result), {**result, "settings": job.settings})
    return result


def preparation(job: Job, *, augment: bool) -> Callable[[Tensor, torch.Generator], Tensor]:
    """From stored bytes to what the network takes: augmented where asked, normalised, in its memory format."""
    mean, std = (
        torch.tensor(job.colours[name], device=job.device)[:, None, None] for name in ("mean", "std")
    )
    layout = torch.channels_last if job.config.channels_last else torch.contiguous_format
    transform = (
        train_transform(job.image_size, **job.augmentation, **job.colours) if job.augmentation else None
    )

    def prepare(images: Tensor, generator: torch.Generator) -> Tensor:
        if transform is None or not augment:  # stored at the right size: only the values are left to change
            x = (images.float() / 255 - mean) / std
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                samples = [transform({"image": image})["image"] for image in images.cpu()]
            x = torch.stack(samples).to(job.device)
        return x.contiguous(memory_format=layout)

    return prepare


def val_batches(job: Job, val: dict[str, Tensor], images: int | None = None) -> Iterator[dict[str, Tensor]]:
    """The validation images as batches for the network; with ``images``, so many, spread evenly over the split."""
    prepare, unused = preparation(job, augment=False), torch.Generator()
    total = len(val["image"])
    chosen = torch.arange(total)
    if images is not None and images < total:
        chosen = torch.linspace(0, total - 1, images).round().long()
    for indices in chosen.split(BATCH):
        batch = {name: values[indices].to(job.device) for name, values in val.items()}
        batch["image"] = prepare(batch["image"], unused)
        yield batch


def evaluate(net: nn.Module, val: dict[str, Tensor], job: Job) -> dict[str, float]:
    """Accuracy and loss over the whole validation split."""
    sums = [count(net, batch, len(job.classes)) for batch in val_batches(job, val)]
    return metrics(torch.stack(sums).sum(0))


def attention_shares(net: nn.Module, val: dict[str, Tensor], job: Job) -> dict[str, list[float]]:
    """Site -> [share of the attention that lies on the object, share of the image the object takes]."""
    gathered: dict[str, list[Tensor]] = {}
    for batch in val_batches(job, val, SHARE_IMAGES):
        objects = object_mask(batch)
        if objects is None:
            return {}
        with torch.no_grad(), watch(net) as seen:
            net(batch["image"])
        for name, record in seen.items():
            if has_map(record):
                share, _, chance = share_on_object(attention_map(record), objects)
                gathered.setdefault(name, []).append(torch.stack([share, chance]))
    return {name: torch.cat(parts, dim=1).nanmean(1).tolist() for name, parts in gathered.items()}


def main() -> None:
    """Do jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints does not disturb the answers
    jobs: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    last = 0.0

    def on_step(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.25:
            last = time.monotonic()
            print(json.dumps({"step": step}), file=answers)

    while True:
        job = Job.from_dict(json.loads(jobs.get()))
        try:
            print(json.dumps({"result": run(job, on_step)}), file=answers)
        except (ValueError, OSError) as error:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}), file=answers)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}", "kind": "crash"}), file=answers)


if __name__ == "__main__":
    main()
