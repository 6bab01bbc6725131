"""Softmax attention in tiles of queries and keys: any widths, any dtype, peak memory independent of n x m.

Forward sums ``exp(s_ij - shift_i) v_j`` tile by tile; backward recomputes the weights of a tile from the saved
log-sum-exp, ``w_ij = exp(s_ij - lse_i)``. Sums run in float32 (float64 for float64).
Written for CPUs: a tile of scores stays in the cache of the cores that wrote it. It runs on any device.

Custom operators, so that ``torch.compile`` keeps each as one node; first derivatives only.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from foveal.ops.numerics import autocast_disabled, empty_like_value, is_transposed, sum_dtype

# exp(40) = 2e17 and exp(-50) = 2e-22 are far from the ends of float32, 3e38 and 1e-38
MAX_EXPONENT, MIN_EXPONENT = 40, -50
# scores in flight: 2 MiB in float32, the second-level cache of a server core
TILE_ELEMENTS = 512 * 1024


def _slices(size: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


def _tiles(batch: int, n: int, m: int, width: int = 1) -> tuple[int, int, int]:
    """Return the tile of (batch, queries, keys) with about TILE_ELEMENTS / width scores, at most that many."""
    budget = max(TILE_ELEMENTS // width, 1)
    keys = _even_tile(m, max(1024 if width == 1 else 128, budget // max(n, 1)))
    queries = _even_tile(n, max(budget // keys, 1))
    return _even_tile(batch, max(budget // (queries * keys), 1)), queries, keys


def _even_tile(size: int, most: int) -> int:
    """Return the tile, at most ``most``, that cuts ``size`` into the fewest and then most equal parts."""
    parts = max(-(-size // most), 1)
    return max(-(-size // parts), 1)


class _Workspace:
    """One allocation that serves every tile, the smaller ones at the edges too; its content is undefined."""

    def __init__(self, like: Tensor, elements: int):
        self.flat = like.new_empty(elements)

    def __call__(self, *shape: int) -> Tensor:
        elements = 1
        for size in shape:
            elements *= size
        return self.flat[:elements].view(shape)


def _mask_tile(mask: Tensor, *at: slice) -> Tensor:
    """Return ``mask[at]``, where a dimension of size one stands for all."""
    return mask[tuple(slice(None) if size == 1 else s for s, size in zip(at, mask.shape, strict=True))]


def _softmax_forward(
    scores: Callable[[slice, slice, slice, Tensor | None], Tensor],
    bound: Tensor,
    value: Tensor,
    tile: tuple[int, int, int],
    y: Tensor,
) -> Tensor:
    """Write ``softmax(scores) value`` to ``y`` (b, n, e) and return the log-sum-exp (b, n).

    ``scores(bs, qs, ks, shift)`` is a tile of scores less ``shift``, ``bound`` (b, n, 1) at least their magnitude.
    Softmax needs no exact maximum, only a shift with which nothing overflows and nothing that matters underflows:
    the largest of each row must come to between MIN_EXPONENT and MAX_EXPONENT. Often the bound says as much, or the
    first keys do; else the scores are computed once more to find the maximum.
    """
    batch, n, e = y.shape
    m = value.shape[1]
    lse = value.new_empty(batch, n)
    sums = _Workspace(value, tile[0] * tile[1] * e)
    transposed = is_transposed(value)
    for bs in _slices(batch, tile[0]):
        for qs in _slices(n, tile[1]):
            # the largest score of the row lies between these two
            upper = bound[bs, qs]
            lower = -upper
            for ks in _slices(m, tile[2]):
                if bool((upper - lower <= MAX_EXPONENT - MIN_EXPONENT).all()):
                    break
                lower = torch.maximum(lower, scores(bs, qs, ks, None).amax(-1, keepdim=True))
            shift = torch.clamp(upper - MAX_EXPONENT, lower, lower - MIN_EXPONENT)
            total = torch.zeros_like(shift)
            b_, n_ = shift.shape[:2]
            part = sums(b_, e, n_).mT if transposed else sums(b_, n_, e)
            for ks in _slices(m, tile[2]):
                weights = scores(bs, qs, ks, shift).exp_()
                total += weights.sum(-1, keepdim=True)
                torch.baddbmm(part, weights, value[bs, ks], beta=int(ks.start > 0), out=part)
            # a query without a key: an empty sum here, zero weights in backward
            y[bs, qs] = part.div_(total.clamp_min(torch.finfo(value.dtype).tiny))
            lse[bs, qs] = (total.log() + shift).masked_fill_(total == 0, float("inf")).squeeze(-1)
    return lse


def _with_column(x: Tensor, column: Tensor | int) -> Tensor:
    """Return ``x`` (b, n, d) and one more column, in the memory order of ``x``."""
    batch, n, d = x.shape
    wider = x.new_empty(batch, d + 1, n).mT if is_transposed(x) else x.new_empty(batch, n, d + 1)
    wider[..., :d] = x
    wider[..., d:] = column
    return wider


class _DotScores:
    """Tiles of ``scale * q_i . k_j - shift_i``; the subtraction is one more column of the product."""

    def __init__(self, q: Tensor, k: Tensor, mask: Tensor | None, scale: float, tile: tuple[int, int, int]):
        self.q = _with_column(q * scale, 0)
        self.k = _with_column(k, 1)
        self.masked_out = None if mask is None else ~mask
        self.buffer = _Workspace(q, tile[0] * tile[1] * tile[2])

    def __call__(self, bs: slice, qs: slice, ks: slice, shift: Tensor | None) -> Tensor:
        q, k = self.q[bs, qs], self.k[bs, ks]
        if ks.start == 0:
            q[..., -1:] = 0 if shift is None else -shift
        s = torch.bmm(q, k.mT, out=self.buffer(*q.shape[:2], k.shape[1]))
        return (
            s
            if self.masked_out is None
            else s.masked_fill_(_mask_tile(self.masked_out, bs, qs, ks), float("-inf"))
        )


def _lengths(x: Tensor) -> Tensor:
    """Return the Euclidean lengths (b, n) of the rows of ``x`` (b, n, d)."""
    # vector_norm goes through the transposed view of a feature map element by element, up to 90 times as slowly
    return torch.linalg.vecdot(x, x).sqrt_()


@torch.library.custom_op("foveal::softmax_attention", mutates_args=())
def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the output (b, n, e) and the log-sum-exp (b, n)."""
    batch, n, _ = query.shape
    y = empty_like_value(value, n)
    with autocast_disabled(value.device):
        dtype = sum_dtype(value)
        q, k = query.to(dtype), key.to(dtype)
        tile = _tiles(batch, n, key.shape[1])
        longest = _lengths(k).amax(1)[:, None, None]
        bound = abs(scale) * _lengths(q).unsqueeze(-1) * longest
        lse = _softmax_forward(_DotScores(q, k, mask, scale, tile), bound, value.to(dtype), tile, y)
    return y, lse


@softmax_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    lse = value.new_empty(query.shape[:2], dtype=sum_dtype(value))
    return empty_like_value(value, query.shape[1]), lse


@register_flop_formula(torch.ops.foveal.softmax_attention)
def _(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    return 2 * query[0] * query[1] * key[1] * (query[2] + value[2])


@torch.library.custom_op("foveal::softmax_attention_backward", mutates_args=())
def _softmax_attention_backward(
    grad_y: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    y: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, _ = query.shape
    m = key.shape[1]
    with autocast_disabled(value.device):
        dtype = sum_dtype(value)
        q, k, v, u = query.to(dtype), key.to(dtype), value.to(dtype), grad_y.to(dtype)
        grad_q, grad_k, grad_v = (empty_like_value(x, x.shape[1]).zero_() for x in (q, k, v))
        tile = _tiles(batch, n, m)
        scores = _DotScores(q, k, mask, scale, tile)
        # u_i . v_j - u_i . y_i, the subtraction again as one more column
        u_less = _with_column(u, -torch.linalg.vecdot(u, y.to(dtype)).unsqueeze(-1))
        v_one = _with_column(v, 1)
        buffer = _Workspace(q, tile[0] * tile[1] * tile[2])
        for bs in _slices(batch, tile[0]):
            for qs in _slices(n, tile[1]):
                for ks in _slices(m, tile[2]):
                    weights = scores(bs, qs, ks, lse[bs, qs].unsqueeze(-1)).exp_()
                    grad_v[bs, ks].baddbmm_(weights.mT, u[bs, qs])
                    grad_s = torch.bmm(u_less[bs, qs], v_one[bs, ks].mT, out=buffer(*weights.shape)).mul_(
                        weights
                    )
                    grad_q[bs, qs].baddbmm_(grad_s, k[bs, ks], alpha=scale)
                    grad_k[bs, ks].baddbmm_(grad_s.mT, q[bs, qs], alpha=scale)
        return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype)


@_softmax_attention_backward.register_fake
def _(
    grad_y: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    y: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (empty_like_value(x, x.shape[1]) for x in (query, key, value))
    return grad_q, grad_k, grad_v


def _save_softmax(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


softmax_attention.register_autograd(
    lambda ctx, grad_y, _: (*_softmax_attention_backward(grad_y, *ctx.saved_tensors, ctx.scale), None, None),
    setup_context=_save_softmax,
)


# --------------------------------------------------------------------------------------------------- perceptron


@torch.library.custom_op("foveal::perceptron_attention", mutates_args=())
def perceptron_attention(query: Tensor, key: Tensor, weight: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the output (b, n, e) and the log-sum-exp (b, n)."""
    batch, n, d = query.shape
    m = key.shape[1]
    y = empty_like_value(value, n)
    with autocast_disabled(value.device):
        dtype = sum_dtype(value)
        q, k, w, v = (x.to(dtype) for x in (query, key, weight, value))
        tile = _tiles(batch, n, m, d)
        buffer = _Workspace(q, tile[0] * tile[1] * tile[2] * d)

        def scores(bs: slice, qs: slice, ks: slice, shift: Tensor | None) -> Tensor:
            s = _tanh_sums(q[bs, qs], k[bs, ks], buffer) @ w
            return s if shift is None else s.sub_(shift)

        bound = w.abs().sum().expand(batch, n, 1)  # tanh lies in [-1, 1]
        lse = _softmax_forward(scores, bound, v, tile, y)
    return y, lse


def _tanh_sums(q: Tensor, k: Tensor, buffer: _Workspace) -> Tensor:
    """Compute ``tanh(q_i + k_j)``, (b, i, j, d)."""
    t = buffer(q.shape[0], q.shape[1], k.shape[1], q.shape[2])
    return torch.add(q.unsqueeze(2), k.unsqueeze(1), out=t).tanh_()


@perceptron_attention.register_fake
def _(query: Tensor, key: Tensor, weight: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    lse = value.new_empty(query.shape[:2], dtype=sum_dtype(value))
    return empty_like_value(value, query.shape[1]), lse


@register_flop_formula(torch.ops.foveal.perceptron_attention)
def _(query: torch.Size, key: torch.Size, weight: torch.Size, value: torch.Size, **__) -> int:
    return 2 * query[0] * query[1] * key[1] * (weight[0] + value[2])


@torch.library.custom_op("foveal::perceptron_attention_backward", mutates_args=())
def _perceptron_attention_backward(
    grad_y: Tensor, query: Tensor, key: Tensor, weight: Tensor, value: Tensor, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n, d = query.shape
    m = key.shape[1]
    with autocast_disabled(value.device):
        dtype = sum_dtype(value)
        q, k, w, v, u = (x.to(dtype) for x in (query, key, weight, value, grad_y))
        delta = torch.linalg.vecdot(u, y.to(dtype)).unsqueeze(-1)
        grad_q, grad_k, grad_v = (empty_like_value(x, x.shape[1]).zero_() for x in (q, k, v))
        grad_w = torch.zeros_like(w)
        tile = _tiles(batch, n, m, d)
        buffer = _Workspace(q, tile[0] * tile[1] * tile[2] * d)
        for bs in _slices(batch, tile[0]):
            for qs in _slices(n, tile[1]):
                for ks in _slices(m, tile[2]):
                    t = _tanh_sums(q[bs, qs], k[bs, ks], buffer)
                    weights = (t @ w).sub_(lse[bs, qs].unsqueeze(-1)).exp_()
                    grad_v[bs, ks].baddbmm_(weights.mT, u[bs, qs])
                    grad_s = torch.bmm(u[bs, qs], v[bs, ks].mT).sub_(delta[bs, qs]).mul_(weights)
                    grad_w.addmv_(t.view(-1, d).T, grad_s.view(-1))
                    # d tanh = 1 - tanh^2; the factor w of both sums comes once, at the end
                    slope = t.square_().neg_().add_(1).mul_(grad_s.unsqueeze(-1))
                    grad_q[bs, qs] += slope.sum(2)
                    grad_k[bs, ks] += slope.sum(1)
        grads = zip(
            (grad_q.mul_(w), grad_k.mul_(w), grad_w, grad_v), (query, key, weight, value), strict=True
        )
        grad_q, grad_k, grad_w, grad_v = (grad.to(x.dtype) for grad, x in grads)
        return grad_q, grad_k, grad_w, grad_v


@_perceptron_attention_backward.register_fake
def _(
    grad_y: Tensor, query: Tensor, key: Tensor, weight: Tensor, value: Tensor, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (empty_like_value(x, x.shape[1]) for x in (query, key, value))
    return grad_q, grad_k, torch.empty_like(weight), grad_v


def _save_perceptron(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


perceptron_attention.register_autograd(
    lambda ctx, grad_y, _: _perceptron_attention_backward(grad_y, *ctx.saved_tensors),
    setup_context=_save_perceptron,
)
