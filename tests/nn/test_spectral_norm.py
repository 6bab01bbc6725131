import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from foveal.nn.spectral_norm import SpectralNorm, SpectralPointwise, hold_vectors, spectral_layers


def test_training_converges_to_the_largest_singular_value():
    layer = SpectralPointwise(2, 12, 5, bias=False)
    x = torch.randn(1, 12, 3, 3)
    for _ in range(200):
        y = layer(x)
    exact = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    torch.testing.assert_close(y, nn.functional.conv2d(x, layer.weight / exact), rtol=1e-4, atol=1e-5)


def test_converged_output_and_gradient_equal_pytorchs_own():
    # before convergence they differ by half a power iteration
    ours = SpectralPointwise(2, 12, 5).double().eval()
    conv = nn.Conv2d(12, 5, 1).double()
    conv.load_state_dict({"weight": ours.weight, "bias": ours.bias})
    theirs = spectral_norm(conv).eval()
    left, _, right = torch.linalg.svd(ours.weight.detach().flatten(1))
    ours.u.copy_(left[:, 0])
    theirs.parametrizations.weight[0]._u.copy_(left[:, 0])
    theirs.parametrizations.weight[0]._v.copy_(right[0])
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.square().sum(), ours.weight)
    (expected_gradient,) = torch.autograd.grad(
        expected.square().sum(), theirs.parametrizations.weight.original
    )
    torch.testing.assert_close(gradient, expected_gradient)


def test_only_training_moves_the_stored_vector():
    layer = SpectralPointwise(1, 6, 4)
    x, before = torch.randn(1, 6, 3), layer.u.clone()
    still = layer.without_update(x)
    assert torch.equal(layer.u, before)
    assert torch.equal(layer.eval()(x), still)
    assert torch.equal(layer.u, before)
    assert torch.equal(layer.train()(x), still)
    assert not torch.equal(layer.u, before)


def test_two_forward_passes_before_one_backward_pass():
    layer = SpectralPointwise(1, 6, 4)
    (layer(torch.randn(1, 6, 3)) + layer(torch.randn(1, 6, 3))).sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 6, 7)),
        (nn.ConvTranspose2d(4, 3, 4, 2, 1), torch.randn(2, 4, 3, 3)),
        (nn.Linear(6, 4), torch.randn(3, 6)),
        (nn.Embedding(5, 7), torch.tensor([0, 4, 4])),
    ],
)
def test_a_normed_layer_has_the_largest_singular_value_1(layer, x):
    normed = SpectralNorm(layer)
    for _ in range(300):
        y = normed(x)
    rows = layer.weight.detach()
    rows = (rows.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else rows).flatten(1)
    exact = torch.linalg.matrix_norm(rows, 2)
    with torch.no_grad():
        layer.weight.div_(exact)
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)


def test_vectors_that_are_held_do_not_move_and_move_again_afterwards():
    net = nn.Sequential(SpectralNorm(nn.Linear(4, 3)), SpectralPointwise(1, 3, 2))
    before = [layer.u.clone() for layer in spectral_layers(net)]
    with hold_vectors(net):
        net[1](net[0](torch.randn(5, 2, 4)).mT)
    assert all(torch.equal(a, layer.u) for a, layer in zip(before, spectral_layers(net), strict=True))
    net[1](net[0](torch.randn(5, 2, 4)).mT)
    assert not any(torch.equal(a, layer.u) for a, layer in zip(before, spectral_layers(net), strict=True))
