"""What the gates' autograd functions keep for backward, and what may be recomputed from it."""

import torch

from foveal.ops import gate, gate_ops, reference
from foveal.ops.convolution import narrow_convolution


def test_statistics_come_back_from_the_map_the_gate_and_the_argmax():
    x = torch.randn(2, 70, 9, 5, requires_grad=True)
    for channel in (None, torch.rand(2, 70)):
        statistics, source = gate.GateInput(x).spatial_statistics(channel)
        assert source is not None
        again = gate_ops.recomputed_statistics(source.x, source.gate, source.argmax)
        torch.testing.assert_close(again, statistics)
        torch.testing.assert_close(again, reference.spatial_statistics(x, channel))
        # 70 channels fit in a byte
        assert source.argmax.dtype == torch.uint8


def test_statistics_that_were_changed_are_not_recomputed_from_their_source():
    x = torch.randn(1, 3, 4, 5, requires_grad=True)
    weight = torch.ones(1, 2, 3, 3, requires_grad=True)
    statistics, source = gate.GateInput(x).spatial_statistics()
    assert source is not None
    (once,) = torch.autograd.grad(
        narrow_convolution(statistics, weight, source).sum(), weight, retain_graph=True
    )
    (twice,) = torch.autograd.grad(narrow_convolution(statistics * 2, weight, source).sum(), weight)
    torch.testing.assert_close(twice, 2 * once)
    assert source.describes(statistics)
    with torch.no_grad():
        statistics.mul_(2)
    assert not source.describes(statistics)
