"""The classification loss: cross-entropy with label smoothing and mixup."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.errors import FovealError


def mix_pairs(
    images: Float[Tensor, "b c h w"], alpha: float, generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"], float]:
    """Mixup: share * images + (1 - share) * images[partner], share ~ Beta(alpha, alpha).

    Returns:
        Mixed images; the index of each one's partner; the share, in (0, 1).

    Example:
        >>> mixed, partner, share = mix_pairs(torch.ones(4, 3, 8, 8), 0.2, torch.Generator().manual_seed(0))
        >>> bool((mixed == 1).all()), sorted(partner.tolist())
        (True, [0, 1, 2, 3])

    Source:
        Zhang et al., mixup (2018), equation 1; one share a batch, as in their code.
    """
    # Beta(a, a) as a ratio of Gammas, because torch.distributions takes no generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    return share * images + (1 - share) * images[partner], partner, share


def classification_loss(
    net: nn.Module,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of one batch, with label smoothing and mixup where asked.

    Args:
        net: images (b, c, h, w) to logits (b, classes).
        mixup: alpha of the Beta distribution; 0 mixes nothing and draws nothing.
        generator: a CPU generator, needed for mixup.
    """
    if mixup == 0:
        return nn.functional.cross_entropy(net(images), labels, label_smoothing=label_smoothing)
    if generator is None:
        raise FovealError(f"mixup needs a generator, got mixup={mixup}, generator=None")
    images, partner, share = mix_pairs(images, mixup, generator)
    logits = net(images)
    own = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    other = nn.functional.cross_entropy(logits, labels[partner], label_smoothing=label_smoothing)
    return share * own + (1 - share) * other
