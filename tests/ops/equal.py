"""A fast operator against the equation it computes."""

import torch


def assert_equal(fast, literal, inputs, tolerance):
    """Output and every gradient against the equation in float64, relative to the largest magnitude among them."""
    mine = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, z = fast(*mine), literal(*exact)
    assert y.dtype == inputs[-1].dtype
    u = torch.randn_like(z).to(y.dtype)
    ours = y, *torch.autograd.grad(y, mine, u)
    theirs = z, *torch.autograd.grad(z, exact, u.double())
    # a gradient that cancels to nothing still has the rounding errors of its terms, hence one scale for all
    scale = max(x.abs().max().item() for x in theirs)
    for x, exact_x in zip(ours, theirs, strict=True):
        assert (x.double() - exact_x).abs().max().item() <= tolerance * scale
