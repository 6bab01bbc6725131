"""The narrow convolution is PyTorch's own, output and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from foveal.ops import gate, reference
from foveal.ops.convolution import narrow_convolution


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 2, 9, 5), (3, 1, 2, 17), (0, 2, 5, 4)], ids=str)
def test_equals_pytorchs_convolution(shape, k):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(2, shape[1], k, k, requires_grad=True)
    found, wanted = narrow_convolution(x, weight), F.conv2d(x, weight, padding=k // 2)
    dy = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    gradients = (torch.autograd.grad(y, [x, weight], dy) for y in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(narrow_convolution(x, weight), found)


def test_first_and_second_derivatives_are_right():
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(narrow_convolution, (x, weight))
    assert gradgradcheck(narrow_convolution, (x, weight))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_any_layout_of_map_and_weight(layout):
    x = torch.randn(2, 2, 6, 7).contiguous(memory_format=layout)
    weight = torch.randn(1, 2, 7, 7).contiguous(memory_format=layout)
    torch.testing.assert_close(
        narrow_convolution(x, weight), F.conv2d(x, weight, padding=3), atol=1e-4, rtol=1e-4
    )


def test_half_types_and_other_dimensions_go_to_pytorch():
    for x, weight in [
        (torch.randn(1, 2, 9), torch.randn(1, 2, 3)),
        (torch.randn(1, 2, 4, 5, 3), torch.randn(1, 2, 3, 3, 3)),
        (torch.randn(1, 2, 4, 5).bfloat16(), torch.randn(1, 2, 3, 3).bfloat16()),
    ]:
        convolution = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
        assert torch.equal(narrow_convolution(x, weight), convolution(x, weight, padding=1))


@pytest.mark.parametrize("gated", [True, False])
def test_statistics_of_a_gate_are_recomputed_not_kept(gated):
    """Output, gradients and second derivatives are those of the convolution of kept statistics."""
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    channel = torch.rand(2, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, weight, channel) if gated else (x, weight)

    def ours(x, weight, *channel):
        statistics, source = gate.GateInput(x).spatial_statistics(*channel)
        return narrow_convolution(statistics, weight, source)

    def literal(x, weight, *channel):
        return F.conv2d(reference.spatial_statistics(x, *channel), weight, padding=1)

    dy = torch.randn(2, 1, 4, 3, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(f(*inputs), inputs, dy) for f in (ours, literal))
    torch.testing.assert_close(found, wanted)
    assert gradgradcheck(ours, inputs)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ours(*inputs)
    assert (2, 2, 4, 3) not in kept
