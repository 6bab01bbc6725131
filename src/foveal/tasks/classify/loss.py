"""The classification loss: cross-entropy with class weights, label smoothing and mixup; and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.errors import FovealError


def class_probabilities(
    net: nn.Module, images: Float[Tensor, "b c h w"], *, flip: bool = False
) -> Float[Tensor, "b k"]:
    """Softmax of the network's logits, with ``flip`` the mean of those of the images and of their mirror images."""
    probabilities = net(images).float().softmax(dim=1)
    return (probabilities + net(images.flip(-1)).float().softmax(dim=1)) / 2 if flip else probabilities


def balanced_weights(data: Any) -> list[float]:
    """A weight for each class: images / (classes * images of the class), so that every class counts alike.

    Args:
        data: a split for training, with ``labels`` or with items that have a ``label``.

    Raises:
        FovealError: a class has no image.

    Example:
        >>> balanced_weights([{"label": 0}, {"label": 0}, {"label": 0}, {"label": 1}], )
        [0.6666666666666666, 2.0]

    Source:
        King and Zeng, Logistic Regression in Rare Events Data (2001); scikit-learn's ``class_weight="balanced"``.
    """
    labels = getattr(data, "labels", None)
    if labels is None:
        labels = [data[i]["label"] for i in range(len(data))]
    classes = list(getattr(data, "classes", range(max(labels) + 1)))
    counts = torch.bincount(torch.as_tensor(labels), minlength=len(classes)).tolist()
    empty = [str(name) for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise FovealError(
            f"class_weights balanced needs training images of every class, got none of {', '.join(empty)}"
        )
    return [len(labels) / (len(classes) * count) for count in counts]


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
    class_weights: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of one batch, with label smoothing and mixup where asked.

    With class weights the mean is weighted by them, as PyTorch's.

    Args:
        net: images (b, c, h, w) to logits (b, classes).
        mixup: alpha of the Beta distribution; 0 mixes nothing and draws nothing.
        generator: a CPU generator, needed for mixup.
    """
    if mixup == 0:
        logits = net(images)
        return _cross_entropy(logits, labels, class_weights, label_smoothing)
    if generator is None:
        raise FovealError(f"mixup needs a generator, got mixup={mixup}, generator=None")
    images, partner, share = mix_pairs(images, mixup, generator)
    logits = net(images)
    own = _cross_entropy(logits, labels, class_weights, label_smoothing)
    other = _cross_entropy(logits, labels[partner], class_weights, label_smoothing)
    return share * own + (1 - share) * other


def _cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Sequence[float] | None, label_smoothing: float
) -> Tensor:
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    return nn.functional.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing)
