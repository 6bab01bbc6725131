"""Gates with gradients: autograd functions that keep no map but the input, and few passes over it.

A map is seen as (b, c, n) with the strides it has, so contiguous and channels-last memory take the same code.
``ops.gate`` chooses the backend, ``"eager"`` (PyTorch's operators) or ``"triton"``, and calls these functions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveal.ops import reference
from foveal.ops.argmax import max_and_argmax, smallest_int
from foveal.ops.gradient_buffer import GradientBuffer, takes_plain_operations
from foveal.ops.numerics import autocast_disabled

# images are multiplied together up to this size, so that the product is still in cache
CHUNK_BYTES = 4 * 2**20


# -------------------------------------------------------------------------------------------------------- squeeze


class Squeeze(torch.autograd.Function):
    """The mean and the maximum of every channel over all positions, one below the other."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, buffer: GradientBuffer | None, statistics: tuple[str, ...], backend: str
    ) -> Tensor:
        ctx.buffer, ctx.statistics, ctx.shape = buffer, statistics, x.shape
        rows: dict[str, Tensor] = {}
        argmax = None
        if "max" in statistics:
            if backend == "triton":
                from foveal.ops.kernels import triton_gate

                rows["mean"], rows["max"], argmax = triton_gate.squeeze(x)
            else:
                rows["max"], argmax = max_and_argmax(x.flatten(2), 2)
            argmax = smallest_int(argmax, x.shape[2:].numel())
        if "mean" in statistics and "mean" not in rows:
            rows["mean"] = reference.squeeze(x, "mean")
        ctx.save_for_backward(argmax)
        return rows[statistics[0]] if len(statistics) == 1 else torch.cat([rows[s] for s in statistics])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (dsqueezed,) = gradients
        (saved,) = ctx.saved_tensors
        argmax: Any = None if saved is None else saved.long()
        b, c = ctx.shape[:2]
        n = ctx.shape[2:].numel()
        rows = list(zip(ctx.statistics, dsqueezed.view(-1, b, c), strict=True))
        if takes_plain_operations(ctx, dsqueezed):
            dx = sum(
                row[..., None].expand(b, c, n) / n if statistic == "mean" else _one_hot(row, argmax, 2, n)
                for statistic, row in rows
            )
            assert isinstance(dx, Tensor)
            return dx.view(ctx.shape), None, None, None
        flat = ctx.buffer.sum(dsqueezed).flatten(2)
        for statistic, row in rows:
            if statistic == "mean":
                flat.add_((row / n)[..., None])
            else:
                flat.scatter_add_(2, argmax[..., None], row[..., None])
        return None, None, None, None


# --------------------------------------------------------------------------------------------- spatial statistics


class StatisticsSource(NamedTuple):
    """What spatial statistics were computed from, for an operation that recomputes them instead of keeping them."""

    statistics: Tensor
    version: int
    x: Tensor
    gate: Tensor | None
    argmax: Tensor

    def describes(self, statistics: Tensor) -> bool:
        """Return whether ``statistics`` are the very ones, not changed since."""
        return statistics is self.statistics and statistics._version == self.version


def spatial_statistics(x: Tensor) -> Tensor:
    """Compute ``reference.spatial_statistics`` without gradients, each half written where it belongs."""
    statistics = x.new_empty((len(x), 2, *x.shape[2:]))
    torch.mean(x, 1, out=statistics[:, 0])
    torch.amax(x, 1, out=statistics[:, 1])
    return statistics


def recomputed_statistics(x: Tensor, gate: Tensor | None, argmax: Tensor) -> Tensor:
    """Compute the mean and the maximum over channels of (gated) ``x``, the maximum by its known place."""
    flat, argmax = x.flatten(2), argmax.long()
    largest = flat.gather(1, argmax[:, None])
    if gate is None:
        mean = flat.mean(1, keepdim=True)
    else:
        mean = torch.bmm(gate[:, None] / x.shape[1], flat)
        largest = largest * gate.gather(1, argmax)[:, None]
    return torch.cat([mean, largest], 1).view(len(x), 2, *x.shape[2:])


class SpatialStatistics(torch.autograd.Function):
    """Mean and maximum over channels of (gated) ``x``, the gated map (None where not computed), the argmax."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor | None, buffer: GradientBuffer | None, backend: str
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.buffer = buffer
        gated = None
        if backend == "triton":
            from foveal.ops.kernels import triton_gate

            statistics, argmax = triton_gate.spatial_statistics(x, gate)
            argmax = argmax.flatten(1)
        else:
            gated = None if gate is None else reference.channel_scale(x, gate)
            flat = (x if gated is None else gated).flatten(2)
            largest, argmax = max_and_argmax(flat, 1)
            statistics = torch.stack([flat.mean(1), largest], 1).view(x.shape[0], 2, *x.shape[2:])
        argmax = smallest_int(argmax, x.shape[1])
        ctx.save_for_backward(x, gate, argmax)
        ctx.mark_non_differentiable(*(t for t in (gated, argmax) if t is not None))
        return statistics, gated, argmax

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        dstatistics, *_ = gradients
        if dstatistics is None:
            return None, None, None, None
        x, gate, argmax = ctx.saved_tensors
        argmax = argmax.long()
        flat, channels = x.flatten(2), x.shape[1]
        dmean, dmax = dstatistics.reshape(len(x), 2, flat.shape[2]).unbind(1)
        dmean = dmean / channels
        dgate = None
        if takes_plain_operations(ctx, dstatistics):
            dx = dmean[:, None] + _one_hot(dmax, argmax, 1, channels)
            if gate is not None:
                dgate = (dx * flat).sum(2)
                dx = dx * gate[..., None]
            return dx.view(x.shape), dgate, None, None
        if ctx.needs_input_grad[1]:
            dgate = _gate_gradient(flat, dmean, dmax, argmax)
        if ctx.needs_input_grad[0]:
            flat_dx = ctx.buffer.sum(dstatistics).flatten(2)
            if gate is None:
                flat_dx.add_(dmean[:, None])
            else:
                flat_dx.addcmul_(gate[..., None], dmean[:, None])
                dmax = dmax * gate.gather(1, argmax)
            flat_dx.scatter_add_(1, argmax[:, None], dmax[:, None])
        return None, dgate, None, None


def _gate_gradient(flat: Tensor, dmean: Tensor, dmax: Tensor, argmax: Tensor) -> Tensor:
    """Compute (b, c): ``sum_p dmean_p x_cp``, and ``dmax_p x_cp`` over the positions whose maximum is in channel c."""
    at_max = dmax * flat.gather(1, argmax[:, None])[:, 0]
    with autocast_disabled(flat.device):
        products = [torch.bmm(flat[chunk], dmean[chunk, :, None])[..., 0] for chunk in _chunks(flat)]
    return torch.cat(products).add_(_sum_by_channel(at_max, argmax, flat.shape[1]))


# --------------------------------------------------------------------------------------------------------- scale


class Scale(torch.autograd.Function):
    """``x * channel_gate * spatial_gate``; ``gated`` is ``x * channel_gate`` already, and becomes the output."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        channel_gate: Tensor | None,
        spatial_gate: Tensor | None,
        gated: Tensor | None,
        buffer: GradientBuffer | None,
        backend: str,
    ) -> Tensor:
        ctx.buffer = buffer
        ctx.save_for_backward(x, channel_gate, spatial_gate)
        if gated is not None:
            ctx.mark_dirty(gated)
        return scale(x, channel_gate, spatial_gate, gated, backend)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, channel_gate, spatial_gate = ctx.saved_tensors
        by_channel = None if channel_gate is None else channel_gate[..., None]  # (b, c, 1)
        by_position = None if spatial_gate is None else spatial_gate.flatten(2)  # (b, 1, n)
        if takes_plain_operations(ctx, dy):
            dx, dchannel, dspatial = _scale_backward_plainly(x, dy, by_channel, by_position)
        else:
            with autocast_disabled(x.device):
                dx, dchannel, dspatial = _scale_backward(x, dy, by_channel, by_position, ctx.needs_input_grad)
            if dx is not None:
                ctx.buffer.add(dx)
                dx = None
        if dchannel is not None:
            dchannel = dchannel[..., 0]
        if dspatial is not None:
            dspatial = dspatial.view(x.shape[0], 1, *x.shape[2:])
        return dx, dchannel, dspatial, None, None, None


def scale(
    x: Tensor, channel_gate: Tensor | None, spatial_gate: Tensor | None, gated: Tensor | None, backend: str
) -> Tensor:
    """Multiply without gradients; a ``gated`` that is given is overwritten and returned."""
    if channel_gate is None:
        assert spatial_gate is not None
        return x * spatial_gate
    if spatial_gate is None:
        return reference.channel_scale(x, channel_gate)
    if gated is None and backend == "triton":
        from foveal.ops.kernels import triton_gate

        return triton_gate.dual_scale(x, channel_gate, spatial_gate)
    return (reference.channel_scale(x, channel_gate) if gated is None else gated).mul_(spatial_gate)


def _scale_backward(
    x: Tensor, dy: Tensor, by_channel: Tensor | None, by_position: Tensor | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if any(size > 1 and a != b for size, a, b in zip(x.shape, x.stride(), dy.stride(), strict=True)):
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x) if needs[0] else None
    dchannel = torch.empty_like(by_channel) if by_channel is not None and needs[1] else None
    dspatial = torch.empty_like(by_position) if by_position is not None and needs[2] else None
    flat, dflat = x.flatten(2), dy.flatten(2)
    for chunk in _chunks(flat):
        image, dimage = flat[chunk], dflat[chunk]
        # first the product of both maps, then, in the same memory, the gradient of x
        buffer = torch.empty_like(image) if dx is None else dx.flatten(2)[chunk]
        if dchannel is not None or dspatial is not None:
            torch.mul(dimage, image, out=buffer)
        if dchannel is not None and by_position is None:
            torch.sum(buffer, 2, keepdim=True, out=dchannel[chunk])
        elif dchannel is not None and by_position is not None:
            torch.bmm(buffer, by_position[chunk].mT, out=dchannel[chunk])
        if dspatial is not None and by_channel is None:
            torch.sum(buffer, 1, keepdim=True, out=dspatial[chunk])
        elif dspatial is not None and by_channel is not None:
            torch.bmm(by_channel[chunk].mT, buffer, out=dspatial[chunk])
        if dx is not None:
            for factor in (by_position, by_channel):
                if factor is not None:
                    dimage = torch.mul(dimage, factor[chunk], out=buffer)
    return dx, dchannel, dspatial


def _scale_backward_plainly(
    x: Tensor, dy: Tensor, by_channel: Tensor | None, by_position: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dflat = dy.reshape(*dy.shape[:2], x.shape[2:].numel())
    product = dflat * x.flatten(2)
    dchannel = dspatial = None
    if by_channel is not None:
        dchannel = (product if by_position is None else product * by_position).sum(2, keepdim=True)
        dflat = dflat * by_channel
    if by_position is not None:
        dspatial = (product if by_channel is None else product * by_channel).sum(1, keepdim=True)
        dflat = dflat * by_position
    return dflat.view(x.shape), dchannel, dspatial


# --------------------------------------------------------------------------------------------------------- pieces


def _one_hot(values: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """Return (b, c, n) that is ``values`` at ``index`` along ``dim`` and zero elsewhere."""
    shape = list(values.unsqueeze(dim).shape)
    shape[dim] = size
    return values.new_zeros(shape).scatter(dim, index.unsqueeze(dim), values.unsqueeze(dim))


def _sum_by_channel(values: Tensor, channel: Tensor, channels: int) -> Tensor:
    """Return (b, c): the sum of ``values`` (b, n) over the positions of each ``channel`` (b, n)."""
    if values.device.type == "cpu":
        return values.new_zeros(len(values), channels).scatter_add_(1, channel, values)
    # elsewhere scattered sums have no fixed order
    own = channel[:, None] == torch.arange(channels, device=values.device)[:, None]
    return torch.where(own, values[:, None], 0).sum(2)


def _chunks(x: Tensor) -> list[slice]:
    """Return which images to take together. Accelerators take all: they have no such cache, and launches cost."""
    images = len(x)
    step = (
        max(1, CHUNK_BYTES * images // (x.numel() * x.element_size())) if x.device.type == "cpu" else images
    )
    return [slice(first, min(first + step, images)) for first in range(0, images, step)]
