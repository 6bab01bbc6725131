"""Softmax attention in tiles of queries and keys: any widths, any dtype, peak memory independent of n x m.

One running maximum and sum per query (Milakov and Gimelshein's online softmax); backward recomputes the weights
of a tile from the saved log-sum-exp, ``w_ij = exp(s_ij - lse_i)``. Sums run in float32 (float64 for float64).
Written for CPUs: a tile of scores stays in the cache of the cores that wrote it. It runs on any device.

Custom operators, so that ``torch.compile`` keeps each as one node; first derivatives only.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from foveal.ops.pairwise import empty_like_value, full_precision, sum_dtype

TILE_ELEMENTS = 512 * 1024  # scores in flight: 2 MiB in float32, the second-level cache of a server core


def _slices(size: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, size)) for start in range(0, size, tile))


def _tiles(batch: int, n: int, m: int, width: int = 1) -> tuple[int, int, int]:
    """Tile of (batch, queries, keys) with about TILE_ELEMENTS / width scores, at most that many."""
    budget = max(TILE_ELEMENTS // width, 1)
    keys = min(m, max(1024 if width == 1 else 128, budget // n))
    queries = min(n, max(budget // keys, 1))
    return max(min(batch, budget // (queries * keys)), 1), queries, keys


class _Buffer:
    """One allocation that serves every tile, the smaller ones at the edges too."""

    def __init__(self, like: Tensor, elements: int):
        self.flat = like.new_empty(elements)

    def __call__(self, *shape: int) -> Tensor:
        elements = 1
        for size in shape:
            elements *= size
        return self.flat[:elements].view(shape)


def _part(mask: Tensor, *at: slice) -> Tensor:
    """``mask[at]``, where a dimension of size one stands for all."""
    return mask[tuple(slice(None) if size == 1 else s for s, size in zip(at, mask.shape, strict=True))]


def _softmax_forward(
    scores: Callable[[slice, slice, slice], Tensor], value: Tensor, n: int, tile: tuple[int, int, int], y: Tensor
) -> Tensor:
    """Write ``softmax(scores) value`` to ``y`` (b, n, e) and return the log-sum-exp (b, n)."""
    batch, m, e = value.shape
    lse = value.new_empty(batch, n)
    lowest = torch.finfo(value.dtype).min
    sums = _Buffer(value, tile[0] * tile[1] * e)
    for bs in _slices(batch, tile[0]):
        for qs in _slices(n, tile[1]):
            shape = bs.stop - bs.start, qs.stop - qs.start
            total = value.new_zeros(*shape, 1)
            peak = value.new_full((*shape, 1), lowest)
            part = sums(*shape, e).zero_()
            for ks in _slices(m, tile[2]):
                s = scores(bs, qs, ks)
                new_peak = torch.maximum(peak, s.amax(-1, keepdim=True))
                weights = s.sub_(new_peak).exp_()
                if ks.start:
                    shrink = (peak - new_peak).exp_()
                    total.mul_(shrink)
                    part.mul_(shrink)
                total.add_(weights.sum(-1, keepdim=True))
                part.baddbmm_(weights, value[bs, ks])
                peak = new_peak
            # a query without a key: an empty sum here, zero weights there
            torch.div(part, total.clamp_min(torch.finfo(value.dtype).tiny), out=part)
            y[bs, qs] = part
            lse[bs, qs] = total.log().add_(peak).masked_fill_(total == 0, float("inf")).squeeze(-1)
    return lse


@torch.library.custom_op("foveal::softmax_attention", mutates_args=())
def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (b, n, e) and log-sum-exp (b, n)."""
    batch, n, _ = query.shape
    m = key.shape[1]
    y = empty_like_value(value, n)
    with full_precision(value.device):
        dtype = sum_dtype(value)
        q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
        hidden = None if mask is None else ~mask
        tile = _tiles(batch, n, m)
        buffer = _Buffer(q, tile[0] * tile[1] * tile[2])

        def scores(bs: slice, qs: slice, ks: slice) -> Tensor:
            return _dot_scores(q, k, scale, hidden, (bs, qs, ks), buffer)

        lse = _softmax_forward(scores, v, n, tile, y)
    return y, lse


def _dot_scores(
    q: Tensor, k: Tensor, scale: float, hidden: Tensor | None, at: tuple[slice, slice, slice], buffer: _Buffer
) -> Tensor:
    bs, qs, ks = at
    s = buffer(*(x.stop - x.start for x in at))
    torch.baddbmm(s, q[bs, qs], k[bs, ks].mT, beta=0, alpha=scale, out=s)
    return s if hidden is None else s.masked_fill_(_part(hidden, *at), float("-inf"))


@softmax_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    lse = value.new_empty(query.shape[:2], dtype=sum_dtype(value))
    return empty_like_value(value, query.shape[1]), lse


@torch.library.custom_op("foveal::softmax_attention_backward", mutates_args=())
def _softmax_attention_backward(
    grad_y: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, y: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, _ = query.shape
    m = key.shape[1]
    with full_precision(value.device):
        dtype = sum_dtype(value)
        q, k, v, u = query.to(dtype), key.to(dtype), value.to(dtype), grad_y.to(dtype)
        delta = torch.linalg.vecdot(u, y.to(dtype)).neg_().unsqueeze(-1)
        shift = lse.neg().unsqueeze(-1)
        hidden = None if mask is None else ~mask
        grad_q, grad_k, grad_v = (empty_like_value(x, x.shape[1]).zero_() for x in (q, k, v))
        tile = _tiles(batch, n, m)
        first, second = (_Buffer(q, tile[0] * tile[1] * tile[2]) for _ in range(2))
        for bs in _slices(batch, tile[0]):
            for qs in _slices(n, tile[1]):
                for ks in _slices(m, tile[2]):
                    weights = _dot_scores(q, k, scale, hidden, (bs, qs, ks), first)
                    weights.add_(shift[bs, qs]).exp_()
                    grad_v[bs, ks].baddbmm_(weights.mT, u[bs, qs])
                    grad_s = torch.bmm(u[bs, qs], v[bs, ks].mT, out=second(*weights.shape))
                    grad_s.add_(delta[bs, qs]).mul_(weights)
                    grad_q[bs, qs].baddbmm_(grad_s, k[bs, ks], alpha=scale)
                    grad_k[bs, ks].baddbmm_(grad_s.mT, q[bs, qs], alpha=scale)
        return grad_q.to(query.dtype), grad_k.to(key.dtype), grad_v.to(value.dtype)


@_softmax_attention_backward.register_fake
def _(
    grad_y: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, y: Tensor, lse: Tensor, scale: float
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
    """Output (b, n, e) and log-sum-exp (b, n)."""
    batch, n, d = query.shape
    m = key.shape[1]
    y = empty_like_value(value, n)
    with full_precision(value.device):
        dtype = sum_dtype(value)
        q, k, w, v = (x.to(dtype) for x in (query, key, weight, value))
        tile = _tiles(batch, n, m, d)
        buffer = _Buffer(q, tile[0] * tile[1] * tile[2] * d)

        def scores(bs: slice, qs: slice, ks: slice) -> Tensor:
            return _tanh_sums(q[bs, qs], k[bs, ks], buffer) @ w

        lse = _softmax_forward(scores, v, n, tile, y)
    return y, lse


def _tanh_sums(q: Tensor, k: Tensor, buffer: _Buffer) -> Tensor:
    """``tanh(q_i + k_j)``, (b, i, j, d)."""
    t = buffer(q.shape[0], q.shape[1], k.shape[1], q.shape[2])
    return torch.add(q.unsqueeze(2), k.unsqueeze(1), out=t).tanh_()


@perceptron_attention.register_fake
def _(query: Tensor, key: Tensor, weight: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    lse = value.new_empty(query.shape[:2], dtype=sum_dtype(value))
    return empty_like_value(value, query.shape[1]), lse


@torch.library.custom_op("foveal::perceptron_attention_backward", mutates_args=())
def _perceptron_attention_backward(
    grad_y: Tensor, query: Tensor, key: Tensor, weight: Tensor, value: Tensor, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n, d = query.shape
    m = key.shape[1]
    with full_precision(value.device):
        dtype = sum_dtype(value)
        q, k, w, v, u = (x.to(dtype) for x in (query, key, weight, value, grad_y))
        delta = torch.linalg.vecdot(u, y.to(dtype)).unsqueeze(-1)
        grad_q, grad_k, grad_v = (empty_like_value(x, x.shape[1]).zero_() for x in (q, k, v))
        grad_w = torch.zeros_like(w)
        tile = _tiles(batch, n, m, d)
        buffer = _Buffer(q, tile[0] * tile[1] * tile[2] * d)
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
        grads = zip((grad_q.mul_(w), grad_k.mul_(w), grad_w, grad_v), (query, key, weight, value), strict=True)
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
