"""Images a second from chunks, from folders and through timm's loader, of the same files on the same cores.

    python benchmarks/streaming.py --out benchmarks/results/streaming.json

100,000 JPEG files of 64 x 64 pixels in 100 folders of classes are made first (noise of few frequencies, as photographs
have), and packed. Then each loader reads them for training (random crop of 35 to 100 % of the area, mirror,
normalisation) in batches of 128 with one reading process a core, in turn, rounds interleaved. "cold": the pages of all
files are dropped from memory before each reading, as far as the system obeys. CPU seconds are of all processes, so that
figures of a machine with other work on it can be compared.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from foveal.bench import describe_machine
from foveal.data import open_dataset, train_transform
from foveal.data.loader import EpochBatchSampler, chunks_of, collate_by_size, make_loader
from foveal.files import write_json
from foveal.packing import pack

CLASSES, SIZE, BATCH = 100, 64, 128


def make_images(root: Path, count: int) -> None:
    """JPEG files of about 2 kB in folders of classes."""
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        folder = root / f"class{i % CLASSES:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(
            folder / f"{i:06}.jpg", quality=85
        )


def ours(data: str, workers: int) -> Iterable[torch.Tensor]:
    """What `foveal train` reads."""
    images = open_dataset(data, "train")
    batches = EpochBatchSampler(len(images), BATCH, seed=0, chunks=chunks_of(images))
    transform = train_transform(SIZE, crop="resized", interpolation="bilinear")
    loader = make_loader(images, transform, batches, collate_by_size, workers=workers)
    return (batch["image"] for parts in loader for batch in parts)


def of_timm(data: str, workers: int) -> Iterable[torch.Tensor]:
    """timm's loader with the same crop, mirror, interpolation and normalisation, on the CPU to the end as ours."""
    from timm.data import create_dataset, create_loader

    images = create_dataset("", root=data, split="train", is_training=True, batch_size=BATCH)
    loader = create_loader(
        images,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        no_aug=False,
        scale=(0.35, 1.0),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=False,
    )
    return (images for images, _ in loader)


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def drop_pages(root: Path) -> None:
    """Ask the system to forget the content of all files below a folder."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(read: Callable[[], Iterable[torch.Tensor]], most: int) -> dict[str, float]:
    """Images a second of an epoch's first batches but the very first, and a CPU second of all."""
    before = cpu_seconds()
    batches = iter(read())
    next(batches)
    start, seen = time.perf_counter(), 0
    for images in islice(batches, most - 1):
        seen += len(images)
    seconds = time.perf_counter() - start
    del batches  # its processes end, and their CPU seconds count
    return {
        "images_a_second": seen / seconds,
        "images_a_cpu_second": (seen + BATCH) / (cpu_seconds() - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=200, help="of 128 images that each reading takes")
    parser.add_argument("--states", nargs="+", choices=("warm", "cold"), default=["warm", "cold"])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--folder", type=Path, help="where the files are made; kept. Default: a temporary one"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.folder or Path(temporary)
        if not (root / "photos").exists():
            make_images(root / "photos", asked.images)
        if not (root / "packed").exists():
            start = time.perf_counter()
            packed = pack(str(root / "photos"), root / "packed", data_options={"val_share": 1e-6})
            print(
                f"packed {packed.items} in {time.perf_counter() - start:.0f} s, {packed.size / 2**20:.0f} MiB"
            )
        folders, chunks = root / "photos", root / "packed"
        readers = {
            "chunks": (chunks, lambda: ours(str(chunks), asked.workers)),
            "folders": (folders, lambda: ours(str(folders), asked.workers)),
            "timm on folders": (folders, lambda: of_timm(str(folders), asked.workers)),
        }
        rounds: dict[str, list[dict[str, float]]] = {}
        for turn in range(asked.rounds):
            for state in asked.states:
                for name, (files, read) in readers.items():
                    if state == "cold":
                        drop_pages(files)
                    found = timed(read, asked.batches)
                    rounds.setdefault(f"{name}, {state}", []).append(found)
                    print(
                        turn,
                        f"{name}, {state}",
                        {key: round(value) for key, value in found.items()},
                        flush=True,
                    )
    table = {
        name: {key: median(one[key] for one in found) for key in found[0]} | {"rounds": found}
        for name, found in rounds.items()
    }
    if asked.out:
        about = {
            "images": asked.images,
            "size": SIZE,
            "batch": BATCH,
            "workers": asked.workers,
            "batches": asked.batches,
        }
        write_json(
            asked.out,
            {"machine": describe_machine(), "load_average": os.getloadavg(), **about, "results": table},
        )


if __name__ == "__main__":
    main()
