"""The space in which generated images are compared with real ones: features of a classifier that has a name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.model_info import ModelInfo

BUNDLED = "digits.safetensors"


@dataclass(frozen=True)
class FeatureNetwork:
    """A trained classifier, of which features and answers are taken.

    Attributes:
        name: what the figures are said to be measured with.
    """

    net: nn.Module
    info: ModelInfo
    name: str

    is_inception: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], list[str] | None]:
        """Features before the last layer, and the answers.

        Args:
            images: in 0..1.
        """
        size = self.info.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (self.info.mean, self.info.std)
        )
        kept: list[Tensor] = []
        last = self.net.get_classifier()  # pyright: ignore[reportCallIssue]
        handle = last.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        try:
            logits = self.net.to(images.device)((images - mean) / std)
        finally:
            handle.remove()
        return kept[0].flatten(1).cpu().double(), [self.info.classes[i] for i in logits.argmax(1).tolist()]


@dataclass(frozen=True)
class InceptionFeatures:
    """The Inception network in whose features the Fréchet distance is called FID.

    Attributes:
        net: torch-fidelity's extractor of the 2,048 pooled features.
        name: what the figures are said to be measured with.
    """

    net: nn.Module
    name: str
    is_inception: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 2048"], None]:
        """Pooled features; it knows other classes, so that it gives no answers.

        Args:
            images: in 0..1.
        """
        (found,) = self.net.to(images.device)((255 * images).round().to(torch.uint8))
        return found.flatten(1).cpu().double(), None


def inception_network(weights: str) -> InceptionFeatures:
    """From the weights that torch-fidelity publishes, as a file of this machine; nothing is fetched.

    Raises:
        FovealError: torch-fidelity is not installed, or the file holds something else.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise FovealError('FID needs torch-fidelity: pip install "foveal[fid]"') from None
    try:
        # without running anything of a foreign file; torch-fidelity's own reading comes after
        torch.load(weights, map_location="cpu", weights_only=True)
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
    except (RuntimeError, UnpicklingError, TypeError, AttributeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FovealError(
            f"feature_weights must be torch-fidelity's Inception weights, got {weights}: {reason}"
        ) from None
    return InceptionFeatures(net.eval().requires_grad_(False), f"{Path(weights).name} (Inception: FID)")


def feature_network(weights: str | None, about: Any) -> FeatureNetwork | InceptionFeatures:
    """The network to measure with.

    Args:
        weights: a classifier of `foveal train`, or torch-fidelity's Inception weights, a ``.pth`` file; None is the
            bundled classifier of digits, for data with its classes alone.
        about: data, or what a weights file says, with ``classes``.

    Raises:
        FovealError: the weights do not classify, or none are given for data that are not digits.
    """
    from foveal.checkpoint import load

    if weights is not None and weights.endswith(".pth"):
        return inception_network(weights)
    if weights is not None:
        net = load(weights)
        info = ModelInfo.from_dict(net.foveal_info, weights)  # pyright: ignore[reportArgumentType]
        if info.task != "classify" or not hasattr(net, "get_classifier"):
            raise FovealError(
                f"feature_weights must be those of a classifier, got {weights} of task {info.task}"
            )
        return FeatureNetwork(net.eval().requires_grad_(False), info, weights)
    if list(about.classes) != [str(digit) for digit in range(10)]:
        raise FovealError(
            "feature_weights must be given for these data: train a classifier on them with foveal train --data DATA, "
            "and give its weights"
        )
    with resources.as_file(resources.files("foveal.tasks.generate") / BUNDLED) as path:
        net = load(path)
    info = ModelInfo.from_dict(net.foveal_info, BUNDLED)  # pyright: ignore[reportArgumentType]
    return FeatureNetwork(net.eval().requires_grad_(False), info, f"{BUNDLED} (bundled, trained on digits)")


def frechet_distance(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), between normal distributions fitted to two sets of features.

    It is called FID only in the feature space of Inception. It falls with the number of images: compare at equal ones.

    Example:
        >>> x = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 2.0), 6)
        12.0

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), equation 6.
    """
    mean1, mean2 = one.mean(0), other.mean(0)
    cov1, cov2 = torch.cov(one.T).reshape(len(mean1), -1), torch.cov(other.T).reshape(len(mean1), -1)
    # the trace of the root of a product of covariances is the sum of the roots of its eigenvalues
    roots = torch.linalg.eigvals(cov1 @ cov2).real.clamp_min(0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * roots)


def kernel_distance(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """The unbiased squared maximum mean discrepancy, k(x, y) = (x . y / d + 1)^3, of features standardised by ``one``.

    Source: Binkowski et al., Demystifying MMD GANs (2018), section 4.
    """
    mean, std = one.mean(0), one.std(0).clamp_min(1e-12)
    x, y = (one - mean) / std, (other - mean) / std
    n, m, d = len(x), len(y), x.shape[1]
    kxx, kyy, kxy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (kxx.sum() - kxx.trace()) / (n * (n - 1)) + (kyy.sum() - kyy.trace()) / (m * (m - 1))
    return float(within - 2 * kxy.mean())


def precision_recall(
    real: Float[Tensor, "n d"], made: Float[Tensor, "m d"], k: int = 3
) -> tuple[float, float]:
    """Share of made images within the real ones' neighbourhoods, and of real ones within the made ones'.

    Args:
        k: an image's neighbourhood reaches to its k-th nearest neighbour among its own kind.

    Source: Kynkaanniemi et al., Improved Precision and Recall Metric (2019), equations 1 and 2.
    """

    def covered(manifold: Tensor, points: Tensor) -> float:
        own = torch.cdist(manifold, manifold)
        radius = own.kthvalue(min(k + 1, len(manifold)), dim=1).values
        return float((torch.cdist(points, manifold) <= radius).any(1).double().mean())

    return covered(real, made), covered(made, real)


def spread(features: Float[Tensor, "n d"]) -> float:
    """How far features lie from their mean: the root of their total variance."""
    return math.sqrt(float(features.var(0).sum()))
