"""The CUDA kernels of softmax attention equal the literal equation, outputs and gradients.

With a CUDA device the kernels run on it. Without one they run through Triton's interpreter, which must be switched
on before Triton is imported: `test_interpreter` starts that process, and these tests run inside it.
"""

import os

import pytest
import torch

from foveal.ops import reference

pytest.importorskip("triton", reason="Triton is not installed")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
inside = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="runs in the interpreter's own process")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# the interpreter computes with numpy, which has no bfloat16
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if CUDA else [torch.float32, torch.float16]


def error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-9)).item()


def leaf(*shape, dtype, layout="plain"):
    """Random parameter; ``transposed`` is the view (b, n, c) of a feature map (b, c, n)."""
    if layout == "transposed":
        x = torch.randn(shape[0], shape[2], shape[1], device=DEVICE).to(dtype).transpose(1, 2)
    else:
        x = torch.randn(*shape, device=DEVICE).to(dtype)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
    return x.requires_grad_()


def compare(function, literal, inputs, tolerance):
    """Outputs and all gradients of ``function`` against ``literal`` in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, want = function(*inputs), literal(*exact)
    upstream = torch.randn_like(got)
    got_gradients = torch.autograd.grad(got, inputs, upstream)
    want_gradients = torch.autograd.grad(want, exact, upstream.double())
    assert error(got, want) < tolerance
    for g, w in zip(got_gradients, want_gradients, strict=True):
        assert error(g, w) < tolerance
    return got


@inside
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["plain", "transposed"])
@pytest.mark.parametrize(
    ("b", "n", "m", "d", "e"),
    [(2, 70, 70, 8, 64), (1, 33, 17, 5, 40), (1, 1, 1, 1, 1), (1, 65, 130, 16, 300), (1, 40, 40, 100, 24)],
)
def test_attention_equals_the_equation(b, n, m, d, e, layout, dtype):
    from foveal.ops.kernels import triton_attention

    torch.manual_seed(0)
    query, key = leaf(b, n, d, dtype=dtype, layout=layout), leaf(b, m, d, dtype=dtype, layout=layout)
    value = leaf(b, m, e, dtype=dtype, layout=layout)
    assert triton_attention.can_run(query, key, value) is None
    compare(
        lambda *t: triton_attention.attention(*t, scale=0.3),
        lambda *t: reference.softmax_attention(*t, scale=0.3),
        [query, key, value],
        TOLERANCE[dtype],
    )


@inside
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_widest_keys_fit(dtype):
    from foveal.ops.kernels import triton_attention

    torch.manual_seed(0)
    widest = triton_attention.WIDEST_KEY[dtype]
    query, key, value = (
        leaf(1, 70, widest, dtype=dtype),
        leaf(1, 70, widest, dtype=dtype),
        leaf(1, 70, 300, dtype=dtype),
    )
    compare(
        lambda *t: triton_attention.attention(*t, scale=0.05),
        lambda *t: reference.softmax_attention(*t, scale=0.05),
        [query, key, value],
        TOLERANCE[dtype],
    )


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_is_stable_for_large_logits(dtype):
    from foveal.ops.kernels import triton_attention

    torch.manual_seed(0)
    query, key, value = (leaf(1, 65, 16, dtype=dtype) for _ in range(3))
    # a near one-hot softmax: gradients of q and k are differences of nearly equal numbers
    compare(
        lambda *t: triton_attention.attention(*t, scale=30.0),
        lambda *t: reference.softmax_attention(*t, scale=30.0),
        [query, key, value],
        20 * TOLERANCE[dtype],
    )


@inside
def test_attention_refuses_what_it_cannot_do():
    from foveal.ops.kernels import triton_attention

    q = torch.randn(1, 4, 8, device=DEVICE)
    assert "mask" in (triton_attention.can_run(q, q, q, torch.ones(1, 4, 4, dtype=torch.bool)) or "")
    assert "float64" in (triton_attention.can_run(q.double(), q.double(), q.double()) or "")
    wide = torch.randn(1, 4, 129, device=DEVICE)
    assert "129" in (triton_attention.can_run(wide, wide, q) or "")


@inside
# opcheck itself looks at the gradients of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_pass_opcheck():
    from foveal.ops.kernels import triton_attention

    q, k, v = (
        leaf(1, 20, 8, dtype=torch.float32),
        leaf(1, 9, 8, dtype=torch.float32),
        leaf(1, 9, 24, dtype=torch.float32),
    )
    torch.library.opcheck(triton_attention._attention, (q, k, v, 0.5))


@inside
def test_two_runs_give_the_same_bits():
    from foveal.ops.kernels import triton_attention

    torch.manual_seed(0)
    q, k, v = (
        leaf(2, 90, 8, dtype=torch.float32),
        leaf(2, 90, 8, dtype=torch.float32),
        leaf(2, 90, 40, dtype=torch.float32),
    )
    runs = [
        torch.autograd.grad(triton_attention.attention(q, k, v).square().sum(), (q, k, v)) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
