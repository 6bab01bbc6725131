"""A class and a box for every object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from foveal.errors import FovealError

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType
    from torch import Tensor, nn

    from foveal.data import JointTransform
    from foveal.model_info import ModelInfo
    from foveal.tasks import AnswerSite, Checked
    from foveal.tasks.detect.metric import DetectionMetric
    from foveal.tasks.detect.prediction import BoxPrediction
    from foveal.tasks.shipping import Shipment

LARGEST_DEFAULT_SIZE = 800
ASPECT = 1333 / 800
"""The longer side may have this many times the pixels of image_size, as in the papers."""
DEFAULT_THRESHOLD = 0.3


@dataclass(frozen=True)
class DetectOptions:
    """Options of training that only detection has."""

    recipe: Literal["auto", "small", "paper"] = "auto"
    """small: for few images and nothing pretrained; paper: the published schedule and network, for pretrained
    backbones. auto: by pretrained."""
    backbone_lr: float | None = None
    """Learning rate of the backbone as a factor of lr. Default: the recipe's, 1 (small) or 0.1 (paper, DETR)."""
    scale_range: list[float] = field(default_factory=lambda: [0.6, 1.0])
    """Smallest and largest factor on image_size in training."""
    crop_range: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """Half of the training images are cut to a random part first, whose sides have these shares of the image's."""
    overfit: int = 0
    """Train and evaluate on this many training images, without random changes, to see that all can be learned."""

    def __post_init__(self) -> None:
        if self.recipe not in ("auto", "small", "paper"):
            raise FovealError(f"recipe must be auto, small or paper, got {self.recipe}")
        if self.backbone_lr is not None and not self.backbone_lr >= 0:
            raise FovealError(f"backbone_lr must be at least 0, got {self.backbone_lr}")
        for name, most in (("scale_range", float("inf")), ("crop_range", 1.0)):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                limit = " <= 1" if most == 1 else ""
                raise FovealError(f"{name} must be two factors, 0 < smallest <= largest{limit}, got {value}")
        if self.overfit < 0:
            raise FovealError(f"overfit must be at least 0, got {self.overfit}")


@dataclass(frozen=True)
class DetectInference:
    """Options of evaluating and predicting that only detection has.

    Raises:
        FovealError: an option is out of its range.

    Example:
        >>> print(DetectInference(nms=0.5))
        at most 100 detections an image, without those that overlap a better one of their class by more than 0.5
    """

    threshold: float | None = None
    """Only detections with at least this score, 0 to 1. Default: 0.3 to predict, none to evaluate."""
    nms: float | None = None
    """Leave out detections that overlap a better one of their class by more than this IoU. Off by default: the
    networks learn to say each object once, and duplicates mean too little training."""
    limit: int = 100
    """Detections an image at most, the best ones."""

    def __post_init__(self) -> None:
        for name in ("threshold", "nms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise FovealError(f"{name} must be from 0 to 1, got {value}")
        if not 1 <= self.limit <= 10_000:
            raise FovealError(f"limit must be from 1 to 10000, got {self.limit}")

    def __str__(self) -> str:
        threshold = "" if self.threshold is None else f" with a score of at least {self.threshold:g}"
        nms = ""
        if self.nms is not None:
            nms = f", without those that overlap a better one of their class by more than {self.nms:g}"
        return f"at most {self.limit} detections an image{threshold}{nms}"


class Detect:
    """The task of finding every object. See `foveal.tasks.Task` for what each function is for."""

    Options: ClassVar[type] = DetectOptions
    InferenceOptions: ClassVar[type] = DetectInference
    default_model: ClassVar[str] = "sparse_rcnn_test_resnet"
    default_batch_size: ClassVar[int] = 16
    metric: ClassVar[str] = "ap"
    higher_is_better: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "object-detection"
    is_share: ClassVar[bool] = True
    writes_folder: ClassVar[bool] = True
    stacks_samples: ClassVar[bool] = False
    bundled_recipes: ClassVar[dict[str, dict[str, Any]]] = {"scenes": {"epochs": 2}}

    def open(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        from foveal.data import open_dataset

        return open_dataset(data, split, task="detect", **options)

    def choose_parts(self, data: dict[str, Any], options: DetectOptions) -> dict[str, Any]:
        """The same few images to train and to evaluate on, where ``overfit`` asks for it."""
        from foveal.tasks.detect.overfit import FirstItems

        if not options.overfit:
            return data
        few = FirstItems(data["train"], options.overfit)
        return {"train": few, "val": few}

    def settle_training(self, config: Any) -> dict[str, Any]:
        from foveal.tasks.detect.recipe import recipe_of

        return recipe_of(config).settled(config)

    def opening_lines(self, config: Any, net: nn.Module, data: Mapping[str, Any]) -> list[str]:
        """The recipe, and whether an image has more objects than the network has queries."""
        from foveal.tasks.detect.recipe import crowded, recipe_of

        return [*recipe_of(config).lines(config), *crowded(net, data)]

    def backbone_lr(self, config: Any) -> float:
        from foveal.tasks.detect.recipe import backbone_lr

        return backbone_lr(config)

    def describe(self, data: Mapping[str, Any], options: DetectOptions) -> dict[str, Any]:
        classes = list(data["train"].classes)
        ids = getattr(data["train"], "category_ids", None)
        return {"category_ids": list(ids) if ids is not None else list(range(len(classes)))}

    def remarks(self, rows: Sequence[Mapping[str, Any]], config: Any) -> list[str]:
        from foveal.tasks.detect.alarms import remarks

        return remarks(rows, config)

    def default_image_size(self, data: Any) -> int:
        """The shorter side of the data's images, its median over some of them, up to 800 pixels."""
        from foveal.data import median_size

        return min(LARGEST_DEFAULT_SIZE, *median_size(data))

    def build(self, model: str, num_classes: int, **options: Any) -> nn.Module:
        from foveal.models import create_model
        from foveal.models.detection import DetectionNet

        net = create_model(model, num_classes=num_classes, **options)
        if not isinstance(net, DetectionNet):
            raise FovealError(
                "task detect needs a network that can detect, one of detr_BACKBONE, detr_dc5_BACKBONE, "
                f"sparse_rcnn_BACKBONE, fcos_BACKBONE, faster_rcnn_BACKBONE, got {model}"
            )
        return net

    def train_transform(
        self, data: Any, info: ModelInfo, options: DetectOptions, augment: bool
    ) -> JointTransform:
        """A random part at a random scale, perhaps mirrored, where the data allow it; else as in evaluation."""
        from foveal.data import detection_eval_transform, detection_train_transform

        size = (info.image_size, round(ASPECT * info.image_size))
        if not augment or options.overfit or not getattr(data, "augment", True):
            return detection_eval_transform(*size, mean=info.mean, std=info.std)
        flip = 0.5 if getattr(data, "mirror", True) else 0.0
        return detection_train_transform(
            *size, scale=options.scale_range, crop=options.crop_range, flip=flip, mean=info.mean, std=info.std
        )

    def eval_transform(self, info: ModelInfo, inference: Any = None) -> JointTransform:
        from foveal.data import detection_eval_transform

        return detection_eval_transform(
            info.image_size, round(ASPECT * info.image_size), mean=info.mean, std=info.std
        )

    def collate_training(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One batch, images padded at the right and below to the largest of them."""
        from foveal.tasks.detect.batch import collate

        return [collate(samples)]

    def collate(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One batch for each size of image: nothing is padded, so that who is in a batch with whom changes nothing."""
        from foveal.tasks.detect.batch import collate

        groups: dict[Any, list[dict[str, Any]]] = {}
        for sample in samples:
            groups.setdefault(sample["image"].shape, []).append(sample)
        return [collate(group) for group in groups.values()]

    def losses(
        self,
        net: nn.Module,
        batch: dict[str, Any],
        info: ModelInfo,
        options: DetectOptions,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        from foveal.tasks.detect.batch import check_targets

        check_targets(batch)
        outputs = net(batch["image"], batch["sizes"], batch["targets"])
        return net.losses(outputs, batch["targets"], batch["sizes"])  # pyright: ignore[reportCallIssue]

    def new_metric(
        self, info: ModelInfo, classes: Sequence[str], inference: DetectInference | None = None
    ) -> DetectionMetric:
        from foveal.tasks.detect.metric import DetectionMetric

        return DetectionMetric(info.classes, classes, inference or DetectInference())

    def predict(
        self,
        net: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        info: ModelInfo,
        inference: DetectInference | None = None,
    ) -> list[BoxPrediction]:
        from foveal.tasks.detect.prediction import predictions

        return predictions(net, images, sizes, info, inference or DetectInference())

    def write(
        self,
        predictions: Iterable[tuple[BoxPrediction, Tensor]],
        out: Path | None,
        info: ModelInfo,
        inference: DetectInference,
        format: str,
        unreadable: Mapping[str, str],
    ) -> tuple[int, str]:
        from foveal.tasks.detect.folder import write_boxes

        assert out is not None
        return write_boxes(predictions, out, info, inference, unreadable)

    def show(self, evaluation: Any) -> RenderableType:
        from foveal.tasks.detect.tables import evaluation_table

        return evaluation_table(evaluation)

    def check(self, data: str, split: str, options: dict[str, Any]) -> Checked:
        from foveal.tasks.detect.check import check_boxes

        return check_boxes(self, data, split, options)

    def page_sections(self, evaluation: Any, predictor: Any) -> list[tuple[str, str]]:
        from foveal.tasks.detect.page import sections

        return sections(evaluation, predictor)

    def look_pictures(self, predictor: Any, image: Tensor) -> list[tuple[str, Any]]:
        from foveal.tasks.detect.look import look_pictures

        return look_pictures(predictor, image)

    def answer_sites(self, predictor: Any, view: Tensor) -> list[AnswerSite]:
        from foveal.tasks.detect.look import answer_sites

        return answer_sites(predictor, view)

    def results(self, metric: DetectionMetric, info: ModelInfo) -> list[dict[str, Any]]:
        """COCO results: image and category ids are those of the annotations."""
        from foveal.tasks.detect.average_precision import as_coco

        ids = info.extra.get("category_ids") or list(range(len(info.classes)))
        return as_coco(metric.results, ids, own_ids=True)[1]

    def caption(self, sample: dict[str, Any], classes: Sequence[str]) -> str:
        """The classes of the objects, the most frequent first."""
        from collections import Counter

        counts = Counter(classes[label] for label in sample["labels"].tolist())
        return (
            ", ".join(f"{n} {name}" if n > 1 else str(name) for name, n in counts.most_common(4))
            or "no object"
        )

    def object_mask(self, batch: dict[str, Any]) -> Tensor | None:
        """The insides of all boxes of each image."""
        from foveal.tasks.detect.batch import inside_boxes

        return inside_boxes(batch)

    def ship(self, info: ModelInfo) -> Shipment:
        from foveal.tasks.detect.shipping import ship

        return ship(info)
