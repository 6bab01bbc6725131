"""CUDA kernels in Triton for gates: they are bound by memory, so each reads the feature map once.

``squeeze`` takes mean and max of every channel, ``spatial_statistics`` mean and max over the channels of the gated
map without storing it, ``scale_add_relu`` multiplies by both gates, adds the residual and clips, all in one pass.
A feature map is seen as (b, c, n) with its own strides, so contiguous and channels-last memory are both read in
their natural order. No atomics: two runs give the same bits.
"""

# Triton's language has types of its own: a constexpr argument takes a plain number
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def can_run(x: Tensor) -> str | None:
    """None if these kernels take the feature map ``x``, else the reason why not."""
    if not (x.is_cuda or INTERPRETED):
        return f"Triton needs a CUDA tensor, got one on {x.device}"
    if x.dtype not in _DTYPES:
        return f"Triton gate kernels need float16, bfloat16 or float32, got {x.dtype}"
    if _flat_strides(x) is None:
        return f"Triton gate kernels need contiguous or channels-last memory, got strides {x.stride()}"
    return None


def _flat_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Strides of ``x`` seen as (b, c, n), or None where its positions do not form one axis."""
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
def _largest(peak, place, AXIS: tl.constexpr):
    """Largest value and its smallest index along an axis; NaN wins, as in torch.amax."""
    largest = tl.max(peak, AXIS)
    largest = tl.where(tl.sum((peak != peak).to(tl.int32), AXIS) > 0, float("nan"), largest)
    wide = tl.expand_dims(largest, AXIS)
    found = (peak == wide) | ((peak != peak) & (wide != wide))
    return largest, tl.min(tl.where(found, place, 2147483647), AXIS)


@triton.jit
def _squeeze_kernel(
    X, MEAN, PEAK, PLACE, c, n, per_split, factor, x_b, x_c, x_n, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr
):
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1)
    end = min((split + 1) * per_split, n)
    total = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    peak = tl.full([BLOCK_C, BLOCK_N], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_C, BLOCK_N], tl.int32)
    for start in range(split * per_split, end, BLOCK_N):
        positions = start + tl.arange(0, BLOCK_N)
        inside = (channels[:, None] < c) & (positions[None, :] < end)
        at = X + batch * x_b + channels[:, None] * x_c + positions[None, :] * x_n
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += x
        x = tl.where(inside, x, float("-inf"))
        larger = (x > peak) | (x != x)
        peak = tl.where(larger, x, peak)
        place = tl.where(larger, positions[None, :], place)
    peak, place = _largest(peak, place, 1)
    at = (batch * tl.num_programs(1) + split) * c + channels
    tl.store(MEAN + at, tl.sum(total, 1) * factor, mask=channels < c)
    tl.store(PEAK + at, peak, mask=channels < c)
    tl.store(PLACE + at, place, mask=channels < c)


@triton.jit
def _merge_kernel(
    TOTALS, PEAKS, PLACES, MEAN, PEAK, PLACE, c, n, splits, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr
):
    batch = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    parts = tl.arange(0, SPLITS)
    inside = (parts[:, None] < splits) & (channels[None, :] < c)
    at = (batch * splits + parts[:, None]) * c + channels[None, :]
    total = tl.sum(tl.load(TOTALS + at, mask=inside, other=0.0), 0)
    peak = tl.load(PEAKS + at, mask=inside, other=float("-inf"))
    peak, place = _largest(peak, tl.load(PLACES + at, mask=inside, other=0), 0)
    at = batch * c + channels
    tl.store(MEAN + at, total / n, mask=channels < c)
    tl.store(PEAK + at, peak, mask=channels < c)
    tl.store(PLACE + at, place, mask=channels < c)


@triton.jit
def _spatial_kernel(
    X,
    GATE,
    Y,
    PLACE,
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
    peak = tl.full([BLOCK_C, BLOCK_N], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_C, BLOCK_N], tl.int32)
    for start in range(0, c, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        inside = (channels[:, None] < c) & (positions[None, :] < n)
        at = X + batch * x_b + channels[:, None] * x_c + positions[None, :] * x_n
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            x *= tl.load(GATE + batch * c + channels, mask=channels < c, other=0.0).to(tl.float32)[:, None]
        total += x
        x = tl.where(inside, x, float("-inf"))
        larger = (x > peak) | (x != x)
        peak = tl.where(larger, x, peak)
        place = tl.where(larger, channels[:, None], place)
    peak, place = _largest(peak, place, 0)
    tl.store(Y + batch * 2 * n + positions, tl.sum(total, 0) / c, mask=positions < n)
    tl.store(Y + (batch * 2 + 1) * n + positions, peak, mask=positions < n)
    tl.store(PLACE + batch * n + positions, place, mask=positions < n)


@triton.jit
def _scale_kernel(
    X, GATE, MASK, RESIDUAL, Y, c, n, x_b, x_c, x_n,
    HAS_MASK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    positions = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (channels[:, None] < c) & (positions[None, :] < n)
    at = batch * x_b + channels[:, None] * x_c + positions[None, :] * x_n
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    x *= tl.load(GATE + batch * c + channels, mask=channels < c, other=0.0).to(tl.float32)[:, None]
    if HAS_MASK:
        x *= tl.load(MASK + batch * n + positions, mask=positions < n, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        x += tl.load(RESIDUAL + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        x = tl.where(x < 0, 0.0, x)  # keeps NaN
    tl.store(Y + at, x.to(Y.dtype.element_ty), mask=inside)


def _tile_shape(stride_c: int, c: int, n: int) -> tuple[int, int]:
    """Channels and positions a program takes: long along the axis that is contiguous in memory."""
    if stride_c == 1:
        return min(128, triton.next_power_of_2(c)), min(32, triton.next_power_of_2(n))
    return min(8, triton.next_power_of_2(c)), min(512, triton.next_power_of_2(n))


# ---------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("foveal::squeeze", mutates_args=())
def _squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    mean, peak = (torch.empty((b, c), dtype=x.dtype, device=x.device) for _ in range(2))
    place = torch.empty((b, c), dtype=torch.int64, device=x.device)
    first = mean, peak, place
    if splits > 1:
        totals, peaks = (torch.empty((b, splits, c), dtype=torch.float32, device=x.device) for _ in range(2))
        first = totals, peaks, torch.empty((b, splits, c), dtype=torch.int32, device=x.device)
    _squeeze_kernel[triton.cdiv(c, block_c), splits, b](
        x, *first, c, n, per_split, 1 / n if splits == 1 else 1.0, *strides, BLOCK_C=block_c, BLOCK_N=block_n
    )
    if splits > 1:
        block_c = min(32, triton.next_power_of_2(c))
        _merge_kernel[triton.cdiv(c, block_c), b](
            *first, mean, peak, place, c, n, splits, BLOCK_C=block_c, SPLITS=triton.next_power_of_2(splits)
        )
    return mean, peak, place


@_squeeze.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, c = x.shape[:2]
    return x.new_empty(b, c), x.new_empty(b, c), x.new_empty(b, c, dtype=torch.int64)


def _squeeze_save(ctx, inputs, output) -> None:
    (x,) = inputs
    ctx.shape, ctx.channels_last = x.shape, x.stride(1) == 1
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[2])


def _squeeze_backward(ctx, d_mean: Tensor, d_max: Tensor, _):
    b, c, *spatial = ctx.shape
    n = torch.Size(spatial).numel()
    gradient = (d_mean / n)[:, :, None].expand(b, c, n)
    if ctx.channels_last:
        gradient = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    (place,) = ctx.saved_tensors
    gradient = gradient.scatter_add(2, place[:, :, None], d_max[:, :, None])
    return gradient.unflatten(2, spatial) if spatial else gradient


_squeeze.register_autograd(_squeeze_backward, setup_context=_squeeze_save)


@torch.library.custom_op("foveal::spatial_statistics", mutates_args=())
def _spatial_statistics(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    x, strides = _flat(x)
    b, c, n = *x.shape[:2], x[0, 0].numel()
    out = torch.empty((b, 2, *x.shape[2:]), dtype=x.dtype, device=x.device)
    place = torch.empty((b, *x.shape[2:]), dtype=torch.int64, device=x.device)
    if strides[1] == 1:
        block_c, block_n = min(256, triton.next_power_of_2(c)), 8
    else:
        block_c, block_n = min(32, triton.next_power_of_2(c)), min(64, triton.next_power_of_2(n))
    gate = gate.contiguous() if gate is not None else None
    _spatial_kernel[triton.cdiv(n, block_n), b](
        x, gate if gate is not None else x, out, place, c, n, *strides,
        HAS_GATE=gate is not None, BLOCK_C=block_c, BLOCK_N=block_n,
    )  # fmt: skip
    return out, place


@_spatial_statistics.register_fake
def _(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    b, _, *spatial = x.shape
    return x.new_empty(b, 2, *spatial), x.new_empty(b, *spatial, dtype=torch.int64)


def _spatial_save(ctx, inputs, output) -> None:
    x, gate = inputs
    ctx.save_for_backward(x, gate, output[1])
    ctx.mark_non_differentiable(output[1])


def _spatial_backward(ctx, d_out: Tensor, _):
    x, gate, place = ctx.saved_tensors
    spread = (d_out[:, :1] / x.shape[1]).expand_as(x)
    if x.stride(1) == 1:
        spread = spread.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else spread.contiguous()
    spread = spread.scatter_add(1, place[:, None], d_out[:, 1:])
    if gate is None:
        return spread, None
    d_gate = (spread * x).flatten(2).sum(2) if ctx.needs_input_grad[1] else None
    return spread * gate.reshape(*gate.shape, *[1] * (x.ndim - 2)), d_gate


_spatial_statistics.register_autograd(_spatial_backward, setup_context=_spatial_save)


@torch.library.custom_op("foveal::scale_add_relu", mutates_args=())
def _scale_add_relu(
    x: Tensor, gate: Tensor, mask: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    x, strides = _flat(x)
    b, c, n = *x.shape[:2], x[0, 0].numel()
    out = torch.empty_like(x)
    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    block_c, block_n = _tile_shape(strides[1], c, n)
    _scale_kernel[triton.cdiv(n, block_n), triton.cdiv(c, block_c), b](
        x, gate.contiguous(), mask.contiguous() if mask is not None else x, residual if residual is not None else x,
        out, c, n, *strides, HAS_MASK=mask is not None, HAS_RESIDUAL=residual is not None, RELU=relu,
        BLOCK_C=block_c, BLOCK_N=block_n,
    )  # fmt: skip
    return out


@_scale_add_relu.register_fake
def _(x: Tensor, gate: Tensor, mask: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    return torch.empty_like(x)


def _scale_save(ctx, inputs, output) -> None:
    x, gate, mask, residual, ctx.relu = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, gate, mask, output if ctx.relu else None)


def _scale_backward(ctx, dy: Tensor):
    x, gate, mask, out = ctx.saved_tensors
    if out is not None:
        dy = torch.where(out > 0, dy, 0)
    wide_gate = gate.reshape(*gate.shape, *[1] * (x.ndim - 2))
    product = dy * x
    d_gate = (product if mask is None else product * mask).flatten(2).sum(2)
    d_mask = None if mask is None else (product * wide_gate).sum(1, keepdim=True)
    dx = dy * wide_gate if mask is None else dy * wide_gate * mask
    return dx, d_gate, d_mask, dy if ctx.has_residual else None, None


_scale_add_relu.register_autograd(_scale_backward, setup_context=_scale_save)


def squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, max and the flat index of the max of every channel: x (b, c, *spatial) -> three (b, c)."""
    return _squeeze(x)


def spatial_statistics(x: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and max over channels of ``x * gate``, (b, 2, *spatial), and the arg-max channel (b, *spatial)."""
    return _spatial_statistics(x, gate)


def scale_add_relu(
    x: Tensor, gate: Tensor, mask: Tensor | None = None, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """``relu(x * gate * mask + residual)`` in one pass: gate (b, c), mask (b, 1, *spatial), residual like x."""
    return _scale_add_relu(x, gate, mask, residual, relu)
