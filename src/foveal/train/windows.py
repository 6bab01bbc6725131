"""How a whole image goes through a segmentation network: at once, in windows, or at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError

MODES = ("whole", "sliding", "multiscale")
SCALES = (0.75, 1.0, 1.25, 1.5)
SMALLEST_WINDOW = 8
SCALE_BOUNDS = (0.05, 8.0)  # beyond, nothing is left of an image, or of the memory


@dataclass(frozen=True)
class Inference:
    """One way to get logits of a whole image; where several predictions meet, logits are averaged.

    Attributes:
        mode: "whole": one pass; "sliding": square windows that overlap; "multiscale": one pass a scale.
        crop: side of the windows, in pixels as the network sees them.
        stride: distance of the windows, at most ``crop``.
        scales: factors on the image's size.
        flip: also the mirrored image, at each scale.

    Raises:
        ValueError: an option out of its range, or of another mode.

    Example:
        >>> Inference.of("sliding", crop=96)
        Inference(mode='sliding', crop=96, stride=64, scales=None, flip=False)
        >>> print(Inference.of("multiscale", scales=[1.0, 1.5], flip=True))
        multiscale: sizes x1, x1.5 and their mirror images, logits averaged
    """

    mode: str = "whole"
    crop: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] | None = None
    flip: bool = False

    @classmethod
    def of(
        cls,
        mode: str = "whole",
        *,
        crop: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool = False,
        trained: Mapping[str, Any] | None = None,
    ) -> Inference:
        """As a user asks for it. By default the stride is 2/3 of the window, as in DANet's code.

        Args:
            trained: what training kept with the weights; windows have by default the size of its crops.
        """
        if mode not in MODES:
            raise FovealError(f"must be one of {', '.join(MODES)}, got {mode}")
        given = {"crop": crop, "stride": stride, "scales": scales, "flip": flip or None}
        own = {"whole": (), "sliding": ("crop", "stride"), "multiscale": ("scales", "flip")}
        for name, value in given.items():
            if value is not None and name not in own[mode]:
                owner = "sliding" if name in own["sliding"] else "multiscale"
                raise FovealError(f"{name} is an option of {owner}, got it with {mode}")
        if mode == "sliding":
            if crop is None and trained is not None:
                crop = trained.get("crop_size") or trained["image_size"]
            if crop is None or crop < SMALLEST_WINDOW:
                raise FovealError(f"crop must be at least {SMALLEST_WINDOW}, got {crop}")
            stride = stride if stride is not None else max(1, 2 * crop // 3)
            if not 1 <= stride <= crop:
                raise FovealError(f"stride must be 1 to crop={crop}, got {stride}")
        if mode == "multiscale":
            scales = tuple(scales) if scales is not None else SCALES
            least, most = SCALE_BOUNDS
            if not scales or not all(least <= scale <= most for scale in scales):
                raise FovealError(
                    f"scales must be one or more factors from {least} to {most}, got {list(scales)}"
                )
        return cls(mode, crop, stride, None if scales is None else tuple(scales), flip)

    def __str__(self) -> str:
        match self.mode:
            case "sliding":
                return f"sliding: windows of {self.crop} every {self.stride} pixels, logits averaged"
            case "multiscale":
                sizes = ", ".join(f"x{scale:g}" for scale in self.scales or ())
                mirrored = " and their mirror images" if self.flip else ""
                return f"multiscale: sizes {sizes}{mirrored}, logits averaged"
        return "whole: each image in one pass"

    def described(self) -> dict[str, Any]:
        """For a JSON file, without what the mode does not have."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}

    @torch.no_grad()
    def __call__(self, net: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits in float32 at the images' size."""
        match self.mode:
            case "sliding":
                assert self.crop is not None
                assert self.stride is not None
                return sliding(net, images, self.crop, self.stride)
            case "multiscale":
                assert self.scales is not None
                return multiscale(net, images, self.scales, self.flip)
        return net(images)["fused"].float()


def resized(logits: Float[Tensor, "b k h w"], size: Sequence[int]) -> Float[Tensor, "b k H W"]:
    """Logits in float32 at another size (height, width), bilinearly."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def sliding(
    net: nn.Module, images: Float[Tensor, "b c h w"], crop: int, stride: int
) -> Float[Tensor, "b k h w"]:
    """Mean logits over the windows that hold a pixel. Images smaller than a window are padded by 0, the mean colour."""
    h, w = images.shape[-2:]
    padded = F.pad(images, (0, max(0, crop - w), 0, max(0, crop - h)))
    count = images.new_zeros(padded.shape[-2:])
    total = count  # of the logits, as soon as their number is known
    for top in starts(padded.shape[-2], crop, stride):
        for left in starts(padded.shape[-1], crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            logits = net(padded[..., rows, columns])["fused"].float()
            if total is count:
                total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
            total[..., rows, columns] += logits
            count[rows, columns] += 1
    return (total / count)[..., :h, :w]


def starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixels of windows that cover 0..length, the last one flush with the end.

    Example:
        >>> starts(10, 4, 3), starts(11, 4, 3), starts(4, 4, 3)
        ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    regular = list(range(0, length - crop + 1, stride))
    return regular if regular[-1] == length - crop else [*regular, length - crop]


def multiscale(
    net: nn.Module, images: Float[Tensor, "b c h w"], scales: Sequence[float], flip: bool
) -> Float[Tensor, "b k h w"]:
    """Mean logits over resized images and, with ``flip``, their mirror images."""
    h, w = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        scaled = images
        if size != (h, w):
            scaled = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        logits = resized(net(scaled)["fused"], (h, w))
        if flip:
            logits = (logits + resized(net(scaled.flip(-1))["fused"], (h, w)).flip(-1)) / 2
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(scales)
