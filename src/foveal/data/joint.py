"""Geometric changes that move image, mask and boxes together, then normalisation of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foveal.data.boxes import PER_BOX, visible_share
from foveal.errors import FovealError

Sample = dict[str, Any]
Transform = Callable[[Sample], Sample]

# Per channel, of images in 0..1. timm's and torchvision's pretrained networks expect these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision's steps that draw no random numbers; a step of one's own may say so by an attribute ``random``
WITHOUT_CHANCE = frozenset(
    (
        "Resize",
        "CenterCrop",
        "Pad",
        "Grayscale",
        "RGB",
        "Normalize",
        "ToDtype",
        "Identity",
        "ToImage",
        "ToPureTensor",
    )
)
# torchvision's steps that do with a plain tensor as with an image; see `_plain_step`
PLAIN = frozenset(("RandomResizedCrop", "RandomHorizontalFlip", "Resize", "CenterCrop"))
# torchvision's "nearest" takes the pixel above and left of the middle; Pillow and timm the one in the middle
VISIBLE = "visible"
"""In a joint sample, between steps: the share of each box's area that crops have left."""
LEAST_VISIBLE, LEAST_SIDE = 0.2, 2.0
INTERPOLATIONS = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


class JointTransform:
    """Run torchvision v2 ``steps`` on image, mask and boxes together, then normalise the image.

    Where there is an axis before the channels, as for the frames of a clip, all along it are changed alike.

    Args:
        steps: v2 transforms, applied in order to uint8 images.
        mean, std: of each channel, for images in 0..1; three values, or one for a network that takes grey images. It
            then gets the luma of an RGB image (ITU-R BT.601), rounded as Pillow does.
        normalise: False leaves the image as uint8.

    Attributes:
        random: whether a step draws random numbers, so that one image comes out in many ways. A step of torchvision
            is known by its class; one of your own says so by its attribute ``random``, or counts as random.
        mean, std, normalise: as given.

    Example:
        >>> from torchvision.transforms import v2
        >>> joint = JointTransform([v2.CenterCrop(8)])
        >>> joint.random, JointTransform([v2.RandomCrop(8)]).random
        (False, True)
        >>> joint.without_normalization()({"image": torch.zeros(3, 9, 9, dtype=torch.uint8)})["image"].dtype
        torch.uint8
    """

    def __init__(
        self,
        steps: Sequence[Callable[..., Any]],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        normalise: bool = True,
    ) -> None:
        if len(mean) not in (1, 3) or len(std) != len(mean) or min(std) <= 0:
            raise FovealError(
                f"mean and std need 3 values each, or 1 for grey images, std above 0, got {mean} and {std}"
            )
        self.steps = list(steps)
        self.mean, self.std, self.normalise = tuple(mean), tuple(std), normalise
        # One multiplication and one addition for the bytes 0..255.
        self._gain = 1 / (255 * torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))
        self._shift = -(torch.tensor(mean) / torch.tensor(std)).float().reshape(-1, 1, 1)

    @property
    def random(self) -> bool:
        return any(getattr(step, "random", type(step).__name__ not in WITHOUT_CHANCE) for step in self.steps)

    def without_normalization(self) -> JointTransform:
        """The same steps, giving the image as uint8."""
        return JointTransform(self.steps, self.mean, self.std, normalise=False)

    def normalization_alone(self) -> JointTransform:
        """The same normalisation without any step before it."""
        return JointTransform([], self.mean, self.std)

    def __call__(self, sample: Sample) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        channels = len(self.mean)
        image = grey(sample["image"]) if channels == 1 else sample["image"]
        if image.ndim not in (3, 4) or (self.normalise and image.shape[-3] != channels):
            hint = (
                "; mean and std of 1 value are for grey images" if image.ndim == 3 and channels == 3 else ""
            )
            raise FovealError(f"image must be ({channels}, h, w), got {tuple(image.shape)}{hint}")
        joint: Sample = {"image": image}
        for name, value in sample.items():
            if "mask" in name:
                joint[name] = tv_tensors.Mask(value)
            elif name.startswith("box"):
                boxes = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 4)
                canvas = (image.shape[-2], image.shape[-1])
                joint[name] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)  # pyright: ignore[reportCallIssue]
        for step in self.steps:
            # an image alone is given as such: the walk through a dictionary would take a fifth of the time
            alone = len(joint) == 1 and isinstance(step, v2.Transform)
            if alone and type(step).__name__ in PLAIN:
                joint = {"image": _plain_step(step, joint["image"])}
                continue
            joint["image"] = tv_tensors.Image(joint["image"])
            joint = {"image": step(joint["image"])} if alone else step(joint)
        out = dict(sample)
        visible = joint.pop(VISIBLE, None)
        for name, value in joint.items():
            plain = value.as_subclass(torch.Tensor)
            out[name] = plain.reshape(sample[name].shape) if name.startswith("box") else plain
        if visible is not None:
            out = without_slivers(out, visible)
        if self.normalise:
            out["image"] = self.normalize(out["image"])
        return out

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """Images (..., channels, h, w) of the bytes 0..255 as float32, normalised."""
        values = image.to(torch.float32, copy=True)
        return torch.addcmul(self._shift, values, self._gain, out=values)


def _plain_step(step: Any, image: torch.Tensor) -> torch.Tensor:
    """What a step of `PLAIN` makes of an image, without its search for images among any inputs, which takes longer."""
    if type(step).__name__ == "RandomHorizontalFlip" and torch.rand(1) >= step.p:
        return image
    return step.transform(image, step.make_params([image]))


def without_slivers(sample: Sample, visible: torch.Tensor) -> Sample:
    """A sample without the boxes that a crop has left too little of.

    A box stays if at least a fifth of its area is left and both its sides have at least 2 pixels; else the object is
    cut off, and its rest counts as background.

    Args:
        visible: (n,) the share of each box's area that is left.

    Example:
        >>> sample = {"boxes_xyxy": torch.tensor([[0.0, 0, 9, 9], [0, 0, 1, 9]]), "labels": torch.tensor([4, 5])}
        >>> without_slivers(sample, torch.tensor([0.5, 0.5]))["labels"].tolist()
        [4]
    """
    boxes = sample["boxes_xyxy"]
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (visible >= LEAST_VISIBLE) & (sides >= LEAST_SIDE).all(1)
    return {name: value[kept] if name in PER_BOX else value for name, value in sample.items()}


def grey(image: torch.Tensor) -> torch.Tensor:
    """The luma of RGB images (..., 3, h, w) of uint8, as (..., 1, h, w); others as they are.

    Source: ITU-R BT.601 in the fixed-point numbers of Pillow's ``convert("L")``.

    Example:
        >>> grey(torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(3, 1, 1)).item()
        76
    """
    if image.ndim < 3 or image.shape[-3] != 3 or image.dtype != torch.uint8:
        return image
    red, green, blue = image.int().unbind(-3)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return luma.to(torch.uint8).unsqueeze(-3)


class Rescale:
    """Resize a joint sample, aspect ratio kept: its shorter side to ``shorter``, times a random factor.

    Args:
        smallest, largest: between which the factor is drawn, log-uniformly.
        shorter: in pixels; None takes the sample's own.
        longest: the longer side gets no more pixels than this, if need be by a smaller factor.
        masks: False leaves masks at their size.
    """

    def __init__(
        self,
        smallest: float = 1.0,
        largest: float = 1.0,
        *,
        shorter: int | None = None,
        longest: int | None = None,
        masks: bool = True,
    ) -> None:
        self.smallest, self.largest, self.shorter, self.masks = smallest, largest, shorter, masks
        self.longest = longest
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
        if self.longest is not None:
            factor = min(factor, self.longest / max(height, width))
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        if size == [height, width]:
            return joint
        out = {}
        for name, value in joint.items():
            mask = isinstance(value, tv_tensors.Mask)
            if (mask and not self.masks) or name == VISIBLE:
                out[name] = value
                continue
            # For masks v2 would take NEAREST, which is half a pixel off against the image.
            mode = InterpolationMode.NEAREST_EXACT if mask else InterpolationMode.BILINEAR
            out[name] = functional.resize(value, size, interpolation=mode, antialias=True)
        return out


class CropPart:
    """Cut a random part out of a joint sample, half the time.

    Args:
        smallest, largest: share of each side that is kept, drawn for height and width by themselves.
        probability: of cutting at all.

    What it leaves of each box is noted, so that `JointTransform` can leave out slivers.
    """

    random = True

    def __init__(self, smallest: float, largest: float, probability: float = 0.5) -> None:
        self.smallest, self.largest, self.probability = smallest, largest, probability

    def __call__(self, joint: Sample) -> Sample:
        from torchvision.transforms.v2 import functional

        # always as many draws, so that one choice does not shift the others
        chance, *draws = torch.rand(5).tolist()
        if chance >= self.probability:
            return joint
        height, width = joint["image"].shape[-2:]
        shares = [self.smallest + draw * (self.largest - self.smallest) for draw in draws[:2]]
        h, w = (max(1, round(share * side)) for share, side in zip(shares, (height, width), strict=True))
        top, left = int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1))
        visible = joint.pop(VISIBLE, None)
        cut = {name: functional.crop(value, top, left, h, w) for name, value in joint.items()}
        if "boxes_xyxy" in joint:
            shift = torch.tensor([left, top, left, top], dtype=torch.float32)
            before = joint["boxes_xyxy"].as_subclass(torch.Tensor) - shift
            share = visible_share(before, cut["boxes_xyxy"].as_subclass(torch.Tensor))
            cut[VISIBLE] = share if visible is None else visible * share
        return cut


class ResizeInto:
    """Resize a joint sample to a target, as timm and torchvision do before they crop.

    Args:
        size: height and width of the target in pixels.
        how: "exact": to the target; "shorter": aspect ratio kept, to just cover it; "longer": to just lie within it.
        interpolation: of the image, "nearest", "bilinear" or "bicubic"; masks take the nearest pixel. Bicubic images
            are resized by Pillow, as PyTorch's result differs from it by up to 5 of 255 levels at edges.

    Source: rounding as in ``torchvision.transforms.Resize`` for square targets and timm's ``ResizeKeepRatio`` else.
    """

    random = False

    def __init__(self, size: Sequence[int], how: str, interpolation: str) -> None:
        self.size, self.how, self.interpolation = (size[0], size[1]), how, interpolation

    def __call__(self, joint: Sample) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional

        height, width = joint["image"].shape[-2:]
        size = self._size(height, width)
        if size == [height, width]:
            return joint
        mode, out = interpolation_mode(self.interpolation), {}
        for name, value in joint.items():
            if isinstance(value, tv_tensors.Image) and self.interpolation == "bicubic":
                out[name] = tv_tensors.Image(_resized_by_pillow(value, size))
            else:
                out[name] = functional.resize(value, size, interpolation=mode, antialias=True)
        return out

    def _size(self, height: int, width: int) -> list[int]:
        if self.how == "exact":
            return list(self.size)
        if self.how == "shorter" and self.size[0] == self.size[1]:
            shorter = min(height, width)
            return [int(self.size[0] * side / shorter) for side in (height, width)]
        ratios = height / self.size[0], width / self.size[1]
        ratio = max(ratios) if self.how == "longer" else min(ratios)
        return [max(1, round(side / ratio)) for side in (height, width)]


def _resized_by_pillow(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    if image.ndim > 3:
        return torch.stack([_resized_by_pillow(frame, size) for frame in image])
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    resized = np.array(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized.reshape(*size, -1)).permute(2, 0, 1).contiguous()


class CentreOnCanvas:
    """Cut the centre of a joint sample to a size; where it is smaller, pad it on both sides.

    Args:
        size: height and width of the result in pixels.
        fill: of the image's padding, 0 to 255 for each channel; masks are padded with 0.
    """

    random = False

    def __init__(self, size: Sequence[int], fill: Sequence[int]) -> None:
        self.size, self.fill = tuple(size), list(fill)

    def __call__(self, joint: Sample) -> Sample:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        missing = [max(0, t - side) for side, t in zip(joint["image"].shape[-2:], self.size, strict=True)]
        if any(missing):
            (down, right) = missing
            padding = [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2]
            joint = v2.Pad(padding, fill={tv_tensors.Image: self.fill, "others": 0})(joint)
        return v2.CenterCrop(list(self.size))(joint)


def interpolation_mode(name: str) -> Any:
    """torchvision's interpolation of this name.

    Raises:
        FovealError: the name is not one that tensors can be resized by.
    """
    from torchvision.transforms import InterpolationMode

    if name not in INTERPOLATIONS:
        raise FovealError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {name!r}")
    return InterpolationMode(INTERPOLATIONS[name])
