"""Gates with gradients: autograd functions that keep no map but the input, and few passes over it.

A map is seen as (b, c, n) with the strides it has, so contiguous and channels-last take the same code.
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from foveal.ops import reference
from foveal.ops.pairwise import exporting, full_precision

PART_BYTES = 4 * 2**20  # images multiplied together up to this size, so that the product is still in cache
ROW_BYTES = 2**19  # of the comparison map in `_first_equal`
WINDOWS = 16  # the place of a maximum is looked for in the best of this many windows


def can_run(x: Tensor, *others: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or exporting() or torch._C._are_functorch_transforms_active():
        return False
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:  # fake, distributed, ...
        return False
    if any(other is not None and other.dtype != x.dtype for other in others):
        return False
    return x.numel() > 0 and (x.is_contiguous() or x.movedim(1, -1).is_contiguous())


# Below, launching a kernel from Python costs more than it saves (H100, benchmarks/README.md): kernels then run only
# where a CUDA graph is being recorded, which takes launching out of the replay.
SMALLEST_MAP = 2**24


def kernels(x: Tensor, smallest: float = SMALLEST_MAP) -> ModuleType | None:
    """The Triton kernels, where they take ``x`` and pay."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return None
    if x.numel() < smallest and not torch.cuda.is_current_stream_capturing():
        return None
    try:
        from foveal.ops import _triton_gate
    except ImportError:  # PyTorch without Triton
        return None
    return _triton_gate if _triton_gate.can_run(x) is None else None


def spatial_statistics(x: Tensor) -> Tensor:
    """As ``reference.spatial_statistics``, each half written where it belongs."""
    statistics = x.new_empty((len(x), 2, *x.shape[2:]))
    torch.mean(x, 1, out=statistics[:, 0])
    torch.amax(x, 1, out=statistics[:, 1])
    return statistics


# -------------------------------------------------------------------------------------------- the autograd functions
# Each backward adds to the map of gradients that the one after it allocated. Where a second derivative is asked for,
# the same sums are written with plain operations, which autograd can differentiate again.


class Squeeze(torch.autograd.Function):
    """x, squeezes = f(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, statistics: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.statistics, ctx.shape = statistics, x.shape
        rows: dict[str, Tensor] = {}
        place = None
        if "max" in statistics:
            if triton := kernels(x, smallest=math.inf):
                rows["mean"], rows["max"], place = triton.squeeze(x)
            else:
                rows["max"], place = _max_with_place(x.flatten(2), 2)
        if "mean" in statistics and "mean" not in rows:
            rows["mean"] = reference.squeeze(x, "mean")
        ctx.save_for_backward(None if place is None else _narrow(place, x.shape[2:].numel()))
        return x, rows[statistics[0]] if len(statistics) == 1 else torch.cat([rows[s] for s in statistics])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        dx, dsqueezed = gradients
        if dsqueezed is None:
            return dx, None
        (kept,) = ctx.saved_tensors
        place: Any = None if kept is None else kept.long()
        b, c = ctx.shape[:2]
        n = ctx.shape[2:].numel()
        rows = zip(ctx.statistics, dsqueezed.view(-1, b, c), strict=True)
        if torch.is_grad_enabled():
            added = sum(
                row[..., None].expand(b, c, n) / n if statistic == "mean" else _spread(row, place, 2, n)
                for statistic, row in rows
            )
            assert isinstance(added, Tensor)
            return added.view(ctx.shape) if dx is None else dx + added.view(ctx.shape), None
        dx = _to_add_to(ctx, dx, dsqueezed)
        flat = dx.flatten(2)
        for statistic, row in rows:
            if statistic == "mean":
                flat.add_((row / n)[..., None])
            else:
                flat.scatter_add_(2, place[..., None], row[..., None])
        return dx, None


class Statistics(torch.autograd.Function):
    """x, mean and max over channels of x * gate, x * gate, places of the maxima = f(x, gate)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.source = x.shape, id(x.grad_fn)
        gated = None
        if triton := kernels(x):
            statistics, place = triton.spatial_statistics(x, gate)
            place = place.flatten(1)
        else:
            gated = None if gate is None else reference.channel_scale(x, gate)
            flat = (x if gated is None else gated).flatten(2)
            peak, place = _max_with_place(flat, 1)
            statistics = torch.stack([flat.mean(1), peak], 1).view(x.shape[0], 2, *x.shape[2:])
        place = _narrow(place, x.shape[1])
        ctx.save_for_backward(x, gate, place)
        ctx.mark_non_differentiable(*(t for t in (gated, place) if t is not None))
        return x, statistics, gated, place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        dx, dstatistics, *_ = gradients
        if dstatistics is None:
            return dx, None
        x, gate, place = ctx.saved_tensors
        place = place.to(torch.int64)
        flat, channels = x.flatten(2), x.shape[1]
        dmean, dpeak = dstatistics.flatten(2).unbind(1)
        dmean = dmean / channels
        dgate = None
        if torch.is_grad_enabled():
            added = dmean[:, None] + _spread(dpeak, place, 1, channels)
            if gate is not None:
                dgate = (added * flat).sum(2)
                added = added * gate[..., None]
            return added.view(x.shape) if dx is None else dx + added.view(x.shape), dgate
        if ctx.needs_input_grad[1]:
            with full_precision(x.device):
                dgate = torch.cat(
                    [torch.bmm(flat[part], dmean[part, :, None])[..., 0] for part in _parts(flat)]
                )
            dgate += _sum_by_channel(dpeak * flat.gather(1, place[:, None])[:, 0], place, channels)
        if not ctx.needs_input_grad[0]:
            return None, dgate
        dx = _to_add_to(ctx, dx, dstatistics)
        dflat = dx.flatten(2)
        if gate is None:
            dflat.add_(dmean[:, None])
        else:
            dflat.addcmul_(gate[..., None], dmean[:, None])
            dpeak = dpeak * gate.gather(1, place)
        dflat.scatter_add_(1, place[:, None], dpeak[:, None])
        return _fresh(ctx, dx), dgate


class Scale(torch.autograd.Function):
    """x * channel_gate * spatial_gate; ``gated`` is x * channel_gate already, and becomes the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor | None, gated: Tensor | None
    ) -> Tensor:
        ctx.source = id(x.grad_fn)
        ctx.save_for_backward(x, channel_gate, spatial_gate)
        if gated is not None and spatial_gate is not None:
            ctx.mark_dirty(gated)
            return gated.mul_(spatial_gate)
        if channel_gate is None:
            assert spatial_gate is not None
            return x * spatial_gate
        if triton := kernels(x):
            return triton.scale_add_relu(x, channel_gate, spatial_gate)
        y = reference.channel_scale(x, channel_gate)
        return y if spatial_gate is None else y.mul_(spatial_gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy,) = gradients
        x, channel_gate, spatial_gate = ctx.saved_tensors
        by_channel = None if channel_gate is None else channel_gate[..., None]  # (b, c, 1)
        by_position = None if spatial_gate is None else spatial_gate.flatten(2)  # (b, 1, n)
        if torch.is_grad_enabled():
            dx, dchannel, dspatial = _scale_backward_plainly(x, dy, by_channel, by_position)
        else:
            with full_precision(x.device):
                dx, dchannel, dspatial = _scale_backward(x, dy, by_channel, by_position, ctx.needs_input_grad)
            dx = None if dx is None else _fresh(ctx, dx)
        if dchannel is not None:
            dchannel = dchannel[..., 0]
        if dspatial is not None:
            dspatial = dspatial.view(x.shape[0], 1, *x.shape[2:])
        return dx, dchannel, dspatial, None


def _scale_backward(
    x: Tensor, dy: Tensor, by_channel: Tensor | None, by_position: Tensor | None, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if any(size > 1 and a != b for size, a, b in zip(x.shape, x.stride(), dy.stride(), strict=True)):
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x) if needed[0] else None
    dchannel = torch.empty_like(by_channel) if by_channel is not None and needed[1] else None
    dspatial = torch.empty_like(by_position) if by_position is not None and needed[2] else None
    flat, dflat = x.flatten(2), dy.flatten(2)
    for part in _parts(flat):
        image, dimage = flat[part], dflat[part]
        # first the product of both maps, then, in the same memory, the gradient of x
        buffer = torch.empty_like(image) if dx is None else dx.flatten(2)[part]
        if dchannel is not None or dspatial is not None:
            torch.mul(dimage, image, out=buffer)
        if dchannel is not None and by_position is None:
            torch.sum(buffer, 2, keepdim=True, out=dchannel[part])
        elif dchannel is not None and by_position is not None:
            torch.bmm(buffer, by_position[part].mT, out=dchannel[part])
        if dspatial is not None and by_channel is None:
            torch.sum(buffer, 1, keepdim=True, out=dspatial[part])
        elif dspatial is not None and by_channel is not None:
            torch.bmm(by_channel[part].mT, buffer, out=dspatial[part])
        if dx is not None:
            for factor in (by_position, by_channel):
                if factor is not None:
                    dimage = torch.mul(dimage, factor[part], out=buffer)
    return dx, dchannel, dspatial


def _scale_backward_plainly(
    x: Tensor, dy: Tensor, by_channel: Tensor | None, by_position: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dflat = dy.flatten(2)
    product = dflat * x.flatten(2)
    dchannel = dspatial = None
    if by_channel is not None:
        dchannel = (product if by_position is None else product * by_position).sum(2, keepdim=True)
        dflat = dflat * by_channel
    if by_position is not None:
        dspatial = (product if by_channel is None else product * by_channel).sum(1, keepdim=True)
        dflat = dflat * by_position
    return dflat.view(x.shape), dchannel, dspatial


# ----------------------------------------------------------------------------------- maps of gradients, in place


def _fresh(ctx: Any, gradient: Tensor) -> Tensor:
    """Address a map of gradients nobody else holds to the function that made ``x``."""
    gradient._adds_for = ctx.source  # pyright: ignore[reportAttributeAccessIssue]
    return gradient


def _to_add_to(ctx: Any, gradient: Tensor | None, like: Tensor) -> Tensor:
    """``gradient`` itself where it was addressed to ``ctx``; a copy of one that others may hold."""
    if gradient is None:
        return like.new_zeros(ctx.shape)
    if getattr(gradient, "_adds_for", None) == id(ctx):
        del gradient._adds_for  # pyright: ignore[reportAttributeAccessIssue]
        return gradient
    return gradient.clone(memory_format=torch.contiguous_format)


def _narrow(place: Tensor, size: int) -> Tensor:
    """Indices below ``size`` in as few bytes as hold them."""
    return place.to(torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32)


def _spread(values: Tensor, place: Tensor, dim: int, size: int) -> Tensor:
    """(b, c, n) that is ``values`` at ``place`` along ``dim`` and zero elsewhere."""
    shape = list(values.unsqueeze(dim).shape)
    shape[dim] = size
    return values.new_zeros(shape).scatter(dim, place.unsqueeze(dim), values.unsqueeze(dim))


def _sum_by_channel(values: Tensor, channel: Tensor, channels: int) -> Tensor:
    """(b, c): the sum of ``values`` (b, n) over the positions of each ``channel`` (b, n)."""
    if values.device.type == "cpu":
        return values.new_zeros(len(values), channels).scatter_add_(1, channel, values)
    # elsewhere scattered sums have no fixed order
    own = channel[:, None] == torch.arange(channels, device=values.device)[:, None]
    return torch.where(own, values[:, None], 0).sum(2)


def _parts(x: Tensor) -> list[slice]:
    """Images to take together. Accelerators take all: they have no such cache, and launches cost."""
    images = len(x)
    step = max(1, PART_BYTES * images // (x.numel() * x.element_size())) if x.device.type == "cpu" else images
    return [slice(first, min(first + step, images)) for first in range(0, images, step)]


# --------------------------------------------------------------------------------------------- places of maxima


def _max_with_place(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``x.max(dim)`` of (b, c, n). PyTorch's own is several times slower on a CPU: it is not vectorised.

    Maxima of overlapping windows, then the place inside the first window that holds the maximum.
    """
    if x.device.type != "cpu":
        values, places = x.max(dim)
        return values, places
    if x.stride(1) == 1:  # channels-last: work in memory order
        x, dim = x.mT, 3 - dim
    size = x.shape[dim]
    if size < 4 * WINDOWS or (dim == 2 and size < 64 * WINDOWS):  # short innermost windows do not vectorise
        values = x.amax(dim)
        return values, _first_equal(x, values, dim)
    step = size // WINDOWS
    windows = x.unfold(
        dim, size - (WINDOWS - 1) * step, step
    )  # the windowed dimension, then the window, last
    peaks = windows.amax(-1)
    values = peaks.amax(dim)
    best = _first_equal(peaks, values, dim)
    index = best.unsqueeze(dim).unsqueeze(-1).expand(*windows.shape[:dim], 1, *windows.shape[dim + 1 :])
    inside = _first_equal(windows.gather(dim, index).squeeze(dim), values, 2)
    return values, best.mul_(step).add_(inside)


def _first_equal(x: Tensor, values: Tensor, dim: int) -> Tensor:
    """First index along ``dim`` of the contiguous ``x`` at which it equals ``values``.

    The product of the 0/1 map of matches with size, size + 1, ... is size + index where there is one match,
    exact in float32 below 2**23. Rows with several (ties) or none (NaN) go through ``argmax``.
    """
    size = x.shape[dim]
    if x.numel() < 2**14 or size >= 2**23:
        return x.max(dim).indices
    codes = torch.arange(size, 2 * size, dtype=torch.float32)
    with full_precision(x.device):
        if dim == 1:
            matches = torch.eq(x, values.unsqueeze(1), out=torch.empty_like(x, dtype=torch.float32))
            product = torch.bmm(codes.expand(len(x), 1, size), matches)[:, 0]
        else:
            product = torch.empty_like(values, dtype=torch.float32)
            rows = max(1, ROW_BYTES // (4 * size))
            matches = torch.empty(rows, size)
            columns = (x.flatten(0, 1), values.view(-1, 1), product.view(-1))
            for row, value, result in zip(*(column.split(rows) for column in columns), strict=True):
                torch.mv(torch.eq(row, value, out=matches[: len(row)]), codes, out=result)
    index = product.to(torch.int64).sub_(size)
    unclear = (index < 0) | (index >= size)
    if unclear.any():
        index[unclear] = x.movedim(dim, -1)[unclear].argmax(-1)
    return index
