"""CUDA kernels in Triton for gates: they are bound by memory, so each reads the feature map once.

``squeeze`` takes mean and max of every channel, ``spatial_statistics`` mean and max over the channels of the gated
map without storing it, ``dual_scale`` multiplies by both gates. Gradients are those of ``ops.gate_ops``.
A feature map is seen as (b, c, n) with its own strides, so contiguous and channels-last memory are both read in
their natural order. No atomics: two runs give the same bits.
"""

# Triton's language has types of its own: a constexpr argument takes a plain number
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

INTERPRETED = triton.knobs.runtime.interpret
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def can_run(x: Tensor) -> str | None:
    """Return None if these kernels take the feature map ``x``, else the reason why not."""
    if not (x.is_cuda or INTERPRETED):
        return f"Triton needs a CUDA tensor, got one on {x.device}"
    if x.dtype not in _DTYPES:
        return f"Triton gate kernels need float16, bfloat16 or float32, got {x.dtype}"
    if _flat_strides(x) is None:
        return f"Triton gate kernels need contiguous or channels-last memory, got strides {x.stride()}"
    return None


def _flat_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Return the strides of ``x`` seen as (b, c, n), or None where its positions do not form one axis."""
    if x.is_contiguous():
        n = x[0, 0].numel()
        return x.shape[1] * n, n, 1
    if x.movedim(1, -1).is_contiguous():
        c = x.shape[1]
        return x[0, 0].numel() * c, 1, c
    return None


def _flat(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    strides = _flat_strides(x)
    if strides is None:
        x = x.contiguous()
        strides = x.shape[1] * x[0, 0].numel(), x[0, 0].numel(), 1
    return x, strides


# ------------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _max_and_argmax(values, indices, AXIS: tl.constexpr):
    """Largest value and its smallest index along an axis; NaN wins, as in torch.amax."""
    largest = tl.max(values, AXIS)
    largest = tl.where(tl.sum((values != values).to(tl.int32), AXIS) > 0, float("nan"), largest)
    wide = tl.expand_dims(largest, AXIS)
    found = (values == wide) | ((values != values) & (wide != wide))
    return largest, tl.min(tl.where(found, indices, 2147483647), AXIS)


@triton.jit
def _squeeze_kernel(
    X, MEAN, MAX, ARGMAX, c, n, per_split, factor, x_b, x_c, x_n, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr
):
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1)
    end = min((split + 1) * per_split, n)
    total = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    largest = tl.full([BLOCK_C, BLOCK_N], float("-inf"), tl.float32)
    argmax = tl.zeros([BLOCK_C, BLOCK_N], tl.int32)
    for start in range(split * per_split, end, BLOCK_N):
        positions = start + tl.arange(0, BLOCK_N)
        inside = (channels[:, None] < c) & (positions[None, :] < end)
        at = X + batch * x_b + channels[:, None] * x_c + positions[None, :] * x_n
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += x
        x = tl.where(inside, x, float("-inf"))
        larger = (x > largest) | (x != x)
        largest = tl.where(larger, x, largest)
        argmax = tl.where(larger, positions[None, :], argmax)
    largest, argmax = _max_and_argmax(largest, argmax, 1)
    at = (batch * tl.num_programs(1) + split) * c + channels
    tl.store(MEAN + at, tl.sum(total, 1) * factor, mask=channels < c)
    tl.store(MAX + at, largest, mask=channels < c)
    tl.store(ARGMAX + at, argmax, mask=channels < c)


@triton.jit
def _merge_kernel(
    TOTALS, MAXIMA, ARGMAXIMA, MEAN, MAX, ARGMAX, c, n, splits, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr
):
    batch = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    parts = tl.arange(0, SPLITS)
    inside = (parts[:, None] < splits) & (channels[None, :] < c)
    at = (batch * splits + parts[:, None]) * c + channels[None, :]
    total = tl.sum(tl.load(TOTALS + at, mask=inside, other=0.0), 0)
    largest = tl.load(MAXIMA + at, mask=inside, other=float("-inf"))
    largest, argmax = _max_and_argmax(largest, tl.load(ARGMAXIMA + at, mask=inside, other=0), 0)
    at = batch * c + channels
    tl.store(MEAN + at, total / n, mask=channels < c)
    tl.store(MAX + at, largest, mask=channels < c)
    tl.store(ARGMAX + at, argmax, mask=channels < c)


@triton.jit
def _spatial_kernel(
    X,
    GATE,
    Y,
    ARGMAX,
    c,
    n,
    x_b,
    x_c,
    x_n,
    HAS_GATE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    positions = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    largest = tl.full([BLOCK_C, BLOCK_N], float("-inf"), tl.float32)
    argmax = tl.zeros([BLOCK_C, BLOCK_N], tl.int32)
    for start in range(0, c, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        inside = (channels[:, None] < c) & (positions[None, :] < n)
        at = X + batch * x_b + channels[:, None] * x_c + positions[None, :] * x_n
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            x *= tl.load(GATE + batch * c + channels, mask=channels < c, other=0.0).to(tl.float32)[:, None]
        total += x
        x = tl.where(inside, x, float("-inf"))
        larger = (x > largest) | (x != x)
        largest = tl.where(larger, x, largest)
        argmax = tl.where(larger, channels[:, None], argmax)
    largest, argmax = _max_and_argmax(largest, argmax, 0)
    tl.store(Y + batch * 2 * n + positions, tl.sum(total, 0) / c, mask=positions < n)
    tl.store(Y + (batch * 2 + 1) * n + positions, largest, mask=positions < n)
    tl.store(ARGMAX + batch * n + positions, argmax, mask=positions < n)


@triton.jit
def _dual_scale_kernel(
    X, CHANNEL_GATE, SPATIAL_GATE, Y, c, n, x_b, x_c, x_n, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr
):
    batch = tl.program_id(2).to(tl.int64)
    positions = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (channels[:, None] < c) & (positions[None, :] < n)
    at = batch * x_b + channels[:, None] * x_c + positions[None, :] * x_n
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    x *= tl.load(CHANNEL_GATE + batch * c + channels, mask=channels < c, other=0.0).to(tl.float32)[:, None]
    x *= tl.load(SPATIAL_GATE + batch * n + positions, mask=positions < n, other=0.0).to(tl.float32)[None, :]
    tl.store(Y + at, x.to(Y.dtype.element_ty), mask=inside)


def _tile_shape(stride_c: int, c: int, n: int) -> tuple[int, int]:
    """Channels and positions a program takes: long along the axis that is contiguous in memory."""
    if stride_c == 1:
        return min(128, triton.next_power_of_2(c)), min(32, triton.next_power_of_2(n))
    return min(8, triton.next_power_of_2(c)), min(512, triton.next_power_of_2(n))


# ---------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("foveal::squeeze", mutates_args=())
def squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, maximum and the flat index of the maximum of every channel: x (b, c, *spatial) -> three (b, c)."""
    x, strides = _flat(x)
    b, c, n = *x.shape[:2], x[0, 0].numel()
    block_c, block_n = _tile_shape(strides[1], c, n)
    if strides[1] != 1:
        block_c, block_n = 1, min(2048, triton.next_power_of_2(n))
    # enough programs to fill the chip, each with a few tiles of its own
    tiles, programs = triton.cdiv(n, block_n), b * triton.cdiv(c, block_c)
    splits = max(1, min(tiles, triton.cdiv(528, programs)))
    per_split = triton.cdiv(tiles, splits) * block_n
    splits = triton.cdiv(n, per_split)
    mean, largest = (torch.empty((b, c), dtype=x.dtype, device=x.device) for _ in range(2))
    argmax = torch.empty((b, c), dtype=torch.int64, device=x.device)
    first = mean, largest, argmax
    if splits > 1:
        totals, maxima = (torch.empty((b, splits, c), dtype=torch.float32, device=x.device) for _ in range(2))
        first = totals, maxima, torch.empty((b, splits, c), dtype=torch.int32, device=x.device)
    _squeeze_kernel[triton.cdiv(c, block_c), splits, b](
        x, *first, c, n, per_split, 1 / n if splits == 1 else 1.0, *strides, BLOCK_C=block_c, BLOCK_N=block_n
    )
    if splits > 1:
        block_c = min(32, triton.next_power_of_2(c))
        _merge_kernel[triton.cdiv(c, block_c), b](
            *first,
            mean,
            largest,
            argmax,
            c,
            n,
            splits,
            BLOCK_C=block_c,
            SPLITS=triton.next_power_of_2(splits),
        )
    return mean, largest, argmax


@squeeze.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, c = x.shape[:2]
    return x.new_empty(b, c), x.new_empty(b, c), x.new_empty(b, c, dtype=torch.int64)


@torch.library.custom_op("foveal::spatial_statistics", mutates_args=())
def spatial_statistics(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute mean and maximum over channels of ``x * gate``, (b, 2, *spatial), and the argmax (b, *spatial)."""
    x, strides = _flat(x)
    b, c, n = *x.shape[:2], x[0, 0].numel()
    out = torch.empty((b, 2, *x.shape[2:]), dtype=x.dtype, device=x.device)
    argmax = torch.empty((b, *x.shape[2:]), dtype=torch.int64, device=x.device)
    if strides[1] == 1:
        block_c, block_n = min(256, triton.next_power_of_2(c)), 8
    else:
        block_c, block_n = min(32, triton.next_power_of_2(c)), min(64, triton.next_power_of_2(n))
    gate = gate.contiguous() if gate is not None else None
    _spatial_kernel[triton.cdiv(n, block_n), b](
        x, gate if gate is not None else x, out, argmax, c, n, *strides,
        HAS_GATE=gate is not None, BLOCK_C=block_c, BLOCK_N=block_n,
    )  # fmt: skip
    return out, argmax


@spatial_statistics.register_fake
def _(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    b, _, *spatial = x.shape
    return x.new_empty(b, 2, *spatial), x.new_empty(b, *spatial, dtype=torch.int64)


@register_flop_formula(torch.ops.foveal.spatial_statistics)
def _(x: torch.Size, gate: torch.Size | None, **__) -> int:
    return 0 if gate is None else 2 * x.numel()


@torch.library.custom_op("foveal::dual_scale", mutates_args=())
def dual_scale(x: Tensor, channel_gate: Tensor, spatial_gate: Tensor) -> Tensor:
    """Multiply ``x`` by both gates, (b, c) and (b, 1, *spatial), in one pass."""
    x, strides = _flat(x)
    b, c, n = *x.shape[:2], x[0, 0].numel()
    out = torch.empty_like(x)
    block_c, block_n = _tile_shape(strides[1], c, n)
    _dual_scale_kernel[triton.cdiv(n, block_n), triton.cdiv(c, block_c), b](
        x, channel_gate.contiguous(), spatial_gate.contiguous(), out, c, n, *strides,
        BLOCK_C=block_c, BLOCK_N=block_n,
    )  # fmt: skip
    return out


@dual_scale.register_fake
def _(x: Tensor, channel_gate: Tensor, spatial_gate: Tensor) -> Tensor:
    return torch.empty_like(x)


@register_flop_formula(torch.ops.foveal.dual_scale)
def _(x: torch.Size, *_, **__) -> int:
    return 2 * 2 * x.numel()
