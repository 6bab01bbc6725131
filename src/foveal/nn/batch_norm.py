"""Batch normalisation for the insides of a block, safe on any map."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNorm(_BatchNorm):
    """``nn.BatchNorm1d``, ``2d`` and ``3d`` in one, for maps (b, c, *spatial).

    A single value per channel (one image, a 1x1 map) has no variance: PyTorch raises in train mode, this
    normalises it with the running statistics instead and leaves them as they are. An empty batch does the same.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of spatial sizes: the block has checked them."""

    def forward(self, input: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        if not self.normalises_batch(input.numel()):
            return self._normalise(input, self.running_mean, self.running_var)
        return super().forward(input)

    def without_update(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """Return the same as ``forward`` does, and leave the running statistics as they are."""
        if self.normalises_batch(x.numel()):
            return self._normalise(x, None, None)
        return self._normalise(x, self.running_mean, self.running_var)

    def normalises_batch(self, values: int) -> bool:
        """Return whether ``forward`` would take the mean and variance of so many values rather than running ones."""
        return self.training and values > self.num_features

    def track(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"], count: int) -> None:
        """Move the running statistics as ``forward`` does, given the mean and biased variance of ``count`` values."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.mul_(1 - factor).add_(factor * mean)
            self.running_var.mul_(1 - factor).add_(factor * count / (count - 1) * variance)

    def _normalise(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=mean is None, eps=self.eps)


def zero_init(norm: nn.Module) -> None:
    """Make ``norm`` start with an output of exactly zero; its scale and shift still receive gradients."""
    nn.init.zeros_(norm.weight)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(norm.bias)  # pyright: ignore[reportArgumentType]
