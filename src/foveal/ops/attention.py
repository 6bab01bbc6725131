"""Softmax attention with unequal key and value widths, and the attentions built on it.

Shapes are as in ``reference``: positions come before the width, queries are ``n``, keys ``m``. Nothing of size n x m is
stored, forward or backward, but for at most `FEW_SCORES` scores, or where ``backend="reference"`` is asked for. Scores,
softmax and sums are float32 (float64 for float64), also for half inputs and under autocast; the result has the dtype
of ``value`` and, where that is the transposed view of a feature map (b, e, m), the same memory order. What runs in
tiles and in Triton has first derivatives only: a second one raises.

On a CPU two runs give the same bits, and so do the tiles and the Triton kernels on CUDA. PyTorch's memory-efficient
attention, which ``"sdpa"`` may take there, promises that for its backward only under
``torch.use_deterministic_algorithms(True)``.

While exporting (``torch.export``, ONNX, ``torch.jit.trace``) the equation is emitted from operators that every runtime
knows: two products and a softmax; `recording_for_pytorch` has PyTorch's own operator instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveal.errors import FovealError
from foveal.ops import reference
from foveal.ops.choice import Choice
from foveal.ops.kernels import streamed
from foveal.ops.numerics import autocast_disabled, exporting, is_empty, is_transposed, sum_dtype

BACKENDS = ("reference", "streamed", "sdpa", "triton")
FEW_SCORES = 2**17
"""On a CPU so few scores, half a MiB in float32, are written out: quicker than cutting them into tiles."""
_for_pytorch: ContextVar[bool] = ContextVar("for_pytorch", default=False)
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


# ------------------------------------------------------------------------------------------- choosing a backend


def explain(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    value: Float[Tensor, "b m e"],
    *,
    mask: Bool[Tensor, "#b #n m"] | None = None,
) -> Choice:
    """Say which backend ``softmax_attention(..., backend="auto")`` takes for these tensors, and why not the others.

    Example:
        >>> print(explain(torch.randn(1, 900, 8), torch.randn(1, 900, 8), torch.randn(1, 900, 32)))
        streamed: in tiles on cpu: any widths, dtypes and masks
        not reference: stores all n x m weights: the oracle of tests, what is exported, and for few scores
        not sdpa: slower here at unequal widths, 8 and 32
        not triton: Triton needs a CUDA tensor, got one on cpu
    """
    _check(query, key, value, mask)
    backend, why = _choose(query, key, value, mask)
    others = {
        "reference": "stores all n x m weights: the oracle of tests, what is exported, and for few scores",
        "streamed": "written for CPUs, slower here",
        "sdpa": f"slower here at unequal widths, {query.shape[-1]} and {value.shape[-1]}",
        "triton": "slower here: it is chosen for half types on CUDA",
    }
    for name in others:
        others[name] = _refusal(name, query, key, value, mask) or others[name]
    del others[backend]
    return Choice(backend, why, others)


def _choose(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[str, str]:
    if exporting():
        return "reference", "a graph is being recorded for another runtime"
    if is_empty(query):
        return "reference", "there is no query"
    if query.is_cuda:
        # measured on an H100 (benchmarks/README.md): in float32 a training step is quicker with PyTorch's kernel
        for name in ("sdpa", "triton") if query.dtype == torch.float32 else ("triton", "sdpa"):
            if _refusal(name, query, key, value, mask) is None:
                return name, f"the fastest for {query.dtype} on {query.device.type} that takes these tensors"
    if query.shape[-1] == value.shape[-1] and _refusal("sdpa", query, key, value, mask) is None:
        return "sdpa", "keys and values have one width, which PyTorch's kernel is made for"
    if query.device.type == "cpu" and query.shape[0] * query.shape[1] * key.shape[1] <= FEW_SCORES:
        return "reference", f"at most {FEW_SCORES} scores: to write them out is quicker than tiles"
    return "streamed", f"in tiles on {query.device.type}: any widths, dtypes and masks"


def _refusal(backend: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    """Return why ``backend`` cannot run on these tensors; None if it can."""
    if backend == "triton":
        try:
            from foveal.ops.kernels import triton_attention
        except ImportError as error:
            return f"Triton does not import: {error}"
        return triton_attention.can_run(query, key, value, mask)
    if backend == "sdpa":
        if mask is not None:
            return "a query whose keys are all masked has to give 0, which PyTorch's kernels do not promise"
        if not query.dtype == key.dtype == value.dtype:
            return f"PyTorch's kernels want one dtype, got {query.dtype}, {key.dtype}, {value.dtype}"
        if query.device.type not in ("cpu", "cuda"):
            return f"PyTorch has no fused kernel for {query.device.type}"
        widths = query.shape[-1], value.shape[-1]
        if query.is_cuda and (query.dtype == torch.float64 or widths[0] % 8 or widths[1] % 8):
            return f"on CUDA they want at most float32 and widths in eights, got {query.dtype} and {widths}"
    return None


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    if query.shape[0] != key.shape[0] or query.shape[2] != key.shape[2] or key.shape[:2] != value.shape[:2]:
        raise FovealError(
            f"query (b, n, d), key (b, m, d) and value (b, m, e) must share b, d and m, "
            f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise FovealError(f"mask must be bool, True where a key may be attended to, got {mask.dtype}")


# ------------------------------------------------------------------------------------------------- the functions


@torch.fx.wrap
def softmax_attention(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    value: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
    mask: Bool[Tensor, "#b #n m"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b n e"]:
    """Compute ``y_i = sum_j softmax_j(scale * q_i . k_j) v_j`` without the n x m matrix.

    Args:
        query, key, value: the keys may be fewer than the queries (sub-sampled) and of another width than the values.
        scale: factor of every score; the papers of these blocks use 1.
        mask: True where a key may be attended to; a query without any key gives 0.
        backend: "auto" (see ``explain``) or "reference", "streamed", "sdpa", "triton".

    Returns:
        Output (b, n, e) in the dtype of ``value``.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or one that cannot run on these tensors.

    Example:
        >>> query, key, value = torch.randn(2, 64, 8), torch.randn(2, 16, 8), torch.randn(2, 16, 32)
        >>> y = softmax_attention(query, key, value)
        >>> torch.allclose(y, torch.softmax(query @ key.mT, -1) @ value, atol=1e-5)
        True

    Source: SAGAN eq. 1-2; DANet eq. 1-2; Non-local eq. 1 with the f of eq. 2 and 3. The order of the sum is that of
    Milakov and Gimelshein, Online normalizer calculation for softmax; no approximation.
    """
    _check(query, key, value, mask)
    return _run(_resolve(backend, query, key, value, mask), query, key, value, scale, mask)


def _resolve(backend: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> str:
    if backend == "auto":
        return _choose(query, key, value, mask)[0]
    if backend not in BACKENDS:
        raise FovealError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    reason = _refusal(backend, query, key, value, mask)
    if reason is not None:
        raise FovealError(f'backend "{backend}" cannot run, {reason}; "streamed" can')
    return backend


def _run(
    backend: str, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    if backend == "streamed":
        return streamed.softmax_attention(query, key, value, mask, float(scale))[0]
    if backend == "triton":
        from foveal.ops.kernels import triton_attention

        return triton_attention.attention(query, key, value, scale)
    with autocast_disabled(value.device):
        if backend == "sdpa":
            return _sdpa(query, key, value, scale)
        dtype = sum_dtype(value)
        tensors = query.to(dtype), key.to(dtype), value.to(dtype)
        literal = (
            _recorded if exporting() and mask is None else partial(reference.softmax_attention, mask=mask)
        )
        y = literal(*tensors, scale=scale).to(value.dtype)
        return y.mT.contiguous().mT if is_transposed(value) else y


@contextmanager
def recording_for_pytorch() -> Iterator[None]:
    """While a graph is recorded that PyTorch itself will run: softmax attention is its own operator, which has tiles.

    Example:
        >>> with recording_for_pytorch():
        ...     pass  # torch.export.export(...)
    """
    before = _for_pytorch.set(True)
    try:
        yield
    finally:
        _for_pytorch.reset(before)


def _recorded(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The equation in the three operators by which other runtimes know attention, and compute it in tiles."""
    if _for_pytorch.get():
        e = value.shape[-1]
        query, key, value = (x.unsqueeze(1) for x in _of_one_width(query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)[..., :e]
    query = query if scale == 1 else query * scale
    return torch.softmax(query @ key.mT, -1) @ value


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Run PyTorch's fused kernels."""
    e = value.shape[-1]
    if query.shape[-1] != e and not value.is_cuda:
        query, key, value = _of_one_width(query, key, value)
    query, key, value = (_with_unit_stride(x).unsqueeze(1) for x in (query, key, value))
    # MATH, which stores n x m, is left out but where n is 0, for which PyTorch 2.11 has no other
    with sdpa_kernel(_FUSED if query.shape[-2] else SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)[..., :e]


def _of_one_width(*tensors: Tensor) -> list[Tensor]:
    """Append zeros up to the widest, as PyTorch's kernels need on a CPU: they change no score and no output."""
    width = max(x.shape[-1] for x in tensors)
    return [F.pad(x, (0, width - x.shape[-1])) for x in tensors]


def _with_unit_stride(x: Tensor) -> Tensor:
    """Return ``x`` with neighbours along the width adjacent in memory, as PyTorch's kernels demand.

    ``contiguous()`` does not promise it: the stride of a dimension of size one means nothing to it, but the kernels
    look at the stride of a width of one too.
    """
    x = x.contiguous()
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


@torch.fx.wrap
def cosine_attention(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    value: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
    backend: str = "auto",
) -> Float[Tensor, "b n e"]:
    """Compute ``y_i = sum_j softmax_j(scale * q_i . k_j / (|q_i| |k_j|)) v_j``; a zero vector scores 0 with all.

    Args and errors as for ``softmax_attention``. With ``scale=1`` the scores lie in [-1, 1], and the largest weight
    is at most ``e^2 = 7.4`` times the smallest.

    Example:
        >>> query, key, value = torch.randn(2, 64, 8), torch.randn(2, 16, 8), torch.randn(2, 16, 32)
        >>> y = cosine_attention(query, key, value)
        >>> torch.allclose(y, cosine_attention(3 * query, key, value), atol=1e-5)
        True

    Source: SAGAN's attention with cosine similarity in place of its dot product; the dot product of normalised vectors.
    """
    _check(query, key, value, None)
    backend = _resolve(backend, query, key, value, None)
    with autocast_disabled(value.device):
        dtype = sum_dtype(value)
        query, key = F.normalize(query.to(dtype), dim=-1), F.normalize(key.to(dtype), dim=-1)
        if backend in ("sdpa", "triton"):
            query, key = query.to(value.dtype), key.to(value.dtype)
    return _run(backend, query, key, value, scale, None)


@torch.fx.wrap
def perceptron_attention(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    weight: Float[Tensor, " d"],
    value: Float[Tensor, "b m e"],
) -> Float[Tensor, "b n e"]:
    """Compute ``y_i = sum_j softmax_j(w . tanh(q_i + k_j)) v_j`` in tiles: O(n m d) time, nothing n x m stored.

    There is no shortcut: ``tanh`` of a sum does not factorise, and every pair needs d of them.

    Args:
        query, key, value: as for ``softmax_attention``. weight: w, one factor a channel of the key.

    Returns:
        Output (b, n, e) in the dtype of ``value``.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> query, key, weight = torch.randn(2, 64, 8), torch.randn(2, 16, 8), torch.randn(8)
        >>> perceptron_attention(query, key, weight, torch.randn(2, 16, 32)).shape
        torch.Size([2, 64, 32])

    Source: Bahdanau et al., Neural machine translation by jointly learning to align and translate, section A.1.2.
    """
    _check(query, key, value, None)
    if weight.shape != query.shape[-1:]:
        raise FovealError(f"weight must be as wide as the keys, {query.shape[-1]}, got {tuple(weight.shape)}")
    if not exporting():
        return streamed.perceptron_attention(query, key, weight, value)[0]
    dtype = sum_dtype(value)
    query, key, weight, wide = (x.to(dtype) for x in (query, key, weight, value))
    weights = torch.softmax(reference.perceptron_scores(query, key, weight), -1)
    return (weights @ wide).to(value.dtype)


def channel_attention(x: Float[Tensor, "b c n"], form: str = "code") -> Float[Tensor, "b c n"]:
    """Compute DANet's channel attention without its learned scale, ``y_i = sum_j softmax_j(+-x_i . x_j) x_j``.

    Energies are float32 whatever ``x`` is: in float16 they overflow once ``n * mean(x^2)`` passes 65504, which a
    97 x 97 map does at a mean square of 7.

    Args:
        x: flattened feature map.
        form: "paper" weighs by ``softmax_j(x_i . x_j)``; "code", as released and in every trained weight, by
            ``softmax_j(max_j(x_i . x_j) - x_i . x_j)``: the least similar channel gets the most weight.

    Returns:
        Output (b, c, n) in the dtype of ``x``.

    Raises:
        ValueError: an unknown ``form``.

    Example:
        >>> channel_attention(torch.randn(2, 16, 64)).shape
        torch.Size([2, 16, 64])

    Source: Fu et al., Dual Attention Network for Scene Segmentation, eq. 3-4, and its released code.
    """
    if form not in ("code", "paper"):
        raise FovealError(f'form must be "code" or "paper", got {form!r}')
    with autocast_disabled(x.device):
        wide = x.to(sum_dtype(x))
        energy = wide @ wide.mT
        # softmax does not change under a shift: max_j - energy and -energy give the same weights
        weights = torch.softmax(-energy if form == "code" else energy, -1)
        return (weights @ wide).to(x.dtype)
