"""CUDA kernels in Triton: streamed softmax attention with unequal key and value widths.

Chosen at run time by ``ops.attention``; ``can_run`` says why not. The kernels keep one running maximum and sum
per query (as FlashAttention does), never an N x N matrix, and use no atomics: two runs give the same bits.
With ``TRITON_INTERPRET=1`` set before the import they run on a CPU, which is how they are tested there.
"""

# Triton's language has types of its own: a constexpr argument takes a plain number
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

INTERPRETED = triton.knobs.runtime.interpret
# dtypes, each with the widest key whose tiles fit in shared memory
WIDEST_KEY = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}


def can_run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> str | None:
    """Return None if ``attention`` takes these tensors, else the reason why it does not."""
    if not (query.is_cuda or INTERPRETED):
        return f"Triton needs a CUDA tensor, got one on {query.device}"
    if query.is_cuda and torch.cuda.get_device_capability(query.device) < (8, 0):
        return f"Triton kernels need compute capability 8.0, got {torch.cuda.get_device_name(query.device)}"
    if query.dtype not in WIDEST_KEY or not query.dtype == key.dtype == value.dtype:
        return f"Triton needs one dtype of float16, bfloat16, float32, got {query.dtype}, {key.dtype}, {value.dtype}"
    if query.shape[-1] > WIDEST_KEY[query.dtype]:
        widest = WIDEST_KEY[query.dtype]
        return f"Triton kernels take {query.dtype} keys up to {widest} wide, got {query.shape[-1]}"
    if mask is not None:
        return "the Triton kernels take no mask"
    return None


# ------------------------------------------------------------------------------------------------------ kernels
# Tiles: BLOCK_Q queries, BLOCK_K keys, the key width padded to BLOCK_D, BLOCK_E values of the value width.
# Every tensor comes with its strides, so (b, c, n) feature maps are read in place as (b, n, c).


@triton.jit
def _load_tile(base, rows, columns, row_stride, column_stride, row_end, column_end):
    inside = (rows[:, None] < row_end) & (columns[None, :] < column_end)
    return tl.load(
        base + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0
    )


@triton.jit
def _store_tile(base, tile, rows, columns, row_stride, column_stride, row_end, column_end):
    inside = (rows[:, None] < row_end) & (columns[None, :] < column_end)
    at = base + rows[:, None] * row_stride + columns[None, :] * column_stride
    tl.store(at, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _forward_kernel(
    Q, K, V, Y, LSE, scale_log2, n, m, d, e,
    q_b, q_n, q_d, k_b, k_m, k_d, v_b, v_m, v_e, y_b, y_n, y_e,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    widths = tl.arange(0, BLOCK_D)
    query = _load_tile(Q + batch * q_b, queries, widths, q_n, q_d, n, d)
    running_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    for start in range(0, m, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        key = _load_tile(K + batch * k_b, widths, keys, k_d, k_m, d, m)
        score = tl.dot(query, key, input_precision=PRECISION) * scale_log2
        score = tl.where(keys[None, :] < m, score, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(score, 1))
        weight = tl.exp2(score - new_max[:, None])
        rescale = tl.exp2(running_max - new_max)
        total = total * rescale + tl.sum(weight, 1)
        value = _load_tile(V + batch * v_b, keys, columns, v_m, v_e, m, e)
        out = tl.dot(weight.to(value.dtype), value, out * rescale[:, None], input_precision=PRECISION)
        running_max = new_max
    _store_tile(Y + batch * y_b, out / total[:, None], queries, columns, y_n, y_e, n, e)
    if tl.program_id(1) == 0:
        tl.store(LSE + batch * n + queries, running_max + tl.log2(total), mask=queries < n)


@triton.jit
def _value_gradient_kernel(
    Q, K, DY, LSE, DV, scale_log2, n, m, d, e,
    q_b, q_n, q_d, k_b, k_m, k_d, y_b, y_n, y_e, v_b, v_m, v_e,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dV_j = sum_i w_ij dY_i."""
    batch = tl.program_id(2).to(tl.int64)
    keys = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    widths = tl.arange(0, BLOCK_D)
    key = _load_tile(K + batch * k_b, keys, widths, k_m, k_d, m, d)
    gradient = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    for start in range(0, n, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        query = _load_tile(Q + batch * q_b, widths, queries, q_d, q_n, d, n)
        score = tl.dot(key, query, input_precision=PRECISION) * scale_log2
        # a query beyond the end has lse = +inf, hence weight 0
        lse = tl.load(LSE + batch * n + queries, mask=queries < n, other=float("inf"))
        weight = tl.exp2(score - lse[None, :])
        dy = _load_tile(DY + batch * y_b, queries, columns, y_n, y_e, n, e)
        gradient = tl.dot(weight.to(dy.dtype), dy, gradient, input_precision=PRECISION)
    _store_tile(DV + batch * v_b, gradient, keys, columns, v_m, v_e, m, e)


@triton.jit
def _key_gradient_kernel(
    Q, K, V, DY, LSE, DELTA, DK, scale, scale_log2, n, m, d, e,
    q_b, q_n, q_d, k_b, k_m, k_d, v_b, v_m, v_e, y_b, y_n, y_e, dk_b, dk_m, dk_d,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dK_j = scale sum_i w_ij (dY_i . V_j - delta_i) Q_i."""
    batch = tl.program_id(1).to(tl.int64)
    keys = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    widths = tl.arange(0, BLOCK_D)
    key = _load_tile(K + batch * k_b, keys, widths, k_m, k_d, m, d)
    gradient = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        query = _load_tile(Q + batch * q_b, queries, widths, q_n, q_d, n, d)
        score = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale_log2
        lse = tl.load(LSE + batch * n + queries, mask=queries < n, other=float("inf"))
        delta = tl.load(DELTA + batch * n + queries, mask=queries < n, other=0.0)
        slope = tl.zeros([BLOCK_K, BLOCK_Q], tl.float32)
        for first in range(0, e, BLOCK_E):
            columns = first + tl.arange(0, BLOCK_E)
            value = _load_tile(V + batch * v_b, keys, columns, v_m, v_e, m, e)
            dy = _load_tile(DY + batch * y_b, columns, queries, y_e, y_n, e, n)
            slope = tl.dot(value, dy, slope, input_precision=PRECISION)
        slope = tl.exp2(score - lse[None, :]) * (slope - delta[None, :])
        gradient = tl.dot(slope.to(query.dtype), query, gradient, input_precision=PRECISION)
    _store_tile(DK + batch * dk_b, gradient * scale, keys, widths, dk_m, dk_d, m, d)


@triton.jit
def _query_gradient_kernel(
    Q, K, V, DY, LSE, DELTA, DQ, scale, scale_log2, n, m, d, e,
    q_b, q_n, q_d, k_b, k_m, k_d, v_b, v_m, v_e, y_b, y_n, y_e, dq_b, dq_n, dq_d,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ_i = scale sum_j w_ij (dY_i . V_j - delta_i) K_j."""
    batch = tl.program_id(1).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    widths = tl.arange(0, BLOCK_D)
    query = _load_tile(Q + batch * q_b, queries, widths, q_n, q_d, n, d)
    lse = tl.load(LSE + batch * n + queries, mask=queries < n, other=float("inf"))
    delta = tl.load(DELTA + batch * n + queries, mask=queries < n, other=0.0)
    gradient = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, m, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        key = _load_tile(K + batch * k_b, keys, widths, k_m, k_d, m, d)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale_log2
        slope = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
        for first in range(0, e, BLOCK_E):
            columns = first + tl.arange(0, BLOCK_E)
            dy = _load_tile(DY + batch * y_b, queries, columns, y_n, y_e, n, e)
            value = _load_tile(V + batch * v_b, columns, keys, v_e, v_m, e, m)
            slope = tl.dot(dy, value, slope, input_precision=PRECISION)
        slope = tl.exp2(score - lse[:, None]) * (slope - delta[:, None])
        slope = tl.where(keys[None, :] < m, slope, 0.0)
        gradient = tl.dot(slope.to(key.dtype), key, gradient, input_precision=PRECISION)
    _store_tile(DQ + batch * dq_b, gradient * scale, queries, widths, dq_n, dq_d, n, d)


# ---------------------------------------------------------------------------------------------------- operators


# BLOCK_Q, BLOCK_K, BLOCK_E, num_warps: the fastest of a search on an H100 at 64 -> 512 and 32 -> 256 wide
_HALF = {
    "forward": (128, 64, 256, 8),
    "value": (64, 128, 256, 8),
    "key": (128, 64, 64, 4),
    "query": (64, 128, 64, 4),
}
_FLOAT = {
    "forward": (128, 64, 64, 8),
    "value": (64, 128, 128, 8),
    "key": (64, 64, 32, 4),
    "query": (64, 64, 32, 4),
}


def _launch_options(kernel: str, query: Tensor, value: Tensor) -> dict:
    """Choose tile sizes and warps; keys over 64 wide take smaller tiles, to fit in shared memory."""
    is_float = query.dtype == torch.float32
    block_q, block_k, block_e, warps = (_FLOAT if is_float else _HALF)[kernel]
    block_d = max(16, triton.next_power_of_2(query.shape[-1]))
    if block_d > 64:
        block_q, block_k, block_e = min(block_q, 64), 32, min(block_e, 128)
    # tf32x3 adds three tensor-core products into nearly full float32 precision
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return {
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "BLOCK_D": block_d,
        "BLOCK_E": min(block_e, max(16, triton.next_power_of_2(value.shape[-1]))),
        "PRECISION": precision if is_float else "ieee",
        "num_warps": warps,
        "num_stages": 3 if block_d <= 64 else 2,
    }


@torch.library.custom_op("foveal::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    (b, n, d), (_, m, e) = query.shape, value.shape
    out = torch.empty((b, n, e), dtype=value.dtype, device=value.device)
    lse = torch.empty((b, n), dtype=torch.float32, device=value.device)
    options = _launch_options("forward", query, value)
    _forward_kernel[triton.cdiv(n, options["BLOCK_Q"]), triton.cdiv(e, options["BLOCK_E"]), b](
        query, key, value, out, lse, scale * math.log2(math.e), n, m, d, e,
        *query.stride(), *key.stride(), *value.stride(), *out.stride(), **options,
    )  # fmt: skip
    return out, lse


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    b, n = query.shape[:2]
    return value.new_empty(b, n, value.shape[2]), value.new_empty(b, n, dtype=torch.float32)


@register_flop_formula(torch.ops.foveal.attention)
def _(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    return 2 * query[0] * query[1] * key[1] * (query[2] + value[2])


@torch.library.custom_op("foveal::attention_backward", mutates_args=())
def _attention_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, dy: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    (b, n, d), (_, m, e) = query.shape, value.shape
    d_query, d_key, d_value = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)
    )
    delta = torch.linalg.vecdot(dy.float(), out.float())
    scale_log2 = scale * math.log2(math.e)
    options = _launch_options("value", query, value)
    _value_gradient_kernel[triton.cdiv(m, options["BLOCK_K"]), triton.cdiv(e, options["BLOCK_E"]), b](
        query, key, dy, lse, d_value, scale_log2, n, m, d, e,
        *query.stride(), *key.stride(), *dy.stride(), *d_value.stride(), **options,
    )  # fmt: skip
    tensors = query, key, value, dy, lse, delta
    strides = [stride for t in tensors[:4] for stride in t.stride()]
    options = _launch_options("key", query, value)
    _key_gradient_kernel[triton.cdiv(m, options["BLOCK_K"]), b](
        *tensors, d_key, scale, scale_log2, n, m, d, e, *strides, *d_key.stride(), **options
    )
    options = _launch_options("query", query, value)
    _query_gradient_kernel[triton.cdiv(n, options["BLOCK_Q"]), b](
        *tensors, d_query, scale, scale_log2, n, m, d, e, *strides, *d_query.stride(), **options
    )
    return d_query, d_key, d_value


@_attention_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, dy: Tensor, scale: float):
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value))


def _save(ctx, inputs, output) -> None:
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, _):
    return *_attention_backward(*ctx.saved_tensors, dy, ctx.scale), None


_attention.register_autograd(_backward, setup_context=_save)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """Compute softmax attention, query (b, n, d), key (b, m, d), value (b, m, e), any strides -> (b, n, e)."""
    return _attention(query, key, value, scale)[0]
