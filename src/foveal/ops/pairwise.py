"""Non-local pairwise functions without the N x N matrix: exact, by regrouping, sorting and prefix sums.

Shapes as in ``reference``: positions before width, queries ``n``, keys ``m``. Sums run in float32 (float64 for
float64), also for half inputs and under autocast; the result has the dtype of the last argument and, where that
is the transposed view of a feature map (b, e, m), the same memory order.

The sorted forms are custom operators: one node under ``torch.compile``, any size, with closed-form first
derivatives (a second derivative raises). While exporting (``torch.export``, ONNX, ``torch.jit.trace``) the literal
equation is emitted instead, from operators that every runtime knows.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.errors import FovealError
from foveal.ops import reference


def exporting() -> bool:
    """True while a graph is recorded for another runtime, which knows no custom operators."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or _tracing()


def _tracing() -> bool:
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def known_empty(query: Tensor) -> bool:
    """True where an empty batch or no query leaves nothing to compute; False while sizes may be symbolic."""
    return not torch.compiler.is_compiling() and query.numel() == 0


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which sums over ``x`` run."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def full_precision(device: torch.device) -> AbstractContextManager:
    """Autocast off: the caller has chosen its dtypes."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):  # meta has no autocast to ask about
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def empty_like_value(value: Float[Tensor, "b m e"], n: int | torch.SymInt) -> Float[Tensor, "b n e"]:
    """Uninitialised (b, n, e), in memory (b, e, n) where ``value`` is the view of a feature map stored so."""
    batch, _, e = value.shape
    return value.new_empty(batch, e, n).mT if is_transposed(value) else value.new_empty(batch, n, e)


def is_transposed(x: Tensor) -> bool:
    """True for (b, m, e) seen from a feature map stored (b, e, m)."""
    return x.stride(-1) != 1 and x.stride(-2) == 1


# -------------------------------------------------------------------------------------------------- dot product


@torch.fx.wrap
def dot_product(
    theta: Float[Tensor, "b n d"],
    phi: Float[Tensor, "b m d"],
    g: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """``y_i = 1/m sum_j scale (theta_i . phi_j) g_j``, multiplied in the cheaper order.

    ``theta (phi^T g)`` costs ``(n + m) d e`` multiplications, ``(theta phi^T) g`` costs ``n m (d + e)``: the first
    is taken unless the second is known to be cheaper (few positions, wide vectors). Sizes that are symbolic under
    ``torch.compile`` or ``torch.export`` take the first and stay symbolic.

    Args:
        theta: queries. phi: keys. g: values.
        scale: factor of every similarity.

    Returns:
        Output (b, n, e) in the dtype of ``g``.

    Example:
        >>> theta, phi, g = torch.randn(2, 64, 8), torch.randn(2, 16, 8), torch.randn(2, 16, 32)
        >>> y = dot_product(theta, phi, g)
        >>> torch.allclose(y, (theta @ phi.mT / 16) @ g, atol=1e-5)
        True

    Source: Wang et al., Non-local Neural Networks, eq. 1 with the f of eq. 4 and C(x) = m; only the order of the
    products differs.
    """
    n, d = theta.shape[1:]
    m, e = g.shape[1:]
    with full_precision(theta.device):
        dtype = sum_dtype(g)
        theta, phi, value = theta.to(dtype), phi.to(dtype), g.to(dtype)
        if _known(n * m * (d + e) < (n + m) * d * e):
            y = (theta @ phi.mT * (scale / m)) @ value
        else:
            # written transposed where g is, so that the caller's feature map needs no copy
            summary = (value.mT @ phi) * (scale / m)
            y = (summary @ theta.mT).mT if is_transposed(g) else theta @ summary.mT
        return y.to(g.dtype)


def _known(condition: bool | torch.SymBool) -> bool:
    """``condition`` if it follows from the sizes alone; False, without a guard, if a symbolic size decides."""
    if _tracing():  # sizes are tensors
        return False
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


# ------------------------------------------------------------------------------------------------ concatenation


@torch.fx.wrap
def concatenation(
    a: Float[Tensor, "b n"], b: Float[Tensor, "b m"], g: Float[Tensor, "b m e"]
) -> Float[Tensor, "b n e"]:
    """``y_i = 1/m sum_j ReLU(a_i + b_j) g_j`` in O(n log m + (n + m) e) time and O((n + m) e) memory.

    With the keys sorted by ``b``, those that query i sees (``b_j > -a_i``) are the first k, and ``y_i`` is linear
    in ``a_i`` between two keys: ``m y_i = (a_i + b_k) G_k + Y_k`` with the running sums ``G_k = sum_{j<=k} g_j`` and
    ``Y_k = sum_{j<=k} (b_j - b_k) g_j``. Every term has the sign of its ``g_j``: a common offset of a against b
    cancels before it is multiplied, not after.

    Args:
        a: query scores ``w_theta . theta_i``. b: key scores ``w_phi . phi_j``. g: values.

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
    if exporting() or known_empty(a):
        return reference.concatenation(a, b, g)
    return _concatenation(a, b, g)


@torch.library.custom_op("foveal::concatenation", mutates_args=())
def _concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    with full_precision(a.device):
        dtype = sum_dtype(g)
        y, _ = _hinge_sums(a.to(dtype), b.to(dtype), _rows(g))
        return _like_value(y.div_(b.shape[1]), g)


@_concatenation.register_fake
def _(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    return empty_like_value(g, a.shape[1])


@register_flop_formula(torch.ops.foveal.concatenation)
def _(a: torch.Size, b: torch.Size, g: torch.Size, **__) -> int:
    return 2 * a[0] * (a[1] + b[1]) * g[2]


@torch.library.custom_op("foveal::concatenation_backward", mutates_args=())
def _concatenation_backward(grad_y: Tensor, a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(a.device):
        dtype = sum_dtype(g)
        a_, b_, g_, u = a.to(dtype), b.to(dtype), _rows(g), _rows(grad_y) / b.shape[1]
        # grad_g_j = sum_i ReLU(a_i + b_j) u_i is the same sum with queries and keys swapped, and
        # grad_b_j = g_j . sum_{i: a_i > -b_j} u_i, grad_a_i = u_i . sum_{j: b_j > -a_i} g_j
        grad_g, seen_u = _hinge_sums(b_, a_, u)
        grad_b = torch.linalg.vecdot(g_, seen_u)
        del seen_u
        grad_a = torch.linalg.vecdot(u, _Running(a_, b_)(g_)[0])
        return grad_a.to(a.dtype), grad_b.to(b.dtype), _like_value(grad_g, g)


@_concatenation_backward.register_fake
def _(grad_y: Tensor, a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), empty_like_value(g, g.shape[1])


def _save_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


_concatenation.register_autograd(
    lambda ctx, grad_y: _concatenation_backward(grad_y, *ctx.saved_tensors), setup_context=_save_inputs
)


def _hinge_sums(a: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_j ReLU(a_i + b_j) g_j`` and ``sum_{j: a_i + b_j > 0} g_j``, both (b, n, e)."""
    a = a.masked_fill(b.isnan().any(1, keepdim=True), float("nan"))  # as in a sum over every key
    order, b_sorted, count = _thresholds(a, b)
    running = _running_sum(_take_after_zero(g, order))
    seen = _take(running, count)
    # Y_{k+1} = Y_k + (b_k - b_{k+1}) G_k, Y_0 = Y_1 = 0; b_0 stands for b_1
    running[:, :-1].mul_((b_sorted[:, :-1] - b_sorted[:, 1:]).unsqueeze(-1))
    y = _take(_running_sum(running), (count - 1).clamp_min_(0))
    # a query that sees no key has a_i + b_1 <= 0
    return y.addcmul_(seen, (a + b_sorted.gather(1, count)).relu_().unsqueeze(-1)), seen


def _thresholds(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys in falling order of b and their b, both with the first key twice; how many of them each query sees."""
    negative, order = torch.sort(-b, dim=1)
    # a_i + b_j > 0 exactly when -b_j < a_i: rounding a sum keeps its sign
    count = torch.searchsorted(negative, a.contiguous())
    order, falling = (torch.cat([x[:, :1], x], 1) for x in (order, -negative))
    return order, falling, count


def _take(x: Tensor, index: Tensor) -> Tensor:
    """``x[batch, index[batch, i], :]`` as a new contiguous tensor (b, i, e)."""
    batch, m, width = x.shape
    if batch > 1:
        index = index + torch.arange(0, batch * m, m, device=index.device).unsqueeze(1)
    return x.reshape(batch * m, width).index_select(0, index.flatten()).view(batch, index.shape[1], width)


def _take_after_zero(x: Tensor, order: Tensor) -> Tensor:
    """Rows of ``x`` in ``order``, whose first entry stands for a row of zeros."""
    taken = _take(x, order)
    taken[:, 0] = 0
    return taken


def _running_sum(x: Tensor) -> Tensor:
    """Inclusive sums along dimension 1, in place.

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


def _like_value(y: Tensor, value: Tensor) -> Tensor:
    """Contiguous ``y`` in the dtype and memory order of ``value``."""
    if not is_transposed(value):
        return y.to(value.dtype)
    stored = y.new_empty(y.shape[0], y.shape[2], y.shape[1], dtype=value.dtype)
    for target, source in zip(
        stored, y, strict=True
    ):  # PyTorch copies a transposed matrix in blocks, a batch not
        target.copy_(source.T)
    return stored.mT


def _rows(x: Tensor) -> Tensor:
    """``x`` (b, m, e) contiguous and in the dtype of its sums."""
    if is_transposed(x):
        rows = x.new_empty(x.shape)
        for target, source in zip(rows, x, strict=True):
            target.copy_(source)
        x = rows
    return x.to(sum_dtype(x)).contiguous()


# ---------------------------------------------------------------------------- concatenation under softmax (SAGAN)


@torch.fx.wrap
def concatenation_attention(
    a: Float[Tensor, "b n"],
    b: Float[Tensor, "b m"],
    value: Float[Tensor, "b m e"],
    *,
    negative_slope: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """``y_i = sum_j softmax_j(leaky_relu(a_i + b_j)) v_j`` in O(n log m + (n + m) e) time, O((n + m) e) memory.

    With ``negative_slope=1`` the score is linear and ``a_i`` cancels: every query gets the same distribution
    ``softmax(b)`` (what GCNet observed in trained non-local networks). Below 1, ``exp`` factorises on either side
    of the threshold ``b_j = -a_i``: with the keys sorted by ``b``, both sides are running sums of
    ``exp(b_j - b_max) v_j`` and ``exp(slope (b_j - b_max)) v_j``, which cannot overflow, and a term that underflows
    is below ``exp(-87)`` of the sum it belongs to.

    Args:
        a: query scores. b: key scores. value: values.
        negative_slope: slope of the score below zero, in [0, 1]; 0 is ReLU, 1 the linear score.

    Returns:
        Output (b, n, e) in the dtype of ``value``.

    Raises:
        ValueError: ``negative_slope`` outside [0, 1].

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
    if exporting() or known_empty(a):
        return reference.concatenation_attention(a, b, value, negative_slope=negative_slope)
    if negative_slope < 1:
        return _concatenation_attention(a, b, value, float(negative_slope))
    with full_precision(a.device):
        dtype = sum_dtype(value)
        shared = torch.softmax(b.to(dtype), 1).unsqueeze(1) @ value.to(dtype)
        # a changes nothing, but stays in the graph: its gradient is zero, not absent
        return (shared + 0 * a.to(dtype).unsqueeze(-1)).to(value.dtype)


@torch.library.custom_op("foveal::concatenation_attention", mutates_args=())
def _concatenation_attention(a: Tensor, b: Tensor, value: Tensor, slope: float) -> Tensor:
    with full_precision(a.device):
        dtype = sum_dtype(value)
        sides, v = _Sides(a.to(dtype), b.to(dtype), slope), _rows(value)
        seen, _ = sides.over_keys(v * sides.steep.unsqueeze(-1))
        y = seen.mul_(sides.above.unsqueeze(-1))
        _, unseen = sides.over_keys(v * sides.flat.unsqueeze(-1))
        return _like_value(y.addcmul_(unseen, sides.below.unsqueeze(-1)), value)


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
    with full_precision(a.device):
        dtype = sum_dtype(value)
        a_, b_, v, u = a.to(dtype), b.to(dtype), _rows(value), _rows(grad_y)
        sides = _Sides(a_, b_, slope)
        delta = torch.linalg.vecdot(u, _rows(y))
        # softmax: d loss / d score_ij = w_ij (u_i . v_j - delta_i), which sums to 0 over j, so that the part of
        # grad_a below the threshold is -slope times the part above
        seen, _ = sides.over_keys(v * sides.steep.unsqueeze(-1))
        grad_a = (1 - slope) * (sides.above * torch.linalg.vecdot(u, seen) - sides.near * delta)
        del seen
        queries = _Running(b_, a_)
        near, _ = queries(u * sides.above.unsqueeze(-1))
        near.mul_(sides.steep.unsqueeze(-1))
        _, far = queries(u * sides.below.unsqueeze(-1))
        far.mul_(sides.flat.unsqueeze(-1))
        near_delta, _ = queries((delta * sides.above).unsqueeze(-1))
        _, far_delta = queries((delta * sides.below).unsqueeze(-1))
        grad_b = torch.linalg.vecdot(v, near) + slope * torch.linalg.vecdot(v, far)
        grad_b -= sides.steep * near_delta.squeeze(-1) + slope * sides.flat * far_delta.squeeze(-1)
        return grad_a.to(a.dtype), grad_b.to(b.dtype), _like_value(near.add_(far), value)


@_concatenation_attention_backward.register_fake
def _(
    grad_y: Tensor, a: Tensor, b: Tensor, value: Tensor, y: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), empty_like_value(value, value.shape[1])


def _save_all(ctx, inputs, output) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors, output)


_concatenation_attention.register_autograd(
    lambda ctx, grad_y: (*_concatenation_attention_backward(grad_y, *ctx.saved_tensors, ctx.slope), None),
    setup_context=_save_all,
)


class _Sides:
    """``softmax_ij`` is ``above_i steep_j`` where query i sees key j (``a_i + b_j > 0``), else ``below_i flat_j``."""

    def __init__(self, a: Tensor, b: Tensor, slope: float):
        a = a.masked_fill(b.isnan().any(1, keepdim=True), float("nan"))  # as in a sum over every key
        fall = (b - b.amax(1, keepdim=True)).clamp_min_(torch.finfo(b.dtype).min)
        self.steep, self.flat = fall.exp(), (slope * fall).exp_()
        self.over_keys = _Running(a, b)
        # below over above, at most 1: exp(slope (a_i + b_max)) / exp(a_i + b_max) where the query sees a key
        ratio = ((slope - 1) * (a + b.amax(1, keepdim=True)).clamp_min_(0)).exp_()
        near = self.over_keys(self.steep.unsqueeze(-1))[0].squeeze(-1)
        far = ratio * self.over_keys(self.flat.unsqueeze(-1))[1].squeeze(-1)
        self.above, self.below = 1 / (near + far), ratio / (near + far)
        self.near = near * self.above  # the weight on the keys that are seen


class _Running:
    """Sums over the keys that a query sees (``a_i + b_j > 0``) and over those that it does not."""

    def __init__(self, a: Tensor, b: Tensor):
        self.order, _, self.count = _thresholds(a, b)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        running = _running_sum(_take_after_zero(x, self.order))
        seen = _take(running, self.count)
        return seen, running[:, -1:] - seen
