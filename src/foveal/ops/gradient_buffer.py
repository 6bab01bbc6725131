"""One gradient for a feature map that several operations read, without a map of gradients for each of them."""

from typing import Any

import torch
from torch import Tensor


class GradientBuffer:
    """The gradient of one feature map, summed by the operations that read it, a map for each backward pass.

    Operations that read a map would otherwise return a map of gradients each, for autograd to allocate and add up.
    Instead they add to this buffer and return no gradient for the map, and `ShareInput` returns the sum once
    all of them have run. Only maps that were allocated here or given to `add` are written to, never one that autograd
    or a hook may hold, and a map is not touched any more once it has been returned.
    """

    def __init__(self, x: Tensor) -> None:
        self._shape, self._stride = x.shape, x.stride()
        self._maps: dict[int, Tensor] = {}

    def add(self, gradient: Tensor) -> None:
        """Add a map that the caller has just allocated and does not keep."""
        backward_pass = torch._C._current_graph_task_id()
        if backward_pass in self._maps:
            self._maps[backward_pass].add_(gradient)
        else:
            self._keep(backward_pass, gradient)

    def sum(self, like: Tensor) -> Tensor:
        """Return the sum so far, in the dtype of ``like`` and at first zero, for the caller to add to in place."""
        backward_pass = torch._C._current_graph_task_id()
        if backward_pass not in self._maps:
            self._keep(backward_pass, like.new_empty_strided(self._shape, self._stride).zero_())
        return self._maps[backward_pass]

    def take(self) -> Tensor | None:
        """Return the sum and forget it; None if nothing was added in this backward pass."""
        return self._maps.pop(torch._C._current_graph_task_id(), None)

    def _keep(self, backward_pass: int, gradient: Tensor) -> None:
        self._maps[backward_pass] = gradient
        # a pass that asks for the gradient of a gate alone ends before `take`, and must not leave its map behind
        engine: Any = torch.autograd.Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue]
        engine.queue_callback(lambda: self._maps.pop(backward_pass, None))


def takes_plain_operations(ctx: Any, gradient: Tensor) -> bool:
    """Return whether this backward pass must return its gradients through autograd, computed by plain operations.

    So it is where gradients are differentiated again, vectorised or traced, and where there is no buffer for the
    gradient of the map.
    """
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(gradient)  # pyright: ignore[reportAttributeAccessIssue]
        or torch._C._current_graph_task_id() == -1
        or (ctx.needs_input_grad[0] and ctx.buffer is None)
    )


class ShareInput(torch.autograd.Function):
    """``x`` itself, for the operations that gather their gradients in ``buffer``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, buffer: GradientBuffer) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.buffer = buffer
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        # what came through autograd: from operations that took the plain formulas
        (others,) = gradients
        gathered = ctx.buffer.take()
        if gathered is None:
            return others, None
        return gathered if others is None else gathered.add_(others), None
