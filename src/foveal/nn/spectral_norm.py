"""Layers divided by the largest singular value of their weight."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.nn.positions import pointwise

CONVOLUTION_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class SpectralPointwise(nn.Module):
    """A 1x1 convolution under spectral norm, ``conv(x, W / sigma(W)) + bias``.

    One power iteration in each training step estimates sigma. PyTorch's own parametrisation cannot be pickled.

    Source: Miyato et al., "Spectral Normalization for GANs", algorithm 1.
    """

    moves = True
    """Whether a pass in train mode moves the stored singular vector, see `hold_vectors`."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        like = pointwise(dims, in_channels, out_channels, bias)
        self.dims, self.weight, self.bias = dims, like.weight, like.bias
        self.u: Tensor
        self.register_buffer("u", F.normalize(torch.randn(out_channels), dim=0))

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """The weight as the matrix whose singular value counts."""
        return self.weight.flatten(1)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b e *spatial"]:
        return self._convolve(x, update=self.training and self.moves)

    def without_update(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b e *spatial"]:
        """Return the same as ``forward`` does, and leave the stored singular vector as it is."""
        return self._convolve(x, update=False)

    def _convolve(self, x: Tensor, update: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            sigma = singular_value(self.matrix(), self.u, update=update)
            weight = self.weight / sigma.to(self.weight.dtype)
        return CONVOLUTION_FUNCTIONS[self.dims](x, weight, self.bias)


class SpectralNorm(nn.Module):
    """A layer under spectral norm: ``layer`` with its weight divided by sigma.

    As the SAGAN code does, a convolution's weight is the matrix (out channels, in channels * kernel).

    Args:
        layer: a convolution, a transposed convolution, a linear layer or an embedding.

    Example:
        >>> layer = SpectralNorm(nn.Conv2d(3, 8, 3, padding=1))
        >>> tuple(layer(torch.zeros(2, 3, 5, 6)).shape)
        (2, 8, 5, 6)

    Source: Miyato et al., "Spectral Normalization for GANs", algorithm 1.
    """

    moves = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.u: Tensor
        self.register_buffer("u", F.normalize(torch.randn(len(self.matrix())), dim=0))

    @property
    def weight(self) -> Tensor:
        """The weight before it is divided."""
        return self.layer.weight  # pyright: ignore[reportReturnType]

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """The weight as the matrix whose singular value counts."""
        transposed = isinstance(self.layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        return (self.weight.transpose(0, 1) if transposed else self.weight).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            sigma = singular_value(self.matrix(), self.u, update=self.training and self.moves)
            weight = self.weight / sigma.to(self.weight.dtype)
        return torch.func.functional_call(self.layer, {"weight": weight}, (x,))


def singular_value(
    matrix: Float[Tensor, "rows columns"], u: Float[Tensor, " rows"], *, update: bool
) -> Float[Tensor, ""]:
    """The largest singular value after one power iteration; both vectors are constants for the gradient.

    Args:
        u: the left vector so far; with ``update`` it is replaced by the new one.
    """
    exact = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    with torch.no_grad():
        v = F.normalize(u.to(exact) @ exact, dim=0)
        left = F.normalize(exact @ v, dim=0)
        if update:
            u.copy_(left)
    return left @ exact @ v


@contextmanager
def hold_vectors(net: nn.Module) -> Iterator[None]:
    """Within it, passes in train mode leave the singular vectors of ``net`` as they are.

    Example:
        >>> layer = SpectralNorm(nn.Linear(3, 2))
        >>> before = layer.u.clone()
        >>> with hold_vectors(layer):
        ...     _ = layer(torch.ones(1, 3))
        >>> torch.equal(layer.u, before)
        True
    """
    held = spectral_layers(net)
    before = [layer.moves for layer in held]
    for layer in held:
        layer.moves = False
    try:
        yield
    finally:
        for layer, moves in zip(held, before, strict=True):
            layer.moves = moves


def spectral_layers(net: nn.Module) -> list[SpectralPointwise | SpectralNorm]:
    """The layers of a network that are under spectral norm."""
    return [module for module in net.modules() if isinstance(module, SpectralPointwise | SpectralNorm)]
