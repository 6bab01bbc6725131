"""The CUDA kernels equal the literal equations, outputs and gradients.

With a CUDA device the kernels run on it. Without one they run through Triton's interpreter, which must be switched
on before Triton is imported: the first test below starts that process, and the others run inside it.
"""

import os
import subprocess
import sys

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


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernels run in this process")
def test_kernels_pass_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


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
    from foveal.ops import _triton

    torch.manual_seed(0)
    query, key = leaf(b, n, d, dtype=dtype, layout=layout), leaf(b, m, d, dtype=dtype, layout=layout)
    value = leaf(b, m, e, dtype=dtype, layout=layout)
    assert _triton.can_run(query, key, value) is None
    compare(
        lambda *t: _triton.attention(*t, scale=0.3),
        lambda *t: reference.softmax_attention(*t, scale=0.3),
        [query, key, value],
        TOLERANCE[dtype],
    )


@inside
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_widest_keys_fit(dtype):
    from foveal.ops import _triton

    torch.manual_seed(0)
    widest = _triton.WIDEST_KEY[dtype]
    query, key, value = (
        leaf(1, 70, widest, dtype=dtype),
        leaf(1, 70, widest, dtype=dtype),
        leaf(1, 70, 300, dtype=dtype),
    )
    compare(
        lambda *t: _triton.attention(*t, scale=0.05),
        lambda *t: reference.softmax_attention(*t, scale=0.05),
        [query, key, value],
        TOLERANCE[dtype],
    )


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_is_stable_for_large_logits(dtype):
    from foveal.ops import _triton

    torch.manual_seed(0)
    query, key, value = (leaf(1, 65, 16, dtype=dtype) for _ in range(3))
    # a near one-hot softmax: gradients of q and k are differences of nearly equal numbers
    compare(
        lambda *t: _triton.attention(*t, scale=30.0),
        lambda *t: reference.softmax_attention(*t, scale=30.0),
        [query, key, value],
        20 * TOLERANCE[dtype],
    )


@inside
def test_attention_refuses_what_it_cannot_do():
    from foveal.ops import _triton

    q = torch.randn(1, 4, 8, device=DEVICE)
    assert "mask" in (_triton.can_run(q, q, q, torch.ones(1, 4, 4, dtype=torch.bool)) or "")
    assert "float64" in (_triton.can_run(q.double(), q.double(), q.double()) or "")
    wide = torch.randn(1, 4, 129, device=DEVICE)
    assert "129" in (_triton.can_run(wide, wide, q) or "")


@inside
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 5, 7, 9), "plain"),
        ((2, 5, 7, 9), "channels_last"),
        ((1, 37, 33), "plain"),
        ((1, 1, 1, 1), "plain"),
        ((1, 130, 21, 20), "channels_last"),
        ((1, 3, 60, 61), "plain"),
        ((2, 3, 4, 5, 6), "plain"),
    ],
)
class TestGates:
    def test_squeeze(self, shape, layout, dtype):
        from foveal.ops import _triton_gate

        torch.manual_seed(0)
        x = leaf(*shape, dtype=dtype, layout=layout)
        compare(lambda x: _triton_gate.squeeze(x)[0], reference.squeeze, [x], TOLERANCE[dtype])
        # values without ties: the literal max shares a gradient among equal maxima, the kernel gives it to one
        flat = torch.randperm(x.numel(), device=DEVICE)[: x.numel()].reshape(shape) - x.numel() / 2
        distinct = (flat.to(dtype) / 8).contiguous(
            memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        distinct.requires_grad_()
        got = _triton_gate.squeeze(distinct)
        assert torch.equal(got[1], reference.squeeze(distinct, "max"))
        assert torch.equal(distinct.detach().flatten(2).gather(2, got[2][..., None])[..., 0], got[1])
        (gradient,) = torch.autograd.grad(got[1].sum(), distinct)
        assert torch.equal(gradient.flatten(2).sum(-1), torch.ones_like(got[1]))
        assert torch.equal((gradient * distinct.detach()).flatten(2).sum(-1), got[1])

    def test_spatial_statistics(self, shape, layout, dtype):
        from foveal.ops import _triton_gate

        torch.manual_seed(1)
        x, gate = leaf(*shape, dtype=dtype, layout=layout), leaf(*shape[:2], dtype=dtype)
        tolerance = TOLERANCE[dtype]
        compare(
            lambda x, g: _triton_gate.spatial_statistics(x, g)[0],
            reference.spatial_statistics,
            [x, gate],
            tolerance,
        )
        if (
            dtype == torch.float32
        ):  # ungated half values tie, and the literal max shares a gradient among ties
            compare(
                lambda x: _triton_gate.spatial_statistics(x)[0], reference.spatial_statistics, [x], tolerance
            )

    def test_scale_add_relu(self, shape, layout, dtype):
        from foveal.ops import _triton_gate

        torch.manual_seed(2)
        x, residual = (leaf(*shape, dtype=dtype, layout=layout) for _ in range(2))
        gate, mask = leaf(*shape[:2], dtype=dtype), leaf(shape[0], 1, *shape[2:], dtype=dtype)
        got = compare(
            lambda x, g, m, r: _triton_gate.scale_add_relu(x, g, m, r, relu=True),
            lambda x, g, m, r: (reference.dual_scale(x, g, m) + r).relu(),
            [x, gate, mask, residual],
            TOLERANCE[dtype],
        )
        assert got.stride() == x.stride()
        compare(_triton_gate.scale_add_relu, reference.channel_scale, [x, gate], TOLERANCE[dtype])


@inside
def test_nan_reaches_the_output():
    from foveal.ops import _triton_gate

    x = torch.randn(1, 4, 5, 5, device=DEVICE)
    x[0, 2, 3, 3] = float("nan")
    mean, peak, _ = _triton_gate.squeeze(x)
    assert mean.isnan().nonzero().tolist() == [[0, 2]]
    assert peak.isnan().nonzero().tolist() == [[0, 2]]
    assert _triton_gate.scale_add_relu(x, torch.ones(1, 4, device=DEVICE), relu=True).isnan().sum() == 1


@inside
def test_operators_pass_opcheck():
    from foveal.ops import _triton, _triton_gate

    q, k, v = (
        leaf(1, 20, 8, dtype=torch.float32),
        leaf(1, 9, 8, dtype=torch.float32),
        leaf(1, 9, 24, dtype=torch.float32),
    )
    x, gate = leaf(1, 3, 4, 5, dtype=torch.float32), leaf(1, 3, dtype=torch.float32)
    torch.library.opcheck(_triton._attention, (q, k, v, 0.5))
    torch.library.opcheck(_triton_gate._squeeze, (x,))
    torch.library.opcheck(_triton_gate._spatial_statistics, (x, gate))
    torch.library.opcheck(
        _triton_gate._scale_add_relu, (x, gate, None, x.detach().clone().requires_grad_(), True)
    )


@inside
def test_two_runs_give_the_same_bits():
    from foveal.ops import _triton

    torch.manual_seed(0)
    q, k, v = (
        leaf(2, 90, 8, dtype=torch.float32),
        leaf(2, 90, 8, dtype=torch.float32),
        leaf(2, 90, 40, dtype=torch.float32),
    )
    runs = [torch.autograd.grad(_triton.attention(q, k, v).square().sum(), (q, k, v)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
