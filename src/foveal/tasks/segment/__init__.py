"""One label a pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from foveal.errors import FovealError

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType
    from torch import Tensor, nn

    from foveal.data import JointTransform
    from foveal.model_info import ModelInfo
    from foveal.tasks import Checked
    from foveal.tasks.segment.metric import MeanIoU
    from foveal.tasks.segment.prediction import MaskPrediction
    from foveal.tasks.shipping import Shipment

SCALE_RANGE = (0.5, 2.0)
DEFAULT_SCALES = (0.75, 1.0, 1.25, 1.5)
SCALE_BOUNDS = (0.05, 8.0)


@dataclass(frozen=True)
class SegmentOptions:
    """Options of training that only segmentation has."""

    crop_size: int | None = None
    """Side of the square crops to train on, in pixels of images of image_size. Default: image_size."""
    scale_range: list[float] = field(default_factory=lambda: list(SCALE_RANGE))
    """Smallest and largest factor by which a training image is resized before the crop, as in DANet's code."""
    class_weights: list[float] | Literal["balanced"] | None = None
    """Factor of each class in the loss, in their order, such as [1,1,2.5]; or balanced: from the training
    masks, by median frequency."""
    ohem: bool = False
    """Only hard pixels count, those whose class has less than 0.7 probability, at least a sixteenth of all."""

    def __post_init__(self) -> None:
        if self.crop_size is not None and self.crop_size < 8:
            raise FovealError(f"crop_size must be at least 8, got {self.crop_size}")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise FovealError(
                f"scale_range must be two factors, 0 < smallest <= largest, got {self.scale_range}"
            )
        weights = self.class_weights
        if isinstance(weights, list) and (
            not sum(weights) > 0 or not all(0 <= w < float("inf") for w in weights)
        ):
            raise FovealError(f"class_weights must be finite, at least 0 and not all 0, got {weights}")


@dataclass(frozen=True)
class SegmentInference:
    """Options of evaluating and predicting that only segmentation has.

    Raises:
        FovealError: an option is out of its range, or belongs to another way of inference.

    Example:
        >>> print(SegmentInference("multiscale", scales=[1.0, 1.5], flip=True))
        multiscale: sizes x1, x1.5 and their mirror images, logits averaged
    """

    inference: Literal["whole", "sliding", "multiscale"] = "whole"
    """Each image whole, in square windows that overlap, or at several scales; the figures say which."""
    crop: int | None = None
    """sliding: side of the windows, in pixels of images of image_size. Default: that of the training crops."""
    stride: int | None = None
    """sliding: distance of the windows. Default: two thirds of crop, as in DANet's code."""
    scales: list[float] | None = None
    """multiscale: factors on the size of the image. Default: [0.75,1,1.25,1.5]."""
    flip: bool = False
    """multiscale: also the mirror image at each scale."""

    def __post_init__(self) -> None:
        own = {"whole": (), "sliding": ("crop", "stride"), "multiscale": ("scales", "flip")}
        if self.inference not in own:
            raise FovealError(f"inference must be one of {', '.join(own)}, got {self.inference}")
        for way, names in own.items():
            for name in names:
                if getattr(self, name) not in (None, False) and way != self.inference:
                    raise FovealError(f"{name} is an option of inference {way}, got it with {self.inference}")
        for name in ("crop", "stride"):
            least = 8 if name == "crop" else 1
            if (value := getattr(self, name)) is not None and value < least:
                raise FovealError(f"{name} must be at least {least}, got {value}")
        if self.crop is not None and self.stride is not None and self.stride > self.crop:
            raise FovealError(f"stride must be 1 to crop={self.crop}, got {self.stride}")
        smallest, largest = SCALE_BOUNDS
        if self.scales is not None and (
            not self.scales or not all(smallest <= scale <= largest for scale in self.scales)
        ):
            raise FovealError(
                f"scales must be one or more factors from {smallest} to {largest}, got {list(self.scales)}"
            )

    def __str__(self) -> str:
        match self.inference:
            case "sliding":
                return f"sliding: windows of {self.crop} every {self.stride} pixels, logits averaged"
            case "multiscale":
                sizes = ", ".join(f"x{scale:g}" for scale in self.scales or DEFAULT_SCALES)
                mirrored = " and their mirror images" if self.flip else ""
                return f"multiscale: sizes {sizes}{mirrored}, logits averaged"
        return "whole: each image in one pass"

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file, without what this way of inference does not have."""
        own = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        return {"mode": own.pop("inference"), **own}

    def with_defaults(self, window: int) -> SegmentInference:
        """The same with its defaults filled in.

        Args:
            window: side of sliding windows in pixels where ``crop`` names none.

        Example:
            >>> SegmentInference("sliding").with_defaults(96)
            SegmentInference(inference='sliding', crop=96, stride=64, scales=None, flip=False)
        """
        if self.inference == "sliding":
            crop = self.crop or window
            return replace(self, crop=crop, stride=self.stride or max(1, 2 * crop // 3))
        if self.inference == "multiscale":
            return replace(self, scales=list(self.scales or DEFAULT_SCALES))
        return self


class Segment:
    """The task of naming every pixel. See `foveal.tasks.Task` for what each function is for."""

    Options: ClassVar[type] = SegmentOptions
    InferenceOptions: ClassVar[type] = SegmentInference
    default_model: ClassVar[str] = "danet_test_resnet"
    default_batch_size: ClassVar[int] = 16
    metric: ClassVar[str] = "miou"
    higher_is_better: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "image-segmentation"
    is_share: ClassVar[bool] = True
    writes_folder: ClassVar[bool] = True
    bundled_recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "scenes": {"epochs": 4, "optimizer": "adamw", "lr": 0.003}
    }

    def open(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        from foveal.data import open_dataset

        return open_dataset(data, split, task="segment", **options)

    def inherited_data_options(self, info: ModelInfo, data: str) -> dict[str, Any]:
        """On a folder of other images, the mask value without a class is by default that of the training."""
        stored = data != "scenes" and not data.startswith("torchvision:")
        return {"ignore_index": info.extra["ignore_index"]} if stored and "ignore_index" in info.extra else {}

    def describe(self, data: Mapping[str, Any], options: SegmentOptions) -> dict[str, Any]:
        from foveal.tasks.segment.loss import NO_CLASS, balanced_weights, targets

        classes = list(data["train"].classes)
        if len(classes) < 2:
            raise FovealError(f"the data must have at least 2 classes to tell apart, got {classes}")
        for part, images in data.items():
            if not any(
                (targets(images[i]["mask"], len(classes)) != NO_CLASS).any() for i in range(len(images))
            ):
                raise FovealError(f"the masks must hold at least 1 labelled pixel for {part}, got none")
        weights = options.class_weights
        if weights == "balanced":
            weights = balanced_weights(data["train"], len(classes))
        if weights is not None and len(weights) != len(classes):
            raise FovealError(
                f"class_weights must be one a class, {len(classes)} of them ({', '.join(classes)}), got {len(weights)}"
            )
        ignore = data["train"].ignore_index
        return {"ignore_index": ignore, "crop_size": options.crop_size, "class_weights": weights}

    def default_image_size(self, data: Any) -> int:
        """The shorter side of the data's images: its median over some of them."""
        from foveal.data import median_size

        return min(median_size(data))

    def build(self, model: str, num_classes: int, **options: Any) -> nn.Module:
        from foveal.models import create_model
        from foveal.models.segmentation import HEADS, SegmentationNet

        net = create_model(model, num_classes=num_classes, **options)
        if not isinstance(net, SegmentationNet):
            names = ", ".join(f"{head}_BACKBONE" for head in HEADS)
            raise FovealError(f"task segment needs a network that can segment, one of {names}, got {model}")
        return net

    def train_transform(
        self, data: Any, info: ModelInfo, options: SegmentOptions, augment: bool
    ) -> JointTransform:
        """A square crop, and where the data allow it, another scale and the mirror image."""
        from foveal.data import segmentation_train_transform

        augment = augment and getattr(data, "augment", True)
        return segmentation_train_transform(
            options.crop_size or info.image_size,
            shorter=info.image_size,
            scale=options.scale_range if augment else (1.0, 1.0),
            flip=0.5 if augment and getattr(data, "mirror", True) else 0.0,
            ignore_index=data.ignore_index,
            mean=info.mean,
            std=info.std,
        )

    def eval_transform(self, info: ModelInfo, inference: Any = None) -> JointTransform:
        """The whole image; masks keep their own size."""
        from foveal.data import segmentation_eval_transform

        return segmentation_eval_transform(info.mean, info.std, shorter=info.image_size)

    def collate(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        from foveal.data.loader import collate_by_size

        return collate_by_size([{k: s[k] for k in ("image", "mask") if k in s} for s in samples])

    def losses(
        self,
        net: nn.Module,
        batch: dict[str, Any],
        info: ModelInfo,
        options: SegmentOptions,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        from foveal.tasks.segment.loss import segmentation_losses

        return segmentation_losses(
            net(batch["image"]),
            batch["mask"],
            class_weights=info.extra.get("class_weights"),
            ohem=options.ohem,
        )

    def new_metric(
        self, info: ModelInfo, classes: Sequence[str], inference: SegmentInference | None = None
    ) -> MeanIoU:
        from foveal.tasks.segment.metric import MeanIoU

        return MeanIoU(info.classes, classes, self.settle_inference(inference or SegmentInference(), info))

    def predict(
        self,
        net: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        info: ModelInfo,
        inference: SegmentInference | None = None,
    ) -> list[MaskPrediction]:
        from foveal.tasks.segment.inference import argmax_at_size, logits_of
        from foveal.tasks.segment.prediction import MaskPrediction

        logits = logits_of(net, images, self.settle_inference(inference or SegmentInference(), info))
        return [
            MaskPrediction(argmax_at_size(one[None], size)[0].cpu(), info.classes)
            for one, size in zip(logits, sizes, strict=True)
        ]

    def settle_inference(self, inference: SegmentInference, info: ModelInfo) -> SegmentInference:
        """Windows have by default the size of the training crops."""
        return inference.with_defaults(info.extra.get("crop_size") or info.image_size)

    def write(
        self,
        predictions: Iterable[tuple[MaskPrediction, Tensor]],
        out: Path | None,
        info: ModelInfo,
        inference: SegmentInference,
        format: str,
        unreadable: Mapping[str, str],
    ) -> tuple[int, str]:
        from foveal.tasks.segment.folder import write_masks

        assert out is not None
        return write_masks(predictions, out, info, inference, format, unreadable)

    def show(self, evaluation: Any) -> RenderableType:
        from foveal.tasks.segment.tables import evaluation_table

        return evaluation_table(evaluation)

    def check(self, data: str, split: str, options: dict[str, Any]) -> Checked:
        from foveal.tasks.check import check_stored

        return check_stored(self, data, split, options, lambda sample: sample["mask"].unique().tolist())

    def caption(self, sample: dict[str, Any], classes: Sequence[str]) -> str:
        """The most frequent class of the image but the first, which is often the background."""
        import torch

        counts = torch.bincount(sample["mask"].flatten().long(), minlength=len(classes))[: len(classes)]
        return classes[int(counts[1:].argmax()) + 1] if counts[1:].any() else classes[0]

    def ship(self, info: ModelInfo) -> Shipment:
        from foveal.tasks.segment.shipping import ship

        return ship(info)
