"""What every detector shares: what the task asks of it, its backbone, frozen norms, and detections from scores."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from foveal.errors import FovealError
from foveal.models.backbone import features_backbone

FOCAL_PRIOR = -math.log(99)
"""Bias of a class layer with one sigmoid a class, so that every class starts with probability 0.01 (Lin et al.)."""


@runtime_checkable
class DetectionNet(Protocol):
    """A network that can detect: an object that has these names.

    Boxes of outputs are centre x, centre y, width and height as shares of the unpadded image; ``sizes`` are int64
    (b, 2), height and width of each image within its zero padding at the right and below, None where there is none.
    """

    num_classes: int

    def __call__(
        self,
        images: Float[Tensor, "b c h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Any]:
        """``logits`` (b, q, k), ``boxes`` (b, q, 4) and, while training, ``levels``: the same of inner levels.

        Args:
            targets: for networks that train on noisy copies of the objects; the others take and ignore them.
        """
        ...

    def losses(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]], sizes: Int[Tensor, "b 2"]
    ) -> dict[str, Tensor]:
        """Weighted parts of the loss by name; their sum is minimised.

        Args:
            targets: ``boxes_xyxy`` (n, 4) float32 pixel edges and ``labels`` (n,) int64 of each image.
        """
        ...

    def detections(
        self, outputs: Mapping[str, Any], sizes: Int[Tensor, "b 2"], limit: int = 100
    ) -> list[dict[str, Tensor]]:
        """``boxes_xyxy`` in pixels of the unpadded image, ``scores``, ``labels``, ``queries``, best first."""
        ...

    def detection_attention(
        self, images: Tensor, sizes: Int[Tensor, "b 2"] | None, queries: Int[Tensor, "b r"]
    ) -> dict[str, Tensor]:
        """What the asked queries looked at, see the network."""
        ...


def whole(images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b 2"]:
    """The sizes of images without padding.

    Example:
        >>> whole(torch.zeros(2, 3, 4, 6)).tolist()
        [[4, 6], [4, 6]]
    """
    b, _, h, w = images.shape
    # without Python numbers, so that a recorded graph takes any size
    return torch.stack([torch.full((b,), side, device=images.device) for side in (h, w)], 1)


def check_sizes(images: Tensor, sizes: Int[Tensor, "b 2"] | None) -> None:
    """Raise where the sizes cannot be those of the images."""
    if images.ndim != 4:
        raise FovealError(f"images must be (b, c, h, w), got {tuple(images.shape)}")
    if sizes is not None and (sizes.shape != (len(images), 2) or sizes.dtype != torch.long):
        raise FovealError(
            f"sizes must be int64 of shape ({len(images)}, 2), got {sizes.dtype} of {tuple(sizes.shape)}"
        )


def backbone_maps(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """The backbone's maps; on a CPU in channels-last order, which spares its convolutions a copy of each map."""
    if images.device.type == "cpu":
        images = images.contiguous(memory_format=torch.channels_last)
    return backbone(images)


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch normalisation, in one pass over the map."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def freeze_norms(net: nn.Module) -> nn.Module:
    """Put `FrozenNorm` in place of every ``BatchNorm2d``: scale, shift and statistics are buffers and stay.

    timm's norms with an activation inside stay as they are in class; only plain ones are replaced.

    Raises:
        FovealError: there is no batch normalisation to freeze.
    """
    found = [(name, one) for name, one in net.named_modules() if type(one) is nn.BatchNorm2d]
    if not found:
        raise FovealError(
            f"frozen_norm is for backbones with BatchNorm2d, got {type(net).__name__} without any"
        )
    for name, one in found:
        frozen = FrozenNorm(one.num_features, one.eps)
        frozen = frozen.to(one.running_mean.device)  # pyright: ignore[reportOptionalMemberAccess]
        state = {key: value for key, value in one.state_dict().items() if key != "num_batches_tracked"}
        frozen.load_state_dict(state, assign=True)
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, frozen)
    return net


def backbone_at_strides(
    name: str,
    *,
    strides: Sequence[int] | None,
    pretrained: bool,
    in_chans: int,
    output_stride: int | None = None,
    frozen_norm: bool = False,
) -> tuple[nn.Module, list[int], list[int]]:
    """A network that gives its feature maps at ``strides``, with their channels and strides; None: the last.

    Raises:
        FovealError: a network that `features_backbone` cannot build, or a stride that it has no map for.
    """
    build = functools.partial(features_backbone, name, in_chans=in_chans, output_stride=output_stride)
    with torch.device("meta"):
        reductions = list(build().feature_info.reduction())
    wanted = [reductions[-1]] if strides is None else list(strides)
    missing = [stride for stride in wanted if stride not in reductions]
    if missing:
        raise FovealError(f"strides of {name} must be among {sorted(set(reductions))}, got {missing[0]}")
    # of several maps at one stride the last
    places = [max(i for i, r in enumerate(reductions) if r == stride) for stride in wanted]
    net: Any = build(pretrained=pretrained, out_indices=places)
    if frozen_norm:
        freeze_norms(net)
    return net, list(net.feature_info.channels()), wanted


@torch.no_grad()
def best_of_each(probabilities: Float[Tensor, "b q k"], limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and queries (b, n): every query's best class, best first, as DETR's."""
    scores, labels = probabilities.max(-1)
    scores, queries = scores.topk(min(limit, scores.shape[1]), 1)
    return scores, labels.gather(1, queries), queries


@torch.no_grad()
def best_of_all(probabilities: Float[Tensor, "b q k"], limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and queries (b, n): the best of all pairs of query and class, as Sparse R-CNN's."""
    classes = probabilities.shape[-1]
    scores, places = probabilities.flatten(1).topk(min(limit, probabilities[0].numel()), 1)
    return scores, places % classes, torch.div(places, classes, rounding_mode="floor")


@contextmanager
def recorded_rows(modules: Sequence[Any], rows: Int[Tensor, "b r"]) -> Iterator[list[Tensor]]:
    """Attention weights (b, heads, r, keys) of the asked rows, one for each module that runs inside, in order."""
    found: list[Tensor] = []

    def record(module: Any, args: tuple[Any, ...]) -> None:
        query, query_position, key, key_position, *mask = args
        found.append(
            module.rows(rows, query, query_position, key, key_position, mask=mask[0] if mask else None)
        )

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
