"""The CUDA kernels of the gates equal the literal equations, outputs and the gradients of the functions that call them.

With a CUDA device the kernels run on it. Without one they run through Triton's interpreter, which must be switched
on before Triton is imported: `test_interpreter` starts that process, and these tests run inside it.
"""

import os

import pytest
import torch

from foveal.ops import gate, reference

pytest.importorskip("triton", reason="Triton is not installed")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="runs in the interpreter's own process")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# the interpreter computes with numpy, which has no bfloat16
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if CUDA else [torch.float32, torch.float16]


@pytest.fixture(autouse=True)
def kernels_for_every_map(monkeypatch):
    """Small maps too, and in the interpreter maps on a CPU."""
    from foveal.ops.kernels import triton_gate

    monkeypatch.setattr(gate, "_why_not_triton", lambda operation, x: triton_gate.can_run(x))
    assert gate.explain("dual_scale", leaf(1, 2, 3, 4, dtype=torch.float32)).backend == "triton"


def leaf(*shape, dtype, layout="plain"):
    x = torch.randn(*shape, device=DEVICE).to(dtype)
    return (x.to(memory_format=torch.channels_last) if layout == "channels_last" else x).requires_grad_()


def distinct(shape, dtype, layout):
    """Values without ties: the literal max shares a gradient among equal maxima, the kernel gives it to one."""
    x = (torch.randperm(torch.Size(shape).numel(), device=DEVICE).view(shape) - 8).to(dtype) / 8
    return (
        x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    ).requires_grad_()


def error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-9)).item()


def compare(function, literal, inputs, tolerance):
    """Outputs and all gradients of ``function`` against ``literal`` in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, want = function(*inputs), literal(*exact)
    with torch.no_grad():
        assert error(function(*inputs), want.detach()) < tolerance
    upstream = torch.randn_like(got)
    got_gradients = torch.autograd.grad(got, inputs, upstream)
    want_gradients = torch.autograd.grad(want, exact, upstream.double())
    assert error(got, want) < tolerance
    for g, w in zip(got_gradients, want_gradients, strict=True):
        assert error(g, w) < tolerance
    return got


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
        from foveal.ops.kernels import triton_gate

        def both(x):
            return gate.GateInput(x).squeeze(["mean", "max"])

        def literal(x):
            return torch.cat([reference.squeeze(x), reference.squeeze(x, "max")])

        x = leaf(*shape, dtype=dtype, layout=layout)
        mean, _, _ = triton_gate.squeeze(x.detach())
        assert error(mean, reference.squeeze(x.detach().double())) < TOLERANCE[dtype]
        # so few digits have no distinct values for larger maps
        if x.numel() < (2**24 if dtype == torch.float32 else 2**11):
            x = distinct(shape, dtype, layout)
            compare(both, literal, [x], TOLERANCE[dtype])
            _, largest, argmax = triton_gate.squeeze(x.detach())
            assert torch.equal(x.detach().flatten(2).gather(2, argmax[..., None])[..., 0], largest)

    def test_spatial_statistics(self, shape, layout, dtype):
        x, channel = leaf(*shape, dtype=dtype, layout=layout), leaf(*shape[:2], dtype=dtype)
        compare(gate.spatial_statistics, reference.spatial_statistics, [x, channel], TOLERANCE[dtype])
        # ungated half values tie, and the literal max shares a gradient among ties
        if dtype == torch.float32:
            compare(gate.spatial_statistics, reference.spatial_statistics, [x], TOLERANCE[dtype])

    def test_dual_scale(self, shape, layout, dtype):
        x = leaf(*shape, dtype=dtype, layout=layout)
        channel, spatial = leaf(*shape[:2], dtype=dtype), leaf(shape[0], 1, *shape[2:], dtype=dtype)
        got = compare(gate.dual_scale, reference.dual_scale, [x, channel, spatial], TOLERANCE[dtype])
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert got.is_contiguous(memory_format=memory_format)


def test_nan_reaches_the_output():
    from foveal.ops.kernels import triton_gate

    x = torch.randn(1, 4, 5, 5, device=DEVICE)
    x[0, 2, 3, 3] = float("nan")
    mean, largest, _ = triton_gate.squeeze(x)
    assert mean.isnan().nonzero().tolist() == [[0, 2]]
    assert largest.isnan().nonzero().tolist() == [[0, 2]]
    ones = torch.ones(1, 4, device=DEVICE), torch.ones(1, 1, 5, 5, device=DEVICE)
    assert triton_gate.dual_scale(x, *ones).isnan().sum() == 1


def test_operators_pass_opcheck():
    from foveal.ops.kernels import triton_gate

    x, channel, spatial = (
        torch.randn(shape, device=DEVICE) for shape in ((1, 3, 4, 5), (1, 3), (1, 1, 4, 5))
    )
    torch.library.opcheck(triton_gate.squeeze, (x,))
    torch.library.opcheck(triton_gate.spatial_statistics, (x, channel))
    torch.library.opcheck(triton_gate.dual_scale, (x, channel, spatial))


def test_products_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    x, channel, spatial = (
        torch.randn(shape, device=DEVICE) for shape in ((1, 3, 4, 5), (1, 3), (1, 1, 4, 5))
    )
    with FlopCounterMode(display=False) as counter:
        gate.dual_scale(x, channel, spatial)
        gate.spatial_statistics(x, channel)
    assert counter.get_total_flops() == 2 * 3 * x.numel()
