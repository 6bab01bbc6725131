"""A training step with foveal's ops against the same blocks with the literal equations.

    python benchmarks/training.py --out benchmarks/results/training.json

Networks, data sizes and places of the blocks are those of ``foveal compare`` and, larger, of a training run: forward,
loss and backward of one batch. The literal form is `foveal.ops.reference` under autograd, put in the place of every
op; losses of both are compared before anything is timed.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from foveal import create_model, insert, parse_insertion
from foveal.bench import describe_machine
from foveal.compare import BLOCKS
from foveal.files import write_json
from foveal.measure import measure_time
from foveal.nn import cbam
from foveal.ops import attention, concatenation, dot_product, gate, reference

CASES = [
    ("foveal compare: cifar_resnet8, 64 x 24 x 24", "cifar_resnet8", 64, 24, BLOCKS),
    (
        "foveal train: cifar_resnet20, 16 x 64 x 64",
        "cifar_resnet20",
        16,
        64,
        (
            "se(reduction=4)@residual",
            "cbam(reduction=4)@residual",
            "nonlocal@block:2",
            "nonlocal(pairwise=dot_product)@block:2",
            "nonlocal(pairwise=concatenation)@block:2",
            "selfattention@block:2",
            "dual@block:2",
        ),
    ),
]


@contextmanager
def literal() -> Iterator[None]:
    """Every op computes its literal equation."""
    with (
        mock.patch.object(gate, "_why_plain", return_value="the literal equations were asked for"),
        mock.patch.object(attention, "_choose", return_value=("reference", "")),
        mock.patch.object(dot_product, "dot_product", reference.dot_product),
        mock.patch.object(concatenation, "concatenation", reference.concatenation),
        mock.patch.object(concatenation, "concatenation_attention", reference.concatenation_attention),
        mock.patch.object(
            cbam, "narrow_convolution", lambda x, w, source=None: F.conv2d(x, w, padding=w.shape[-1] // 2)
        ),
    ):
        yield


def step(model: str, block: str, batch: int, size: int) -> Callable[[], float]:
    torch.manual_seed(0)
    net = create_model(model, num_classes=10)
    insert(net, **{"example": torch.zeros(1, 3, size, size), **parse_insertion(block)})
    net = net.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))

    def run() -> float:
        net.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case, model, batch, size, blocks in CASES:
        print(case)
        for block in blocks:
            fast = step(model, block, batch, size)
            slow = step(model, block, batch, size)

            def literally(slow: Callable[[], float] = slow) -> float:
                with literal():
                    return slow()

            if abs(fast() - literally()) > 1e-4:
                raise RuntimeError(f"{block}: the losses differ, not timed")
            times = measure_time({"foveal": fast, "literal": literally}, repeats=options.repeats)
            ours, theirs = times["foveal"].time_ms, times["literal"].time_ms
            print(f"  {block:45} {theirs:8.1f} -> {ours:8.1f} ms   {theirs / ours:5.2f} x", flush=True)
            rows.append({"case": case, "block": block, "literal_ms": theirs, "foveal_ms": ours})
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "rows": rows})


if __name__ == "__main__":
    main()
