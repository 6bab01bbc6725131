"""From a stored sample to what a network takes: geometric changes joint for image, mask and box, then normalisation.

Both functions return a callable ``sample -> sample``. It reads ``image`` (uint8, 3 h w) and, where present, ``mask``
(integers, h w), ``box_xyxy`` (4,) or ``boxes_xyxy`` (n, 4); every other entry passes through. It draws from torch's
global generator and from nothing else: seed that per item and epoch, and the same picture comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foveal.data.joint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CentreOnCanvas,
    CropPart,
    JointTransform,
    Rescale,
    ResizeInto,
    interpolation_mode,
)
from foveal.errors import FovealError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SMALL",
    "detection_eval_transform",
    "detection_train_transform",
    "eval_transform",
    "segmentation_eval_transform",
    "segmentation_train_transform",
    "train_transform",
]

# Up to here images are padded and cropped as CIFAR networks are trained; larger ones are cropped and resized.
SMALL = 64


def train_transform(
    size: int,
    *,
    crop: str = "auto",
    flip: float = 0.5,
    jitter: float = 0.0,
    scale: Sequence[float] = (0.35, 1.0),
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> JointTransform:
    """Random crop, flip and colours; ``image`` comes out as float32 (3, size, size), normalised.

    Args:
        size: height and width of the result in pixels.
        crop: "pad": bring the image to ``size``, pad an eighth on every side, crop at random (for small images);
            "resized": crop a random share of the area and resize it; "none": only bring it to ``size``;
            "auto": "pad" up to 64 pixels, "resized" above.
        flip: probability of mirroring left and right, 0..1. Use 0 where a mirrored image shows another class:
            data sets say so with ``mirror = False``.
        jitter: strength of random brightness, contrast and saturation, 0 (off) to 1.
        scale: smallest and largest share of the area that "resized" keeps.
        interpolation: of resizing: "nearest", "bilinear" or "bicubic".
        mean, std: of each channel, for images in 0..1; one value each for grey images.

    A box is clamped to the crop and may become empty (x1 = x2); a mask is never interpolated, and padding is 0 in it.

    Raises:
        FovealError: an argument is outside its range.

    Example:
        >>> import torch
        >>> sample = {"image": torch.zeros(3, 40, 30, dtype=torch.uint8), "box_xyxy": torch.tensor([3.0, 4, 20, 30])}
        >>> out = train_transform(32)(sample | {"label": 7})
        >>> out["image"].shape, out["image"].dtype, out["label"]
        (torch.Size([3, 32, 32]), torch.float32, 7)
    """
    from torchvision.transforms import v2

    _check_size(size)
    if crop not in ("auto", "pad", "resized", "none"):
        raise FovealError(f"crop must be one of auto, pad, resized, none, got {crop!r}")
    for name, value in (("flip", flip), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise FovealError(f"{name} must be between 0 and 1, got {value}")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise FovealError(f"scale must satisfy 0 < smallest <= largest <= 1, got {scale}")
    if crop == "auto":
        crop = "pad" if size <= SMALL else "resized"

    mode = interpolation_mode(interpolation)
    steps: list[Any] = []
    if crop == "resized":
        area = (scale[0], scale[1])
        steps.append(v2.RandomResizedCrop(size, scale=area, interpolation=mode, antialias=True))
    else:
        steps += [v2.Resize(size, interpolation=mode, antialias=True), v2.CenterCrop(size)]
    if crop == "pad":
        steps.append(v2.RandomCrop(size, padding=max(1, size // 8)))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(brightness=0.4 * jitter, contrast=0.4 * jitter, saturation=0.4 * jitter))
    return JointTransform(steps, mean, std)


def eval_transform(
    size: int | tuple[int, int],
    *,
    resize: str = "shorter",
    crop_share: float | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> JointTransform:
    """No randomness: bring the image to ``size`` and normalise; ``image`` comes out as float32.

    With ``crop_share``, ``interpolation``, ``mean`` and ``std`` of a pretrained network of timm (its ``crop_pct``, ...)
    and its ``crop_mode`` as ``resize`` - "center" is "shorter", "squash" is "exact", "border" is "longer" - images
    come out as from ``timm.data.create_transform``: to the bit with "bicubic", with "bilinear" but for the rounding of
    some bytes by one level of 255.

    Args:
        size: height and width of the result in pixels, or one number for both.
        resize: "shorter": the shorter side becomes ``size / crop_share`` (rounded down), then the centre is cropped;
            "exact": both sides become that, the aspect ratio changes; "longer": the longer side becomes that, and
            what is missing is padded with the mean colour.
        crop_share: share of the resized image that the crop keeps, 0 to 1; default 0.875 for "shorter" above 64
            pixels, else 1.
        interpolation: of resizing: "nearest", "bilinear" or "bicubic".
        mean, std: of each channel, for images in 0..1; one value each for grey images.

    Raises:
        FovealError: an argument is outside its range.

    Example:
        >>> import torch
        >>> out = eval_transform(32)({"image": torch.full((3, 48, 64), 255, dtype=torch.uint8)})
        >>> out["image"].shape, round(out["image"].max().item(), 2)  # (1 - 0.406) / 0.225
        (torch.Size([3, 32, 32]), 2.64)
    """
    from torchvision.transforms import v2

    target = (size, size) if isinstance(size, int) else (size[0], size[1])
    for side in target:
        _check_size(side)
    if resize not in ("shorter", "exact", "longer"):
        raise FovealError(f"resize must be shorter, exact or longer, got {resize!r}")
    if crop_share is None:
        crop_share = 0.875 if resize == "shorter" and max(target) > SMALL else 1.0
    if not 0 < crop_share <= 1:
        raise FovealError(f"crop_share must be above 0 and at most 1, got {crop_share}")
    interpolation_mode(interpolation)
    before = [math.floor(side / crop_share) for side in target]
    crop: Any = v2.CenterCrop(target)
    if resize == "longer":
        crop = CentreOnCanvas(target, [round(255 * value) for value in mean])
    return JointTransform([ResizeInto(before, resize, interpolation), crop], mean, std)


def _check_size(size: int) -> None:
    # PyTorch 2.14 resizes no image of colours to a single pixel
    if not 2 <= size <= 8192:
        raise FovealError(f"size must be between 2 and 8192 pixels, got {size}")


def segmentation_train_transform(
    size: int | tuple[int, int],
    *,
    shorter: int | None = None,
    scale: Sequence[float] = (0.5, 2.0),
    flip: float = 0.5,
    jitter: float = 0.0,
    ignore_index: int = 255,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> JointTransform:
    """Random scale, crop, flip and colours of image and mask together; ``image`` comes out normalised.

    Where the scaled image is smaller than the crop, it is padded with the mean colour and ``ignore_index``. Masks
    take the nearest pixel, so no class appears that was not there.

    Args:
        size: height and width of the crop in pixels, or one number for both.
        shorter: bring the shorter side of every image to this many pixels before all else, aspect ratio kept.
        scale: smallest and largest factor by which the image is then resized, drawn log-uniformly.
        flip, jitter, mean, std: as in ``train_transform``.
        ignore_index: mask value of the padding; the data set's ``ignore_index``.

    Raises:
        FovealError: an argument is outside its range.

    Example:
        >>> import torch
        >>> sample = {"image": torch.zeros(3, 40, 90, dtype=torch.uint8), "mask": torch.zeros(40, 90).byte()}
        >>> out = segmentation_train_transform((64, 80), scale=(1.0, 1.0))(sample)
        >>> out["image"].shape, out["mask"].shape, out["mask"].unique().tolist()
        (torch.Size([3, 64, 80]), torch.Size([64, 80]), [0, 255])
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    crop = (size, size) if isinstance(size, int) else tuple(size)
    for side in crop:
        _check_size(side)
    if not 0 < scale[0] <= scale[1]:
        raise FovealError(f"scale must satisfy 0 < smallest <= largest, got {scale}")
    for name, value in (("flip", flip), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise FovealError(f"{name} must be between 0 and 1, got {value}")
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: ignore_index, "others": 0}
    if shorter is not None:
        _check_size(shorter)
    steps: list[Any] = [Rescale(*scale, shorter=shorter)]
    steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(brightness=0.4 * jitter, contrast=0.4 * jitter, saturation=0.4 * jitter))
    return JointTransform(steps, mean, std)


def segmentation_eval_transform(
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    shorter: int | None = None,
) -> JointTransform:
    """The whole image, normalised, its shorter side at ``shorter`` pixels; the mask stays as it is stored.

    Example:
        >>> import torch
        >>> sample = {"image": torch.zeros(3, 40, 60, dtype=torch.uint8), "mask": torch.zeros(40, 60).byte()}
        >>> out = segmentation_eval_transform(shorter=20)(sample)
        >>> out["image"].shape, out["mask"].shape
        (torch.Size([3, 20, 30]), torch.Size([40, 60]))
    """
    if shorter is not None:
        _check_size(shorter)
    return JointTransform([Rescale(shorter=shorter, masks=False)], mean, std)


def detection_train_transform(
    shorter: int,
    longest: int | None = None,
    *,
    scale: Sequence[float] = (0.6, 1.0),
    crop: Sequence[float] = (0.5, 1.0),
    flip: float = 0.5,
    jitter: float = 0.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> JointTransform:
    """Random part, scale, flip and colours of image and boxes together; ``image`` comes out normalised.

    Half the time a part is cut out first. All sizes are in proportion to the image, so that any size of image will do.
    A box of which a crop leaves less than a fifth, or less than 2 pixels, is left out with its label.

    Args:
        shorter, longest: the shorter side gets ``shorter`` pixels times the scale, the longer one at most ``longest``.
        scale: smallest and largest factor on the size, drawn log-uniformly.
        crop: smallest and largest share of each side that a part has; 1, 1 cuts nothing.
        flip, jitter, mean, std: as in ``train_transform``.

    Raises:
        FovealError: an argument is outside its range.

    Example:
        >>> import torch
        >>> sample = {"image": torch.zeros(3, 40, 80, dtype=torch.uint8), "labels": torch.tensor([1]),
        ...           "boxes_xyxy": torch.tensor([[10.0, 10, 30, 30]])}
        >>> out = detection_train_transform(20, scale=(1, 1), crop=(1, 1), flip=1.0)(sample)
        >>> out["image"].shape, out["boxes_xyxy"].tolist()
        (torch.Size([3, 20, 40]), [[25.0, 5.0, 35.0, 15.0]])

    Source: the recipe of Carion et al., DETR (2020): sizes of 480 to 800 pixels, half the time of crops.
    """
    from torchvision.transforms import v2

    _check_size(shorter)
    if not 0 < scale[0] <= scale[1]:
        raise FovealError(f"scale must satisfy 0 < smallest <= largest, got {scale}")
    if not 0 < crop[0] <= crop[1] <= 1:
        raise FovealError(f"crop must satisfy 0 < smallest <= largest <= 1, got {crop}")
    for name, value in (("flip", flip), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise FovealError(f"{name} must be between 0 and 1, got {value}")
    steps: list[Any] = [] if crop[0] == 1 else [CropPart(crop[0], crop[1])]
    steps.append(Rescale(*scale, shorter=shorter, longest=longest))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(brightness=0.4 * jitter, contrast=0.4 * jitter, saturation=0.4 * jitter))
    return JointTransform(steps, mean, std)


def detection_eval_transform(
    shorter: int,
    longest: int | None = None,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> JointTransform:
    """The whole image, normalised, its shorter side at ``shorter`` pixels and the longer one at most at ``longest``.

    ``boxes_xyxy`` moves with the image; ``original_xyxy`` stays where it is.

    Example:
        >>> import torch
        >>> detection_eval_transform(20, 30)({"image": torch.zeros(3, 40, 80, dtype=torch.uint8)})["image"].shape
        torch.Size([3, 15, 30])
    """
    _check_size(shorter)
    return JointTransform([Rescale(shorter=shorter, longest=longest)], mean, std)
