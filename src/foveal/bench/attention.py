"""Cases of the attention and pairwise ops: the literal equations are what a user would write in PyTorch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.bench import matmul_rate
from foveal.bench.case import OURS, Bar, Case, Growth, Row
from foveal.ops import attention
from foveal.ops.concatenation import concatenation, concatenation_attention
from foveal.ops.dot_product import dot_product

POSITIONS = 96 * 96


def _dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    return (theta @ phi.mT / phi.shape[1]) @ g


def _concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    return (torch.relu(a[:, :, None] + b[:, None, :]) / b.shape[1]) @ g


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(query @ key.mT, -1) @ value


def _inputs(*shapes: tuple[int, ...], grad: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


def _call(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """The forward pass or, where the inputs want gradients, forward and backward from a given gradient."""
    if not inputs[0].requires_grad:
        return lambda: function(*inputs)
    grad_y = torch.ones_like(function(*inputs))

    def both() -> tuple[Tensor, ...]:
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, grad_y)

    return both


def _case(
    name: str, ours: Callable, literal: Callable, shapes: list, forward: Bar, both: Bar, operations: int = 0
) -> list[Case]:
    def make(grad: bool) -> Callable[[], dict[str, Callable[[], Any]]]:
        def calls() -> dict[str, Callable[[], Any]]:
            inputs = _inputs(*shapes, grad=grad)
            return {OURS: _call(ours, inputs), "literal": _call(literal, inputs)}

        return calls

    return [
        Case(f"{name}, forward", make(False), {"literal": forward}, operations=operations),
        # backward: two products for each of forward
        Case(f"{name}, forward and backward", make(True), {"literal": both}, operations=operations * 3),
    ]


CASES = [
    *_case(
        "dot product 96 x 96, 128 wide",
        dot_product,
        _dot_product,
        [(1, POSITIONS, 128)] * 3,
        Bar(faster=40, memory=0.03),
        Bar(faster=20, memory=0.03),
    ),
    *_case(
        "concatenation 96 x 96, 128 wide",
        concatenation,
        _concatenation,
        [(1, POSITIONS), (1, POSITIONS), (1, POSITIONS, 128)],
        Bar(faster=10, memory=0.05),
        Bar(faster=8, memory=0.05),
    ),
    *_case(
        "softmax attention 96 x 96, 32 -> 256",
        attention.softmax_attention,
        _softmax_attention,
        [(1, POSITIONS, 32), (1, POSITIONS, 32), (1, POSITIONS, 256)],
        Bar(faster=2, memory=0.1),
        Bar(faster=1.3, memory=0.1),
        operations=2 * POSITIONS**2 * (32 + 256),
    ),
]


def _grows(name: str, function: Callable, shapes: Callable[[int], list], **bars: Any) -> Growth:
    return Growth(name, lambda n: _call(function, _inputs(*shapes(n), grad=True)), **bars)


GROWTHS = [
    _grows("dot product, growth", dot_product, lambda n: [(1, n, 128)] * 3, time=1.15, memory=1.05),
    _grows(
        "concatenation, growth",
        concatenation,
        lambda n: [(1, n), (1, n), (1, n, 128)],
        time=1.15,
        memory=1.05,
    ),
    _grows(
        "concatenation attention, growth",
        lambda a, b, value: concatenation_attention(a, b, value, negative_slope=0.2),
        lambda n: [(1, n), (1, n), (1, n, 128)],
        time=1.15,
        memory=1.05,
    ),
    _grows(
        "softmax attention, growth",
        attention.softmax_attention,
        lambda n: [(1, n, 8), (1, n, 8), (1, n, 32)],
        memory=1.05,
    ),
    _grows(
        "perceptron attention, growth",
        attention.perceptron_attention,
        lambda n: [(1, n, 2), (1, n, 2), (2,), (1, n, 16)],
        memory=1.05,
        sizes=(1024, 4096, 16384),
    ),
]


# ---------------------------------------------------------------------------- DANet at the size of Cityscapes

CITYSCAPES = 1024 // 8, 2048 // 8


def position_attention_at_full_size() -> dict[str, Any]:
    """Forward and backward of ``PositionAttention(512)`` on a 1024 x 2048 image at stride 8, in this process.

    Peak memory is the rise of the resident set above the imports, as the system counts it.
    """
    import time

    from foveal.nn import PositionAttention

    before = _peak_resident_bytes()
    torch.manual_seed(0)
    block = PositionAttention(512)
    torch.nn.init.ones_(block.gamma)
    x = torch.randn(1, 512, *CITYSCAPES, requires_grad=True)
    start = time.perf_counter()
    y = block(x)
    middle = time.perf_counter()
    y.backward(torch.ones(()).expand_as(y))
    end = time.perf_counter()
    peak = _peak_resident_bytes()
    n, d, e = x[0, 0].numel(), 512 // 8, 512
    # queries, keys, values by 1x1 convolutions; scores and weighted sum; backward is twice forward
    operations = 3 * 2 * (n * 512 * (2 * d + e) + n * n * (d + e))
    return {
        "positions": n,
        "forward_s": round(middle - start, 2),
        "backward_s": round(end - middle, 2),
        "gflops": round(operations / (end - start) / 1e9, 1),
        "matmul_gflops": round(matmul_rate() / 1e9, 1),
        "peak_bytes": peak - before,
    }


def _peak_resident_bytes() -> int:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: there a child begins with its parent's peak
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
        )
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _position_attention_rows() -> list[Row]:
    code = (
        "import json; from foveal.bench import attention; "
        "print(json.dumps(attention.position_attention_at_full_size()))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    name = "position attention, 1024 x 2048 at stride 8"
    rate = found["gflops"] / found["matmul_gflops"]
    return [
        Row(name, "share of the matmul rate", rate, 0.5, True, found),
        Row(name, "peak memory above the imports, GB", found["peak_bytes"] / 1e9, 1.0, False, found),
    ]


WHOLES = {"position attention, 1024 x 2048 at stride 8": _position_attention_rows}
