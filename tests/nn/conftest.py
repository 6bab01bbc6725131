"""What the parity tests share."""

import pytest
import torch
from torch import nn

from foveal.ops import attention


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def tiles_for_small_maps_too(monkeypatch):
    """The sizes of tests are small: without this they would all take the literal equation."""
    monkeypatch.setattr(attention, "FEW_SCORES", 0)


@pytest.fixture
def randomise():
    def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
        """Random weights everywhere, also where a block starts at zero, and random running statistics."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
            for name, tensor in module.named_buffers():
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
        return module

    return randomise


@pytest.fixture
def assert_same():
    def assert_same(ours, theirs, x, weights=(), tolerance=1e-10) -> None:
        """Equal output, equal gradient of ``x`` and of the (ours, theirs) pairs of weights, in float64."""
        x = x.double()
        results = []
        for function, own in [(ours, [a for a, _ in weights]), (theirs, [b for _, b in weights])]:
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
            results.append([y, *torch.autograd.grad(y, [leaf, *own], seed)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b.reshape(a.shape), rtol=tolerance, atol=tolerance)

    return assert_same
