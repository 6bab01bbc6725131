"""The convolution of CBAM's spatial gate: two channels to one, where libraries made for many waste a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal.ops.gate_ops import StatisticsSource, recomputed_statistics
from foveal.ops.numerics import autocast_disabled, exporting

_CONVOLUTION_FUNCTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def narrow_convolution(
    x: Float[Tensor, "b i *spatial"],
    weight: Float[Tensor, "o i *kernel"],
    source: StatisticsSource | None = None,
) -> Tensor:
    """Convolve a map of few channels and keep its size: zero padding, stride 1, no bias.

    On a CPU, for 2-D maps of 32- and 64-bit floats, this is a product with the k rows of the kernel and k shifted sums;
    anything else goes to PyTorch's convolution.

    Args:
        x: feature map.
        weight: kernel, of one odd width k in every direction.
        source: what ``gate.GateInput.spatial_statistics`` returned beside ``x``. Backward then recomputes ``x`` from
            it instead of keeping ``x``; it is ignored if ``x`` is not, or no longer, those statistics.

    Returns:
        (b, o, *spatial).

    Example:
        >>> narrow_convolution(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
        tensor([[[[4., 6., 4.],
                  [6., 9., 6.],
                  [4., 6., 4.]]]])
    """
    ours = x.device.type == "cpu" and x.ndim == 4 and x.dtype in (torch.float32, torch.float64)
    if not ours or torch.compiler.is_compiling() or exporting() or torch.is_autocast_enabled("cpu"):
        return _CONVOLUTION_FUNCTIONS[x.ndim](x, weight, padding=weight.shape[-1] // 2)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        kept = (source.x, source.gate, source.argmax) if source is not None and source.describes(x) else (x,)
        return _NarrowConvolution.apply(x, weight, *kept)
    return _convolve(x, weight)


def _columns(x: Tensor, k: int) -> Tensor:
    """(b, i*k, (h+k-1)*w): the k horizontal shifts of every row of the padded map."""
    b, i, h, w = x.shape
    padded = F.pad(x, (k // 2,) * 4)
    return padded.unfold(3, w, 1).transpose(2, 3).reshape(b, i * k, (h + k - 1) * w)


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    b, i, h, w = x.shape
    o, _, k, _ = weight.shape
    kernel_rows = weight.permute(0, 2, 1, 3).reshape(1, o * k, i * k).expand(b, -1, -1)
    partial = torch.bmm(kernel_rows, _columns(x, k)).view(b, o, k, h + k - 1, w)
    # row r of the kernel meets the map r rows further down
    image, channel, kernel_row, row, column = partial.stride()
    return partial.as_strided((b, o, k, h, w), (image, channel, kernel_row + row, row, column)).sum(2)


class _NarrowConvolution(torch.autograd.Function):
    """The convolution of ``x``; kept for backward is either ``x`` or what it can be recomputed from.

    The map, the gate and the argmax, which statistics are recomputed from, are kept by the gate anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *kept: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, *kept)
        return _convolve(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        weight, *kept = ctx.saved_tensors
        dx = dweight = None
        with autocast_disabled(dy.device):
            if ctx.needs_input_grad[0]:
                dx = narrow_convolution(dy, weight.flip(2, 3).transpose(0, 1))
            if ctx.needs_input_grad[1]:
                x = kept[0] if len(kept) == 1 else recomputed_statistics(*kept)
                b, i, h, w = x.shape
                o, _, k, _ = weight.shape
                shifted = F.pad(dy, (0, 0, k - 1, k - 1)).unfold(2, h + k - 1, 1).transpose(3, 4)
                product = torch.bmm(shifted.reshape(b, o * k, (h + k - 1) * w), _columns(x, k).mT).sum(0)
                dweight = product.view(o, k, i, k).flip(1).transpose(1, 2)
        return dx, dweight, *[None] * (len(ctx.needs_input_grad) - 2)
