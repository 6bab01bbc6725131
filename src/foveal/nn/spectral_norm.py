"""A 1x1 convolution divided by its largest singular value."""

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

    def __init__(self, dims: int, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        like = pointwise(dims, in_channels, out_channels, bias)
        self.dims, self.weight, self.bias = dims, like.weight, like.bias
        self.u: Tensor
        self.register_buffer("u", F.normalize(torch.randn(out_channels), dim=0))

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b e *spatial"]:
        return self._convolve(x, update=self.training)

    def without_update(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b e *spatial"]:
        """Return the same as ``forward`` does, and leave the stored singular vector as it is."""
        return self._convolve(x, update=False)

    def _convolve(self, x: Tensor, update: bool) -> Tensor:
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            matrix = self.weight.flatten(1).to(exact)
            with torch.no_grad():
                v = F.normalize(self.u.to(exact) @ matrix, dim=0)
                u = F.normalize(matrix @ v, dim=0)
                if update:
                    self.u.copy_(u)
            sigma = u @ matrix @ v
            weight = self.weight / sigma.to(self.weight.dtype)
        return CONVOLUTION_FUNCTIONS[self.dims](x, weight, self.bias)
