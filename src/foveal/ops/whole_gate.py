"""A whole gate as one operator: squeeze, layers, statistics over channels, convolution, sigmoid and product.

``foveal::gate`` computes ``y = g_c s_p x`` with either factor or both, ``foveal::gate_backward`` its gradients;
`GateInput` in ``ops.gate`` does the same step by step. On a CPU a kernel, compiled at its first call and kept on
disk, takes an image through all steps before the next one comes, on PyTorch's own threads; `why_not_native` says when
there is none.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.ops.choice import Choice
from foveal.ops.kernels.native.call import compiled
from foveal.ops.numerics import exporting, is_channels_last
from foveal.ops.prepared_calls import PreparedCalls
from foveal.ops.whole_gate_ops import (  # registers the operators
    SUMS,
    outputs_of,
    prepared,
    with_gradients,
)

NATIVE_FROM = 2**15
"""Values of a map from which the kernel is taken: smaller maps are not worth loading a compiler for."""
SE_CONVERTS_FROM = 2**17
"""Values of a bfloat16 map from which SE's inference is worth the conversion of its weights."""
NATIVE_DTYPES = {torch.float32, torch.bfloat16}
"""Each takes seconds to compile, once a machine; float64, which the kernels know too, is for checks of gradients."""
HAS_NUMBA = importlib.util.find_spec("numba") is not None
SQUEEZES = {"mean": 1, "max": 2, "both": 3}
_NONE = [None] * 4
_NO_MOMENTS = torch.empty(0)


# ------------------------------------------------------------------------------------------------------- what to call


class ChannelHalf(NamedTuple):
    """``g = gain activation(W2 relu(W1 squeeze(x) + b1) + b2)``; names as in ``nn.SqueezeExcite``."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    squeeze: str
    activation: str
    gain: float


class SpatialHalf(NamedTuple):
    """``s = gain sigmoid(norm(kernel * [mean_c, max_c]))``.

    ``norm`` is scale, shift, mean and variance; None is no norm, and without mean and variance it takes the batch's.
    """

    kernel: Tensor
    max_first: bool
    gain: float
    norm: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None
    eps: float


def why_not_native(x: Tensor, alone: ChannelHalf | None = None) -> str | None:
    """Return why the native kernel of a whole gate is not taken for this map; None if it is.

    Args:
        x: feature map.
        alone: the channel half of a gate without a spatial one.
    """
    if exporting() or torch._C._are_functorch_transforms_active():
        return "an export or torch.func knows PyTorch's operators only"
    if not torch.compiler.is_compiling():
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return f"the map is a {type(x).__name__}, which only PyTorch's operators know"
        if torch._C._len_torch_dispatch_stack() > 0:
            return "somebody watches PyTorch's operators one by one"
    if x.device.type != "cpu":
        return f"it needs a tensor on the CPU, got one on {x.device.type}"
    if x.dtype not in NATIVE_DTYPES:
        return f"it takes float32 and bfloat16, got {x.dtype}"
    if x.numel() < NATIVE_FROM:
        return f"it pays from {NATIVE_FROM} values, got {x.numel()}"
    if not (x.is_contiguous() or is_channels_last(x)):
        return f"the map is neither contiguous nor channels-last, but has strides {x.stride()}"
    if not HAS_NUMBA:
        return "numba, which compiles it, is not installed"
    if alone is None or alone.squeeze != "mean" or _needs_grad(x, alone):
        return None
    # what is left, SE without gradients, is little work
    if torch.compiler.is_compiling():
        return "torch.compile joins SE's mean and product with what is around them"
    if x.dtype != SUMS[x.dtype] and x.numel() < SE_CONVERTS_FROM:
        return f"to convert SE's weights at each call pays from {SE_CONVERTS_FROM} values, got {x.numel()}"
    if x.shape[0] > 1 and 2 * alone.w1.numel() * x.shape[0] > x.numel():
        return "SE has more weights than an image has values: its layers are quicker as one product for all images"
    return None


def compile_kernels(dtype: torch.dtype = torch.float32) -> None:
    """Compile the kernels of both directions for this processor, or read them where they have been; for a warm start.

    The first gate that needs one does so by itself. It takes about 8 s a direction, once a machine.
    """
    if HAS_NUMBA and dtype in NATIVE_DTYPES:
        for direction in ("forward", "backward"):
            compiled(direction, dtype)


def explain(x: Tensor, alone: ChannelHalf | None = None) -> Choice:
    """Say whether the whole gate of this map is one native call or goes step by step, and why; see `why_not_native`.

    Example:
        >>> print(explain(torch.ones(1, 8, 4, 4)))
        steps: each step chooses for itself, see gate.explain
        not native: it pays from 32768 values, got 128
    """
    reason = why_not_native(x, alone)
    if reason is None:
        steps = {"steps": "the map would leave the cache between them"}
        return Choice("native", "one kernel takes each image through all steps", steps)
    return Choice("steps", "each step chooses for itself, see gate.explain", {"native": reason})


def _needs_grad(x: Tensor, weights: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or any(weight.requires_grad for weight in weights if isinstance(weight, Tensor))
    )


def apply(
    x: Float[Tensor, "b c *spatial"],
    channel: ChannelHalf | None,
    spatial: SpatialHalf | None,
    calls: PreparedCalls | None = None,
) -> tuple[Float[Tensor, "b c *spatial"], Float[Tensor, "2"]]:
    """Compute ``y = g_c s_p x`` by the operator ``foveal::gate``.

    Args:
        x: feature map, for which `why_not_native` is None.
        channel, spatial: the halves of the gate; None for one that it lacks.
        calls: where what was prepared is kept for the next map of this size; used without gradients, when the kernel
            is called past the operator.

    Returns:
        The gated map, and mean and variance of the logits over the batch where the norm takes those.

    Example:
        >>> x, zeros = torch.ones(1, 64, 32, 32), torch.zeros(64, 64)
        >>> half = ChannelHalf(zeros, None, zeros, None, "mean", "sigmoid", 2.0)
        >>> torch.equal(apply(x, half, None)[0], x)
        True
    """
    weights, options = weights_of(channel, spatial), options_of(channel, spatial)
    keeps = _needs_grad(x, weights)
    batch_statistics = weights[5] is not None and weights[7] is None
    if not (keeps or calls is None or batch_statistics or torch.compiler.is_compiling()):
        return _by_prepared_call(x, weights, options, calls)
    given = [*arguments_of(x, weights, options), keeps]
    if torch.compiler.is_compiling():
        outputs = torch.ops.foveal.gate.default(x, *given)
    elif keeps:
        outputs = with_gradients(x, *given)
    else:
        with torch._C._AutoDispatchBelowAutograd():  # half the time of a call
            outputs = torch.ops.foveal.gate.default(x, *given)
    return outputs[0], outputs[-1]


def _by_prepared_call(
    x: Tensor, weights: list[Tensor | None], options: list[Any], calls: PreparedCalls
) -> tuple[Tensor, Tensor]:
    """The same without the operator, whose own work takes as long as the kernel at one image."""
    given, y = [weight for weight in weights if weight is not None], torch.empty_like(x)
    if calls.run({"x": x}, {"y": y, "seen": x}, given, *options):
        return y, _NO_MOMENTS
    arguments = [*arguments_of(x, weights, options), False]
    outputs = outputs_of(x, *arguments)
    call = prepared(x, arguments, outputs)
    call.run()
    calls.keep(call, {"x": x}, given, *options)
    return outputs[0], outputs[-1]


def weights_of(channel: ChannelHalf | None, spatial: SpatialHalf | None) -> list[Tensor | None]:
    """The weights of both halves, in the order of the operators."""
    kernel, norm = (None, None) if spatial is None else (spatial.kernel, spatial.norm)
    return [*(_NONE if channel is None else channel[:4]), kernel, *(_NONE if norm is None else norm)]


def options_of(channel: ChannelHalf | None, spatial: SpatialHalf | None) -> list[Any]:
    """The options of the operators, but for the last."""
    kind, hard, channel_gain, max_first, spatial_gain, eps = 0, False, 1.0, False, 1.0, 0.0
    if channel is not None:
        kind, hard, channel_gain = (
            SQUEEZES[channel.squeeze],
            channel.activation == "hard_sigmoid",
            channel.gain,
        )
    if spatial is not None:
        max_first, spatial_gain, eps = spatial.max_first, spatial.gain, spatial.eps
    return [kind, hard, channel_gain, max_first, spatial_gain, eps]


def arguments_of(x: Tensor, weights: list[Tensor | None], options: list[Any]) -> list[Any]:
    """What the operators take beside the map, but for the last; weights in the dtype of its sums."""
    sums = SUMS[x.dtype]
    return [
        *(weight if weight is None or weight.dtype == sums else weight.to(sums) for weight in weights),
        *options,
    ]
