"""From a stored sample to what a network takes: geometric changes joint for image, mask and box, then normalisation.

Both functions return a callable ``sample -> sample``. It reads ``image`` (uint8, 3 h w) and, where present, ``mask``
(integers, h w), ``box_xyxy`` (4,) or ``boxes_xyxy`` (n, 4); every other entry passes through. It draws from torch's
global generator and from nothing else: seed that per item and epoch, and the same picture comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foveal.errors import FovealError

Sample = dict[str, Any]
Transform = Callable[[Sample], Sample]

# Per channel, of images in 0..1. timm's and torchvision's pretrained networks expect these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Up to here images are padded and cropped as CIFAR networks are trained; larger ones are cropped and resized.
SMALL = 64


def train_transform(
    size: int,
    *,
    crop: str = "auto",
    flip: float = 0.5,
    jitter: float = 0.0,
    scale: Sequence[float] = (0.35, 1.0),
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
        mean, std: of each channel, for images in 0..1.

    A box is clamped to the crop and may become empty (x1 = x2); a mask is never interpolated, and padding is 0 in it.

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> import torch
        >>> sample = {"image": torch.zeros(3, 40, 30, dtype=torch.uint8), "box_xyxy": torch.tensor([3.0, 4, 20, 30])}
        >>> out = train_transform(32)(sample | {"label": 7})
        >>> out["image"].shape, out["image"].dtype, out["label"]
        (torch.Size([3, 32, 32]), torch.float32, 7)
    """
    from torchvision.transforms import v2

    _check_size("train_transform", size)
    if crop not in ("auto", "pad", "resized", "none"):
        raise FovealError(f"crop must be one of auto, pad, resized, none, got {crop!r}")
    for name, value in (("flip", flip), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise FovealError(f"{name} must be between 0 and 1, got {value}")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise FovealError(f"scale must satisfy 0 < smallest <= largest <= 1, got {scale}")
    if crop == "auto":
        crop = "pad" if size <= SMALL else "resized"

    steps: list[Any] = []
    if crop == "resized":
        steps.append(v2.RandomResizedCrop(size, scale=(scale[0], scale[1]), antialias=True))
    else:
        steps += [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    if crop == "pad":
        steps.append(v2.RandomCrop(size, padding=max(1, size // 8)))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(brightness=0.4 * jitter, contrast=0.4 * jitter, saturation=0.4 * jitter))
    return JointTransform(steps, mean, std)


def eval_transform(
    size: int,
    *,
    resize: str = "shorter",
    crop_share: float | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> JointTransform:
    """No randomness: bring the image to (size, size) and normalise; ``image`` comes out as float32.

    Args:
        size: height and width of the result in pixels.
        resize: "shorter": the shorter side becomes ``size / crop_share``, then the centre is cropped;
            "exact": both sides become ``size``, the aspect ratio changes, nothing is cut off.
        crop_share: share of the shorter side that is kept, 0 to 1; default 1 up to 64 pixels, 0.875 above.
        mean, std: of each channel, for images in 0..1.

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> import torch
        >>> out = eval_transform(32)({"image": torch.full((3, 48, 64), 255, dtype=torch.uint8)})
        >>> out["image"].shape, round(out["image"].max().item(), 2)  # (1 - 0.406) / 0.225
        (torch.Size([3, 32, 32]), 2.64)
    """
    from torchvision.transforms import v2

    _check_size("eval_transform", size)
    if resize not in ("shorter", "exact"):
        raise FovealError(f"resize must be shorter or exact, got {resize!r}")
    if crop_share is None:
        crop_share = 1.0 if size <= SMALL else 0.875
    if not 0 < crop_share <= 1:
        raise FovealError(f"crop_share must be above 0 and at most 1, got {crop_share}")
    if resize == "exact":
        return JointTransform([v2.Resize((size, size), antialias=True)], mean, std)
    return JointTransform(
        [v2.Resize(round(size / crop_share), antialias=True), v2.CenterCrop(size)], mean, std
    )


class JointTransform:
    """Run torchvision v2 ``steps`` on image, mask and boxes together, then normalise the image.

    Args:
        steps: v2 transforms, applied in order to uint8 images.
        mean, std: of each channel, for images in 0..1.
        normalise: False leaves the image as uint8.
    """

    def __init__(
        self,
        steps: Sequence[Callable[..., Any]],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        normalise: bool = True,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise FovealError(f"mean and std need 3 values each, std above 0, got {mean} and {std}")
        self.steps = list(steps)
        self.normalise = normalise
        self.mean, self.std = tuple(mean), tuple(std)
        # One multiplication and one addition for the bytes 0..255.
        self._gain = 1 / (255 * torch.tensor(std, dtype=torch.float32).reshape(3, 1, 1))
        self._shift = -(torch.tensor(mean) / torch.tensor(std)).float().reshape(3, 1, 1)

    def without_normalization(self) -> JointTransform:
        """The same steps, giving uint8 images."""
        return JointTransform(self.steps, normalise=False)

    def __call__(self, sample: Sample) -> Sample:
        from torchvision import tv_tensors

        image = sample["image"]
        if image.ndim != 3 or image.shape[0] != 3:
            raise FovealError(f"image must be (3, h, w), got {tuple(image.shape)}")
        joint: Sample = {"image": tv_tensors.Image(image)}
        for name, value in sample.items():
            if "mask" in name:
                joint[name] = tv_tensors.Mask(value)
            elif name.startswith("box"):
                boxes = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 4)
                canvas = (image.shape[1], image.shape[2])
                joint[name] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)  # pyright: ignore[reportCallIssue]
        for step in self.steps:
            joint = step(joint)
        out = dict(sample)
        for name, value in joint.items():
            plain = value.as_subclass(torch.Tensor)
            out[name] = plain.reshape(sample[name].shape) if name.startswith("box") else plain
        if self.normalise:
            out["image"] = self.normalize(out["image"])
        return out

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """Images (..., 3, h, w) of the bytes 0..255 as float32, normalised."""
        return torch.addcmul(self._shift, image.float(), self._gain)

    @property
    def random(self) -> bool:
        """Whether the steps draw random numbers."""
        return any(
            getattr(step, "random", type(step).__name__.startswith(("Random", "Color")))
            for step in self.steps
        )


def _check_size(function: str, size: int) -> None:
    if not 1 <= size <= 8192:
        raise FovealError(f"size must be between 1 and 8192 pixels, got {size}")


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
        ValueError: an argument is outside its range.

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
        _check_size("segmentation_train_transform", side)
    if not 0 < scale[0] <= scale[1]:
        raise FovealError(f"scale must satisfy 0 < smallest <= largest, got {scale}")
    for name, value in (("flip", flip), ("jitter", jitter)):
        if not 0 <= value <= 1:
            raise FovealError(f"{name} must be between 0 and 1, got {value}")
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: ignore_index, "others": 0}
    if shorter is not None:
        _check_size("segmentation_train_transform", shorter)
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
        _check_size("segmentation_eval_transform", shorter)
    return JointTransform([Rescale(shorter=shorter, masks=False)], mean, std)


class Rescale:
    """Resize a joint sample, aspect ratio kept: its shorter side to ``shorter``, times a random factor.

    Args:
        smallest, largest: between which the factor is drawn, log-uniformly.
        shorter: in pixels; None takes the sample's own.
        masks: False leaves masks at their size.
    """

    def __init__(
        self,
        smallest: float = 1.0,
        largest: float = 1.0,
        *,
        shorter: int | None = None,
        masks: bool = True,
    ) -> None:
        self.smallest, self.largest, self.shorter, self.masks = smallest, largest, shorter, masks
        self.random = smallest != largest

    def __call__(self, joint: Sample) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        height, width = joint["image"].shape[-2:]
        factor = 1.0 if self.shorter is None else self.shorter / min(height, width)
        if self.smallest != self.largest:
            factor *= self.smallest * (self.largest / self.smallest) ** torch.rand(()).item()
        else:
            factor *= self.smallest
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        if size == [height, width]:
            return joint
        out = {}
        for name, value in joint.items():
            mask = isinstance(value, tv_tensors.Mask)
            if mask and not self.masks:
                out[name] = value
                continue
            # For masks v2 would take NEAREST, which is half a pixel off against the image.
            mode = InterpolationMode.NEAREST_EXACT if mask else InterpolationMode.BILINEAR
            out[name] = functional.resize(value, size, interpolation=mode, antialias=True)
        return out
