"""The operators of whole gates: their schemas, shapes, CPU kernels and gradients; ``ops.whole_gate`` calls them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError
from foveal.ops import reference
from foveal.ops.kernels.native.call import SUMS, Call
from foveal.ops.numerics import autocast_disabled

WEIGHTS = ("w1", "b1", "w2", "b2", "kernel", "norm_scale", "norm_shift", "norm_mean", "norm_var")
OPTIONS = {
    "squeeze": "int", "hard": "bool", "channel_gain": "float", "max_first": "bool", "spatial_gain": "float",
    "norm_eps": "float", "keeps": "bool",
}  # fmt: skip
KEPT = ("gate", "squeezed", "hidden", "channel_argmax", "logits", "position_argmax", "moments")
"""What ``foveal::gate`` returns beside the gated map: what its backward reads."""
_GIVEN = ", ".join(
    [*(f"Tensor? {name}" for name in WEIGHTS), *(f"{kind} {name}" for name, kind in OPTIONS.items())]
)
torch.library.define("foveal::gate", f"(Tensor x, {_GIVEN}) -> ({', '.join(['Tensor'] * (1 + len(KEPT)))})")
torch.library.define(
    "foveal::gate_backward",
    f"(Tensor dy, Tensor x, {', '.join(f'Tensor {name}' for name in KEPT)}, {_GIVEN}, bool map_gradient) -> "
    f"({', '.join(['Tensor'] * 8)})",
)


@torch.library.register_fake("foveal::gate")
def outputs_of(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Memory for the results; what does not apply is empty."""
    named = dict(zip((*WEIGHTS, *OPTIONS), given, strict=True))
    b, c, n, sums = x.shape[0], x.shape[1], math.prod(x.shape[2:]), SUMS[x.dtype]
    layers, kernel = named["w1"] is not None, named["kernel"] is not None
    return (
        torch.empty_like(x),
        x.new_empty(b, c, dtype=sums),
        x.new_empty(2, b if layers else 0, c, dtype=sums),
        x.new_empty(2, b, named["w1"].shape[0] if layers else 0, dtype=sums),
        x.new_empty(b if named["keeps"] and named["squeeze"] & 2 else 0, c, dtype=torch.int32),
        x.new_empty(b if kernel else 0, n, dtype=sums),
        x.new_empty(b if named["keeps"] and kernel else 0, n, dtype=torch.int32),
        x.new_empty(2, dtype=sums),
    )


def _forward(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    outputs = outputs_of(x, *given)
    if x.numel() > 0:
        prepared(x, given, outputs).run()
    return outputs


def prepared(x: Tensor, given: Sequence[Any], outputs: Sequence[Tensor], **more: Any) -> Call:
    """The call of the kernel that computes the outputs of `foveal::gate`; ``more`` are other slots of its argument."""
    named = dict(zip((*WEIGHTS, *OPTIONS), given, strict=True))
    seen = more.get("seen", x)
    named |= checked(x, named, seen.shape[1])
    named |= dict(zip(("y", *KEPT), outputs, strict=True))
    if named["w1"] is None:
        named["gate"].fill_(1)
    elif seen is not x:
        named["squeezed"] = named["squeezed"].new_empty(2, *seen.shape[:2])
    if named["norm_mean"] is not None:
        torch.cat([named["norm_mean"], named["norm_var"]], out=named["moments"])
    return Call("forward", x, **named, **more)


@torch.library.register_fake("foveal::gate_backward")
def _gradients(dy: Tensor, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    named = dict(zip((*KEPT, *WEIGHTS, *OPTIONS, "map_gradient"), given, strict=True))
    empty = x.new_empty(0, dtype=SUMS[x.dtype])
    weights = [named[name] for name in WEIGHTS[:7]]
    return (
        torch.empty_like(x) if named["map_gradient"] else empty,
        *(empty if weight is None else torch.empty_like(weight) for weight in weights),
    )


def _backward(dy: Tensor, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    named = dict(zip((*KEPT, *WEIGHTS, *OPTIONS, "map_gradient"), given, strict=True))
    dx, *dweights = _gradients(dy, x, *given)
    if x.numel() == 0:
        return dx, *(dweight.zero_() for dweight in dweights)
    if any(size > 1 and a != b for size, a, b in zip(x.shape, x.stride(), dy.stride(), strict=True)):
        dy = torch.empty_like(x).copy_(dy)
    named |= checked(x, named)
    squeezed, hidden, kind = named["squeezed"], named["hidden"], named["squeeze"]
    dlogits, dhidden, dmoments = (torch.empty_like(t) for t in (named["gate"], hidden, named["moments"]))
    kernel = named["kernel"]
    dkernel = None if kernel is None else kernel.new_empty(len(x), *kernel.shape[1:])
    named |= {"dy": dy, "dx": dx if named["map_gradient"] else None, "squeezed": torch.empty_like(squeezed)}
    named |= {"dgate": dlogits, "dhidden": dhidden, "dkernel": dkernel, "dmoments": dmoments}
    Call("backward", x, **named).run()
    if kind:
        # the statistics went through the same layers
        rows = {1: slice(1), 2: slice(1, 2), 3: slice(2)}[kind]
        dhidden, squeezed = dhidden[rows].flatten(0, 1), squeezed[rows].flatten(0, 1)
        with autocast_disabled(x.device):
            found = dhidden.T @ squeezed, dhidden.sum(0), dlogits.T @ hidden[rows].sum(0), dlogits.sum(0)
        dweights[:4] = [d if d.numel() == 0 else new for d, new in zip(dweights, found, strict=False)]
        if kind == 3:
            dweights[3] = 2 * dweights[3]
    if dkernel is not None:
        dweights[4] = dkernel.sum(0, keepdim=True)
    if named["norm_scale"] is not None:
        dweights[5:] = dmoments[1:], dmoments[:1]
    return dx, *dweights


def checked(x: Tensor, named: dict[str, Any], seen: int | None = None) -> dict[str, Tensor | None]:
    """The weights, contiguous, and of the shapes and dtype that the kernels read; ``seen`` channels are squeezed."""
    c, sums, weights = x.shape[1], SUMS[x.dtype], {name: named[name] for name in WEIGHTS}
    width = 0 if weights["w1"] is None else len(weights["w1"])
    shapes = {"w1": (width, c if seen is None else seen), "b1": (width,), "w2": (c, width), "b2": (c,)}
    for name, weight in weights.items():
        if weight is None:
            continue
        shape = shapes.get(name, (1,))
        if name == "kernel":
            shape = (1, 2, *[weight.shape[-1] | 1] * (x.ndim - 2))
        if tuple(weight.shape) != shape or weight.dtype != sums or not weight.device == x.device:
            raise FovealError(
                f"{name} must have shape {shape} and be {sums} on {x.device} for a map of shape {tuple(x.shape)}, "
                f"got shape {tuple(weight.shape)}, {weight.dtype} on {weight.device}"
            )
        weights[name] = weight.contiguous()
    return weights


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    dy, (x, *saved) = gradients[0], ctx.saved_tensors
    nothing = [None] * len(OPTIONS)
    if dy is None:
        return None, *[None] * len(WEIGHTS), *nothing
    weights, needs = saved[len(KEPT) :], ctx.needs_input_grad
    if torch.is_grad_enabled():
        # gradients that are differentiated again: by plain operations
        wanted = [t for t, need in zip((x, *weights), needs, strict=False) if need]
        found = iter(torch.autograd.grad(_plain(x, weights, ctx.options), wanted, dy, create_graph=True))
        return *(next(found) if need else None for need in needs[: 1 + len(WEIGHTS)]), *nothing
    backward = _backward if _is_plain(dy) and _is_plain(x) else torch.ops.foveal.gate_backward.default
    dx, *dweights = backward(dy, x, *saved, *ctx.options, needs[0])
    dweights = [d if need else None for d, need in zip(dweights, needs[1:], strict=False)]
    return dx if needs[0] else None, *dweights, None, None, *nothing


def _is_plain(x: Tensor) -> bool:
    """Whether the kernel can be called past the dispatcher, which takes 10 us to hand over so many arguments."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


class _WholeGate(torch.autograd.Function):
    """The gradients of ``foveal::gate``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = _forward(x, *given) if _is_plain(x) else torch.ops.foveal.gate.default(x, *given)
        ctx.set_materialize_grads(False)
        weights, ctx.options = given[: len(WEIGHTS)], given[len(WEIGHTS) :]
        ctx.save_for_backward(x, *outputs[1:], *weights)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, *gradients)


def with_gradients(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return _WholeGate.apply(x, *given)


torch.library.impl("foveal::gate", "CPU", _forward)
torch.library.impl("foveal::gate_backward", "CPU", _backward)
# torch.library.register_autograd would do the same, but takes 60 us a call to look for defaults
_AUTOGRAD = torch.library.Library("foveal", "FRAGMENT")
_AUTOGRAD.impl("gate", with_gradients, "Autograd")


def _plain(x: Tensor, weights: Sequence[Tensor | None], options: Sequence[Any]) -> Tensor:
    """Compute the gated map by the literal equations."""
    named: dict[str, Any] = dict(zip((*WEIGHTS, *OPTIONS), [*weights, *options], strict=True))
    sums, channel_gate, spatial_gate = SUMS[x.dtype], None, None
    with autocast_disabled(x.device):
        if named["w1"] is not None:
            statistics = [s for s, bit in (("mean", 1), ("max", 2)) if named["squeeze"] & bit]
            hidden = [
                F.linear(reference.squeeze(x, s).to(sums), named["w1"], named["b1"]).relu()
                for s in statistics
            ]
            logits = torch.stack([F.linear(row, named["w2"], named["b2"]) for row in hidden]).sum(0)
            activate = F.hardsigmoid if named["hard"] else torch.sigmoid
            channel_gate = (named["channel_gain"] * activate(logits)).to(x.dtype)
        if named["kernel"] is not None:
            statistics = reference.spatial_statistics(x, channel_gate).to(sums)
            if named["max_first"]:
                statistics = statistics.flip(1)
            convolve = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
            logits = convolve(statistics, named["kernel"], padding=named["kernel"].shape[-1] // 2)
            if named["norm_scale"] is not None:
                mean, variance = named["norm_mean"], named["norm_var"]
                scale, shift, eps = named["norm_scale"], named["norm_shift"], named["norm_eps"]
                logits = F.batch_norm(logits, mean, variance, scale, shift, mean is None, eps=eps)
            spatial_gate = (named["spatial_gain"] * torch.sigmoid(logits)).to(x.dtype)
    if channel_gate is not None:
        x = reference.channel_scale(x, channel_gate)
    return x if spatial_gate is None else x * spatial_gate
