"""A block without attention: what a comparison holds attention against."""

from jaxtyping import Float
from torch import Tensor, nn

from foveal.nn import check


class PlainConvolution(nn.Module):
    """``x + restore(relu(norm(mix(x))))``: a 3x3 convolution to fewer channels and a 1x1 convolution back.

    Of clips the kernel is 3x3x3: like attention over clips it sees other frames. ``restore`` starts at zero, so the
    block starts as the identity and learns from the first step.

    Args:
        channels: of the feature map.
        hidden: channels between the two convolutions.
        dims: number of spatial sizes, 2 or 3.

    Raises:
        FovealError: ``hidden`` is below 1, or ``dims`` neither 2 nor 3.

    Example:
        >>> import torch
        >>> block, x = PlainConvolution(64, hidden=4), torch.randn(2, 64, 8, 8)
        >>> torch.equal(block(x), x)
        True
    """

    def __init__(self, channels: int, *, hidden: int, dims: int = 2) -> None:
        super().__init__()
        check.rules(
            ("hidden", hidden, "at least 1", hidden >= 1),
            ("dims", dims, "2 or 3", dims in (2, 3)),
        )
        convolution, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
        self.mix = convolution(channels, hidden, 3, padding=1, bias=False)
        self.norm = norm(hidden)
        self.restore = convolution(hidden, channels, 1, bias=False)
        nn.init.kaiming_normal_(self.mix.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.restore.weight)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        return x + self.restore(nn.functional.relu(self.norm(self.mix(x))))
