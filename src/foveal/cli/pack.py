"""``foveal pack``: a data set as chunks, for slow disks and networks."""

from __future__ import annotations

import sys

from foveal.errors import FovealError
from foveal.terminal import write_error, write_out

NAMED = 3


def pack(
    data: str,
    out: str,
    task: str = "classify",
    data_options: dict | None = None,
    chunk_mib: float = 64.0,
) -> int:
    """Write a data set as a folder of chunks, for slow disks and networks; --data takes it as it takes the images.

    Args:
        data: As for train.
        out: The folder, which must not exist; it appears whole or not at all, and the same command continues what was
            stopped. It can be copied to a server or a bucket: --data https://... or s3://... reads it there.
        task: What the data are for: classify, segment or detect.
        data_options: More options of the data set. The division into parts stays as it is packed.
        chunk_mib: Size of a chunk in MiB, about. Training reads from 8 of them at a time.
    """
    from rich.console import Console
    from rich.progress import Progress

    from foveal.packing import pack

    if not 0.001 <= chunk_mib < 4096:
        raise FovealError(f"chunk_mib must be at least 0.001 and below 4096, got {chunk_mib}")
    bars: dict[str, int] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:

        def progress(split: str, done: int, total: int) -> None:
            if split not in bars:
                bars[split] = shown.add_task(split, total=total)
            if done % 64 == 0 or done == total:
                shown.update(bars[split], completed=done)  # pyright: ignore[reportArgumentType]

        found = pack(
            data,
            out,
            task=task,
            data_options=data_options,
            chunk_bytes=int(chunk_mib * 2**20),
            progress=progress,
        )
    for name, reason in list(found.left_out.items())[:NAMED]:
        write_error(f"pack: left out: {name}: {reason}")
    if len(found.left_out) > NAMED:
        write_error(f"pack: left out: {len(found.left_out) - NAMED} more")
    parts = ", ".join(f"{count:,} for {split}" for split, count in found.items.items())
    chunks = sum(found.chunks.values())
    write_out(f"{found.folder}: {parts}, in {chunks} chunks of {found.size / 2**20:,.1f} MiB together\n")
    return 0
