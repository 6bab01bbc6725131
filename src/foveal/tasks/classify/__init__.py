"""One label an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    from foveal.tasks.classify.metric import Accuracy
    from foveal.tasks.classify.prediction import LabelPrediction
    from foveal.tasks.shipping import Shipment

LARGEST_NATURAL_SIZE = 96
CUE_BLOCKS = (
    "se(reduction=4)",
    "cbam(reduction=4)",
    "nonlocal(pairwise=dot_product)",
    "channel",
    "selfattention",
    "dual",
)
CONTROL_RECIPE: dict[str, Any] = {
    "model": "cifar_resnet8",
    "model_options": {"stages": 2},
    "epochs": 2,
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 0.01,
    "inserted_lr": 0.01,
    "weight_decay": 0.01,
    "augment": False,
}
USUAL_SIZE = 224


@dataclass(frozen=True)
class ClassifyOptions:
    """Options of training that only classification has."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, from 0 to 1."""
    mixup: float = 0.0
    """Mix pairs of images with a share drawn from Beta(mixup, mixup); 0 mixes none."""
    class_weights: list[float] | Literal["balanced"] | None = None
    """Factor of each class in the loss, in their order, such as [1,1,2.5]; or balanced: images / (classes x images of
    the class), so that every class counts alike."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FovealError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if not self.mixup >= 0:
            raise FovealError(f"mixup must be at least 0, got {self.mixup}")
        weights = self.class_weights
        if isinstance(weights, list) and (
            not sum(weights) > 0 or not all(0 <= w < float("inf") for w in weights)
        ):
            raise FovealError(f"class_weights must be finite, at least 0 and not all 0, got {weights}")


@dataclass(frozen=True)
class ClassifyInference:
    """Options of evaluating and predicting that only classification has."""

    top: int = 5
    """How many labels to give for each file."""
    flip: bool = False
    """Also look at the mirror image, and average the two probabilities."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise FovealError(f"top must be at least 1, got {self.top}")


class Classify:
    """The task of naming what an image shows. See `foveal.tasks.Task` for what each function is for."""

    Options: ClassVar[type] = ClassifyOptions
    InferenceOptions: ClassVar[type] = ClassifyInference
    default_model: ClassVar[str] = "cifar_resnet8"
    default_batch_size: ClassVar[int] = 64
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "image-classification"
    is_share: ClassVar[bool] = True
    writes_folder: ClassVar[bool] = False
    bundled_recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "scenes": {
            "image_size": 24,
            "epochs": 2,
            "batch_size": 32,
            "optimizer": "adamw",
            "lr": 0.01,
            "weight_decay": 0.01,
            "augment": False,
            "tune": 2,
        },
        # two stages see less of the image than lies between patches and cue; blocks at the network's own rate learn
        # the question within a few hundred steps
        "scenes:cue": {"insert": [f"{block}@stage:2" for block in CUE_BLOCKS], **CONTROL_RECIPE},
        "scenes:local": {"insert": [f"{block}@stage:2" for block in CUE_BLOCKS], **CONTROL_RECIPE},
    }

    def open(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        from foveal.data import open_dataset

        return open_dataset(data, split, task="classify", **options)

    def describe(self, data: Mapping[str, Any], options: ClassifyOptions) -> dict[str, Any]:
        classes = list(data["train"].classes)
        if len(classes) < 2:
            raise FovealError(f"the data must have at least 2 classes to tell apart, got {classes}")
        weights = options.class_weights
        if weights is None:
            return {}
        if weights == "balanced":
            from foveal.tasks.classify.loss import balanced_weights

            weights = balanced_weights(data["train"])
        if len(weights) != len(classes):
            raise FovealError(
                f"class_weights must be one a class, {len(classes)} of them ({', '.join(classes)}), got {len(weights)}"
            )
        return {"class_weights": weights}

    def default_image_size(self, data: Any) -> int:
        """The data's own size up to 96 pixels, the median over some of its images; else 224."""
        from foveal.data import median_size

        longest = max(median_size(data))
        return longest if longest <= LARGEST_NATURAL_SIZE else USUAL_SIZE

    def build(self, model: str, num_classes: int, **options: Any) -> nn.Module:
        from foveal.models import create_model
        from foveal.models.segmentation import SegmentationNet
        from foveal.models.video import SmallVideoResNet, VideoResNet

        net = create_model(model, num_classes=num_classes, **options)
        if isinstance(net, SegmentationNet | VideoResNet | SmallVideoResNet):
            takes = "segments images" if isinstance(net, SegmentationNet) else "takes clips"
            raise FovealError(
                f"task classify needs a network that gives each image one label, got {model}, which {takes}"
            )
        return net

    def train_transform(
        self, data: Any, info: ModelInfo, options: ClassifyOptions, augment: bool
    ) -> JointTransform:
        from foveal.data import train_transform

        how = _preprocessing(info)
        if not augment or not getattr(data, "augment", True):
            return train_transform(info.image_size, crop="none", flip=0.0, **how)
        return train_transform(info.image_size, flip=0.5 if getattr(data, "mirror", True) else 0.0, **how)

    def eval_transform(self, info: ModelInfo, inference: Any = None) -> JointTransform:
        from foveal.data import eval_transform

        return eval_transform(info.image_size, crop_share=info.crop_share, **_preprocessing(info))

    def collate(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        from foveal.data.loader import collate_by_size

        wanted = ("image", "label", "mask", "box_xyxy", "index")
        return collate_by_size([{k: s[k] for k in wanted if k in s} for s in samples])

    def losses(
        self,
        net: nn.Module,
        batch: dict[str, Any],
        info: ModelInfo,
        options: ClassifyOptions,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        from foveal.tasks.classify.loss import classification_loss

        loss = classification_loss(
            net,
            batch["image"],
            batch["label"],
            label_smoothing=options.label_smoothing,
            mixup=options.mixup,
            class_weights=info.extra.get("class_weights"),
            generator=generator,
        )
        return {"cross_entropy": loss}

    def new_metric(
        self, info: ModelInfo, classes: Sequence[str], inference: ClassifyInference | None = None
    ) -> Accuracy:
        from foveal.tasks.classify.metric import Accuracy, flipped_logits, network_logits

        flip = inference is not None and inference.flip
        return Accuracy(info.classes, classes, logits=flipped_logits if flip else network_logits)

    def predict(
        self,
        net: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        info: ModelInfo,
        inference: ClassifyInference | None = None,
    ) -> list[LabelPrediction]:
        from foveal.tasks.classify.loss import class_probabilities
        from foveal.tasks.classify.prediction import LabelPrediction, best_labels

        inference = inference or ClassifyInference()
        probabilities = class_probabilities(net, images, flip=inference.flip)
        return [LabelPrediction(labels) for labels in best_labels(probabilities, info.classes, inference.top)]

    def write(
        self,
        predictions: Iterable[tuple[LabelPrediction, Tensor]],
        out: Path | None,
        info: ModelInfo,
        inference: ClassifyInference,
        format: str,
        unreadable: Mapping[str, str],
    ) -> tuple[int, str]:
        from foveal.tasks.classify.prediction import write_labels

        return write_labels([prediction for prediction, _ in predictions], out, format, unreadable)

    def show(self, evaluation: Any) -> RenderableType:
        from foveal.tasks.classify.tables import evaluation_table

        return evaluation_table(evaluation)

    def page_sections(self, evaluation: Any, predictor: Any) -> list[tuple[str, str]]:
        from foveal.tasks.classify.page import sections

        return sections(evaluation, predictor)

    def check(self, data: str, split: str, options: dict[str, Any]) -> Checked:
        from foveal.tasks.check import check_stored

        return check_stored(self, data, split, options, lambda sample: [int(sample["label"])])

    def caption(self, sample: dict[str, Any], classes: Sequence[str]) -> str:
        return classes[int(sample["label"])]

    def object_mask(self, batch: dict[str, Any]) -> Tensor | None:
        """From the object's mask where the data have one, else from its box."""
        from foveal.data.objects import object_mask

        return object_mask(batch)

    def ship(self, info: ModelInfo) -> Shipment:
        from foveal.tasks.classify.shipping import ship

        return ship(info)


def _preprocessing(info: ModelInfo) -> dict[str, Any]:
    """How images are resized and normalised, in training and evaluation alike."""
    return {"mean": info.mean, "std": info.std, "interpolation": info.interpolation}
