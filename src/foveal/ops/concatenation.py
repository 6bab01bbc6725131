"""Non-local's concatenation without the N x N matrix, with and without softmax: exact, by sorting and prefix sums.

Shapes are as in ``reference``: positions come before the width, queries are ``n``, keys ``m``. Sums run in float32
(float64 for float64), also for half inputs and under autocast; the result has the dtype of the last argument and,
where that is the transposed view of a feature map (b, e, m), the same memory order.

Both functions are custom operators: one node under ``torch.compile``, any size, with closed-form first derivatives (a
second derivative raises). While exporting (``torch.export``, ONNX, ``torch.jit.trace``) the literal equation is emitted
instead, from operators that every runtime knows.

On CUDA the prefix sums are ``torch.cumsum`` of floats, which does not promise the same bits in two runs unless
``torch.use_deterministic_algorithms(True)`` is set. On a CPU two runs give the same bits.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.errors import FovealError
from foveal.ops import reference
from foveal.ops.numerics import (
    autocast_disabled,
    contiguous_rows,
    empty_like_value,
    exporting,
    is_empty,
    stored_like_value,
    sum_dtype,
)

# ---------------------------------------------------------------------------------------------- without softmax


@torch.fx.wrap
def concatenation(
    a: Float[Tensor, "b n"], b: Float[Tensor, "b m"], g: Float[Tensor, "b m e"]
) -> Float[Tensor, "b n e"]:
    """Compute ``y_i = 1/m sum_j ReLU(a_i + b_j) g_j`` in O(n log m + (n + m) e) time and O((n + m) e) memory.

    With the keys sorted by ``b``, those that query i sees (``b_j > -a_i``) are the first k, and ``y_i`` is linear
    in ``a_i`` between two keys: ``m y_i = (a_i + b_k) G_k + Y_k`` with the prefix sums ``G_k = sum_{j<=k} g_j`` and
    ``Y_k = sum_{j<=k} (b_j - b_k) g_j``. Every term has the sign of its ``g_j``: a common offset of a against b
    cancels before it is multiplied, not after.

    Args:
        a: query scores ``w_theta . theta_i``.
        b: key scores ``w_phi . phi_j``.
        g: values.

    Returns:
        Output (b, n, e) in the dtype of ``g``.

    Example:
        >>> a, b, g = torch.randn(2, 64), torch.randn(2, 16), torch.randn(2, 16, 32)
        >>> y = concatenation(a, b, g)
        >>> torch.allclose(y, torch.relu(a[:, :, None] + b[:, None, :]) / 16 @ g, atol=1e-5)
        True

    Source: Wang et al., Non-local Neural Networks, eq. 1 with the f of eq. 5 and C(x) = m. The paper's
    ``w . [theta_i, phi_j]`` is ``a_i + b_j``.
    """
    if exporting() or is_empty(a):
        return reference.concatenation(a, b, g)
    return _concatenation(a, b, g)


@torch.library.custom_op("foveal::concatenation", mutates_args=())
def _concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    with autocast_disabled(a.device):
        dtype = sum_dtype(g)
        y, _ = _relu_sums(a.to(dtype), b.to(dtype), contiguous_rows(g))
        return stored_like_value(y.div_(b.shape[1]), g)


@_concatenation.register_fake
def _(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    return empty_like_value(g, a.shape[1])


@register_flop_formula(torch.ops.foveal.concatenation)
def _(a: torch.Size, b: torch.Size, g: torch.Size, **__) -> int:
    return 2 * a[0] * (a[1] + b[1]) * g[2]


@torch.library.custom_op("foveal::concatenation_backward", mutates_args=())
def _concatenation_backward(grad_y: Tensor, a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with autocast_disabled(a.device):
        dtype = sum_dtype(g)
        a_, b_, g_ = a.to(dtype), b.to(dtype), contiguous_rows(g)
        u = contiguous_rows(grad_y) / b.shape[1]
        # grad_g_j = sum_i ReLU(a_i + b_j) u_i is the same sum with queries and keys swapped, and
        # grad_b_j = g_j . sum_{i: a_i > -b_j} u_i, grad_a_i = u_i . sum_{j: b_j > -a_i} g_j
        grad_g, seen_u = _relu_sums(b_, a_, u)
        grad_b = torch.linalg.vecdot(g_, seen_u)
        del seen_u
        seen_g, _ = _PrefixSums(a_, b_)(g_)
        grad_a = torch.linalg.vecdot(u, seen_g)
        return grad_a.to(a.dtype), grad_b.to(b.dtype), stored_like_value(grad_g, g)


@_concatenation_backward.register_fake
def _(grad_y: Tensor, a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), empty_like_value(g, g.shape[1])


def _save_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


_concatenation.register_autograd(
    lambda ctx, grad_y: _concatenation_backward(grad_y, *ctx.saved_tensors), setup_context=_save_inputs
)


def _relu_sums(a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sum_j ReLU(a_i + b_j) g_j`` and ``sum_{j: a_i + b_j > 0} g_j``, both (b, n, e)."""
    # a key that is NaN makes every result NaN, as in a sum over all keys
    a = a.masked_fill(b.isnan().any(1, keepdim=True), float("nan"))
    order, b_sorted, count = _sort_keys(a, b)
    prefix_sums = _cumsum_rows_(_gather_rows_after_zero(g, order))
    seen = _gather_rows(prefix_sums, count)
    # Y_{k+1} = Y_k + (b_k - b_{k+1}) G_k, Y_0 = Y_1 = 0; b_0 stands for b_1
    prefix_sums[:, :-1].mul_((b_sorted[:, :-1] - b_sorted[:, 1:]).unsqueeze(-1))
    y = _gather_rows(_cumsum_rows_(prefix_sums), (count - 1).clamp_min_(0))
    # a query that sees no key has a_i + b_1 <= 0
    return y.addcmul_(seen, (a + b_sorted.gather(1, count)).relu_().unsqueeze(-1)), seen


# ------------------------------------------------------------------------------------------ with softmax (SAGAN)


@torch.fx.wrap
def concatenation_attention(
    a: Float[Tensor, "b n"],
    b: Float[Tensor, "b m"],
    value: Float[Tensor, "b m e"],
    *,
    negative_slope: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """Compute ``y_i = sum_j softmax_j(leaky_relu(a_i + b_j)) v_j`` in O(n log m + (n + m) e) time.

    With ``negative_slope=1`` the score is linear and ``a_i`` cancels: every query gets the same distribution
    ``softmax(b)`` (what GCNet observed in trained non-local networks). Below 1, ``exp`` factorises on either side
    of the threshold ``b_j = -a_i``: with the keys sorted by ``b``, both sides are prefix sums of
    ``exp(b_j - b_max) v_j`` and ``exp(slope (b_j - b_max)) v_j``, which cannot overflow, and a term that underflows
    is below ``exp(-87)`` of the sum it belongs to. Memory is O((n + m) e).

    Args:
        a: query scores.
        b: key scores.
        value: values.
        negative_slope: slope of the score below zero, in [0, 1]; 0 is ReLU, 1 the linear score.

    Returns:
        Output (b, n, e) in the dtype of ``value``.

    Raises:
        ValueError: ``negative_slope`` is outside [0, 1].

    Example:
        >>> a, b, value = torch.randn(2, 64), torch.randn(2, 16), torch.randn(2, 16, 32)
        >>> y = concatenation_attention(a, b, value)
        >>> torch.allclose(y, torch.softmax(b, 1)[:, None] @ value + torch.zeros(64, 1), atol=1e-5)
        True

    Source: softmax as in Zhang et al., SAGAN, eq. 1, over the similarity of Non-local Neural Networks eq. 5 with the
    ReLU generalised to a leaky one; Cao et al., GCNet, section 3 for the shared distribution.
    """
    if not 0 <= negative_slope <= 1:
        raise FovealError(f"negative_slope must be in [0, 1], got {negative_slope}")
    if exporting() or is_empty(a):
        return reference.concatenation_attention(a, b, value, negative_slope=negative_slope)
    if negative_slope < 1:
        return _concatenation_attention(a, b, value, float(negative_slope))
    with autocast_disabled(a.device):
        dtype = sum_dtype(value)
        shared = torch.softmax(b.to(dtype), 1).unsqueeze(1) @ value.to(dtype)
        # a changes nothing, but stays in the graph: its gradient is zero, not absent
        return (shared + 0 * a.to(dtype).unsqueeze(-1)).to(value.dtype)


@torch.library.custom_op("foveal::concatenation_attention", mutates_args=())
def _concatenation_attention(a: Tensor, b: Tensor, value: Tensor, slope: float) -> Tensor:
    with autocast_disabled(a.device):
        dtype = sum_dtype(value)
        softmax, v = _SplitSoftmax(a.to(dtype), b.to(dtype), slope), contiguous_rows(value)
        positive, _ = softmax.over_keys(v * softmax.exp_b.unsqueeze(-1))
        y = positive.mul_(softmax.w_pos.unsqueeze(-1))
        _, negative = softmax.over_keys(v * softmax.exp_slope_b.unsqueeze(-1))
        return stored_like_value(y.addcmul_(negative, softmax.w_neg.unsqueeze(-1)), value)


@_concatenation_attention.register_fake
def _(a: Tensor, b: Tensor, value: Tensor, slope: float) -> Tensor:
    return empty_like_value(value, a.shape[1])


@register_flop_formula(torch.ops.foveal.concatenation_attention)
def _(a: torch.Size, b: torch.Size, value: torch.Size, *_, **__) -> int:
    return 2 * a[0] * 2 * (a[1] + b[1]) * value[2]


@torch.library.custom_op("foveal::concatenation_attention_backward", mutates_args=())
def _concatenation_attention_backward(
    grad_y: Tensor, a: Tensor, b: Tensor, value: Tensor, y: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    with autocast_disabled(a.device):
        dtype = sum_dtype(value)
        a_, b_, v, u = a.to(dtype), b.to(dtype), contiguous_rows(value), contiguous_rows(grad_y)
        softmax = _SplitSoftmax(a_, b_, slope)
        delta = torch.linalg.vecdot(u, contiguous_rows(y))
        # softmax: d loss / d score_ij = w_ij (u_i . v_j - delta_i), which sums to 0 over j, so that the part of
        # grad_a below the threshold is -slope times the part above
        positive, _ = softmax.over_keys(v * softmax.exp_b.unsqueeze(-1))
        grad_a = (1 - slope) * (softmax.w_pos * torch.linalg.vecdot(u, positive) - softmax.total_pos * delta)
        del positive
        over_queries = _PrefixSums(b_, a_)
        grad_v_pos, _ = over_queries(u * softmax.w_pos.unsqueeze(-1))
        grad_v_pos.mul_(softmax.exp_b.unsqueeze(-1))
        _, grad_v_neg = over_queries(u * softmax.w_neg.unsqueeze(-1))
        grad_v_neg.mul_(softmax.exp_slope_b.unsqueeze(-1))
        delta_pos, _ = over_queries((delta * softmax.w_pos).unsqueeze(-1))
        _, delta_neg = over_queries((delta * softmax.w_neg).unsqueeze(-1))
        grad_b = torch.linalg.vecdot(v, grad_v_pos) + slope * torch.linalg.vecdot(v, grad_v_neg)
        grad_b -= softmax.exp_b * delta_pos.squeeze(-1) + slope * softmax.exp_slope_b * delta_neg.squeeze(-1)
        grad_v = stored_like_value(grad_v_pos.add_(grad_v_neg), value)
        return grad_a.to(a.dtype), grad_b.to(b.dtype), grad_v


@_concatenation_attention_backward.register_fake
def _(
    grad_y: Tensor, a: Tensor, b: Tensor, value: Tensor, y: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), empty_like_value(value, value.shape[1])


def _save_inputs_and_output(ctx, inputs, output) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors, output)


_concatenation_attention.register_autograd(
    lambda ctx, grad_y: (*_concatenation_attention_backward(grad_y, *ctx.saved_tensors, ctx.slope), None),
    setup_context=_save_inputs_and_output,
)


class _SplitSoftmax:
    """The softmax weights of ``leaky_relu(a_i + b_j)``, factorised on either side of zero.

    ``softmax_ij = w_pos_i exp_b_j`` where ``a_i + b_j > 0``, and
    ``softmax_ij = w_neg_i exp_slope_b_j`` elsewhere,
    with ``exp_b_j = exp(b_j - b_max)`` and ``exp_slope_b_j = exp(slope (b_j - b_max))``.
    ``total_pos`` (b, n) is the weight of all keys on the positive side.
    """

    def __init__(self, a: Tensor, b: Tensor, slope: float):
        # a key that is NaN makes every result NaN, as in a sum over all keys
        a = a.masked_fill(b.isnan().any(1, keepdim=True), float("nan"))
        below_max = (b - b.amax(1, keepdim=True)).clamp_min_(torch.finfo(b.dtype).min)
        self.exp_b, self.exp_slope_b = below_max.exp(), (slope * below_max).exp_()
        self.over_keys = _PrefixSums(a, b)
        # w_neg over w_pos, at most 1: exp(slope (a_i + b_max)) / exp(a_i + b_max) where the query sees a key
        ratio = ((slope - 1) * (a + b.amax(1, keepdim=True)).clamp_min_(0)).exp_()
        sum_pos = self.over_keys(self.exp_b.unsqueeze(-1))[0].squeeze(-1)
        sum_neg = ratio * self.over_keys(self.exp_slope_b.unsqueeze(-1))[1].squeeze(-1)
        self.w_pos, self.w_neg = 1 / (sum_pos + sum_neg), ratio / (sum_pos + sum_neg)
        self.total_pos = sum_pos * self.w_pos


# -------------------------------------------------------------------------------------------------- prefix sums


class _PrefixSums:
    """Sums over the keys that a query sees (``a_i + b_j > 0``) and over those that it does not."""

    def __init__(self, a: Tensor, b: Tensor):
        self.order, _, self.count = _sort_keys(a, b)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        prefix_sums = _cumsum_rows_(_gather_rows_after_zero(x, self.order))
        seen = _gather_rows(prefix_sums, self.count)
        return seen, prefix_sums[:, -1:] - seen


def _sort_keys(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the keys in falling order of b, their b, and how many of them each query sees.

    The first two (b, 1 + m) have the first key twice; the third is (b, n).
    """
    negative, order = torch.sort(-b, dim=1)
    # a_i + b_j > 0 exactly when -b_j < a_i: rounding a sum keeps its sign
    count = torch.searchsorted(negative, a.contiguous())
    order, falling = (torch.cat([x[:, :1], x], 1) for x in (order, -negative))
    return order, falling, count


def _gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[batch, index[batch, i], :]`` as a new contiguous tensor (b, i, e)."""
    batch, m, width = x.shape
    if batch > 1:
        index = index + torch.arange(0, batch * m, m, device=index.device).unsqueeze(1)
    rows = x.reshape(batch * m, width).index_select(0, index.flatten())
    return rows.view(batch, index.shape[1], width)


def _gather_rows_after_zero(x: Tensor, order: Tensor) -> Tensor:
    """Return the rows of ``x`` in ``order``, whose first entry stands for a row of zeros."""
    taken = _gather_rows(x, order)
    taken[:, 0] = 0
    return taken


def _cumsum_rows_(x: Tensor) -> Tensor:
    """Replace ``x`` by its inclusive sums along dimension 1.

    PyTorch's scan over rows runs down one column after the other on a CPU; here whole rows are added, in runs of
    32, and only the runs' totals are scanned (which PyTorch does in float64). Rounding errors grow with 32 + a
    float32 rounding of the total, not with the number of rows.
    """
    run = 32
    rows = x.shape[1] // run * run
    if x.is_cuda or rows == 0:
        return x.cumsum_(1)
    runs = x[:, :rows].unflatten(1, (-1, run))
    for i in range(1, run):
        runs[:, :, i] += runs[:, :, i - 1]
    totals = runs[:, :, -1].cumsum(1)
    runs[:, 1:] += totals[:, :-1].unsqueeze(2)
    x[:, rows:].cumsum_(1).add_(totals[:, -1:])
    return x
