"""One label a clip."""

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

    from foveal.model_info import ModelInfo
    from foveal.tasks import Checked
    from foveal.tasks.classify.metric import Accuracy
    from foveal.tasks.clips.prediction import ClipPrediction
    from foveal.tasks.shipping import Shipment

LARGEST_NATURAL_SIZE = 96
USUAL_SIZE = 224
SHORTER = 8 / 7
"""The shorter side of a frame as a factor of the network's size, as 256 is of 224."""
LARGEST_SCALE = 1.25
"""In training the shorter side is up to so many times that, as 320 is of 256."""
EXAMPLE_FRAMES = 4
RATE = 0.01
"""The learning rate of the bundled clips, of network and blocks alike."""
BUNDLED = ("scenes", "scenes:direction")
DEFAULT_MODEL = "nonlocal_c2d_cifar_resnet8"
RECIPE: dict[str, Any] = {"insert": ["nonlocal(over=time)@stage:2"], "epochs": 1}
"""Of comparisons on bundled clips: the network without its block, with a block, and with a convolution in its place."""


@dataclass(frozen=True)
class ClipOptions:
    """Options of training that only clips have."""

    frames: int | None = None
    """Frames of a clip. Default: those of the bundled clips, else 8."""
    stride: int | None = None
    """From one frame of a clip to the next: 1 takes every frame of the video. Default: 1 for the bundled clips, else
    8."""
    short: Literal["loop", "repeat"] = "loop"
    """What a video shorter than a clip does: begin again, or stay on its last frame."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, from 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FovealError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.label_smoothing < 1:
            raise FovealError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")


@dataclass(frozen=True)
class ClipInference:
    """Options of evaluating and predicting that only clips have."""

    top: int = 5
    """How many labels to give for each file."""
    clips: int = 1
    """Clips of each video, spread evenly over it, whose probabilities are averaged; the papers take 10."""
    crops: int = 1
    """Squares along the longer side of each clip, averaged as well; the papers take 3. 1 is the centre."""

    def __post_init__(self) -> None:
        for name, most in (("top", 10**6), ("clips", 100), ("crops", 10)):
            if not 1 <= getattr(self, name) <= most:
                raise FovealError(f"{name} must be from 1 to {most}, got {getattr(self, name)}")

    @property
    def inputs_each(self) -> int:
        """Views of one video, all of which are in memory together."""
        return self.clips * self.crops

    @property
    def views(self) -> str:
        """What is averaged, in words."""
        counts = ((self.clips, "clip"), (self.crops, "crop"))
        return " x ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts)


class Clips:
    """The task of naming what a clip shows. See `foveal.tasks.Task` for what each function is for."""

    Options: ClassVar[type] = ClipOptions
    InferenceOptions: ClassVar[type] = ClipInference
    default_model: ClassVar[str] = DEFAULT_MODEL
    default_batch_size: ClassVar[int] = 16
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "video-classification"
    is_share: ClassVar[bool] = True
    writes_folder: ClassVar[bool] = False
    items: ClassVar[str] = "clips"
    checked_on: ClassVar[str] = "scenes:direction"
    bundled_recipes: ClassVar[dict[str, dict[str, Any]]] = dict.fromkeys(BUNDLED, RECIPE)

    def settle_training(self, config: Any) -> dict[str, Any]:
        """The recipe of the bundled clips; of a person's own the paper's for few clips a batch."""
        if config.data in BUNDLED:
            # found by trial: at a tenth of the rate, as for blocks elsewhere, Non-local starts too slowly
            return {"optimizer": "adamw", "lr": RATE, "inserted_lr": RATE, "weight_decay": 0.01, "epochs": 3}
        return {}

    def example_size(self, image_size: int) -> tuple[int, int, int]:
        """Frames, height and width of an input; networks take any number of frames from 2."""
        return (EXAMPLE_FRAMES, image_size, image_size)

    def compared(self, model: str | None) -> dict[str, Any]:
        """The network without the blocks that it usually has, for others are put into it."""
        return {"model_options": {"blocks": 0}}

    def open(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        from foveal.data import open_dataset

        return open_dataset(data, split, task="clips", **options)

    def describe(self, data: Mapping[str, Any], options: ClipOptions) -> dict[str, Any]:
        """``frames``, ``stride`` and ``short``, which say what a clip is."""
        from foveal.data.clips import check_clip

        classes = list(data["train"].classes)
        if len(classes) < 2:
            raise FovealError(f"the data must have at least 2 classes to tell apart, got {classes}")
        own = getattr(data["train"], "frames", None)
        frames = options.frames or own or 8
        stride = options.stride or (8 if own is None else 1)
        check_clip(frames, stride, options.short)
        return {"frames": frames, "stride": stride, "short": options.short}

    def default_image_size(self, data: Any) -> int:
        """The data's own size up to 96 pixels, the median over some of its videos; else 224."""
        longest = getattr(data, "size", None) or USUAL_SIZE
        return longest if longest <= LARGEST_NATURAL_SIZE else USUAL_SIZE

    def build(self, model: str, num_classes: int, **options: Any) -> nn.Module:
        from foveal.models import create_model
        from foveal.models.video import SmallVideoResNet, VideoResNet

        if not model.startswith(("nonlocal_c2d_", "nonlocal_i3d_")):
            raise FovealError(
                f"task clips needs one of nonlocal_c2d_cifar_resnet8, nonlocal_i3d_resnet50, ..., got {model}"
            )
        net = create_model(model, num_classes=num_classes, **options)
        assert isinstance(net, VideoResNet | SmallVideoResNet)
        return net

    def train_transform(self, data: Any, info: ModelInfo, options: ClipOptions, augment: bool) -> Any:
        """Random start, scale, crop and mirroring, one draw for all frames of a clip."""
        from torchvision.transforms import v2

        from foveal.data import JointTransform
        from foveal.data.clips import ClipTransform, training_clip
        from foveal.data.joint import Rescale

        frames, stride, short = _clip_of(info)
        # of clips that are as long as they must be there is one place
        only_one = getattr(data, "frames", None) == (frames - 1) * stride + 1
        choose, shorter = training_clip(frames, stride, short), _shorter(info)
        steps: list[Any] = [Rescale(shorter=shorter), v2.CenterCrop(info.image_size)]
        if augment and getattr(data, "augment", True):
            steps = [Rescale(1.0, LARGEST_SCALE, shorter=shorter), v2.RandomCrop(info.image_size)]
            if getattr(data, "mirror", True):
                steps.append(v2.RandomHorizontalFlip(0.5))
        return ClipTransform(JointTransform(steps, info.mean, info.std), choose, random=not only_one)

    def eval_transform(self, info: ModelInfo, inference: ClipInference | None = None) -> Any:
        """The clip in the middle, or evenly spread ones; the centre, or crops along the longer side."""
        from foveal.data import JointTransform
        from foveal.data.clips import ClipTransform, evaluation_clips
        from foveal.data.joint import Rescale

        inference = inference or ClipInference()
        shorter = _shorter(info)
        # several crops take the whole shorter side, as in the papers
        size = info.image_size if inference.crops == 1 else shorter
        frame = JointTransform([Rescale(shorter=shorter)], info.mean, info.std)
        choose = evaluation_clips(*_clip_of(info), clips=inference.clips)
        return ClipTransform(frame, choose, crops=inference.crops, size=size)

    def find_files(self, folder: Path) -> list[str]:
        """The videos below a folder; a folder of frames is one itself."""
        from foveal.data.video import find_videos, frame_files

        found = [str(folder / name) for name in find_videos(folder)]
        return found or ([str(folder)] if frame_files(folder) else [])

    def read_file(self, path: Path, info: ModelInfo) -> Any:
        """A video, whose frames are read when they are asked for."""
        from foveal.data.video import Video

        return Video(path, info.channels)

    def collate(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        from foveal.data.loader import collate_by_size

        wanted = ("image", "label", "index")
        return collate_by_size([{k: s[k] for k in wanted if k in s} for s in samples])

    def losses(
        self,
        net: nn.Module,
        batch: dict[str, Any],
        info: ModelInfo,
        options: ClipOptions,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(net(batch["image"]), batch["label"], label_smoothing=options.label_smoothing)
        return {"cross_entropy": loss}

    def new_metric(
        self, info: ModelInfo, classes: Sequence[str], inference: ClipInference | None = None
    ) -> Accuracy:
        from foveal.tasks.classify.metric import Accuracy
        from foveal.tasks.clips.prediction import view_logits

        return Accuracy(info.classes, classes, logits=view_logits)

    def predict(
        self,
        net: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        info: ModelInfo,
        inference: ClipInference | None = None,
    ) -> list[ClipPrediction]:
        from foveal.tasks.classify.prediction import best_labels
        from foveal.tasks.clips.prediction import ClipPrediction, view_logits

        probabilities, top = view_logits(net, images).softmax(1), (inference or ClipInference()).top
        return [ClipPrediction(labels) for labels in best_labels(probabilities, info.classes, top)]

    def write(
        self,
        predictions: Iterable[tuple[ClipPrediction, Tensor]],
        out: Path | None,
        info: ModelInfo,
        inference: ClipInference,
        format: str,
        unreadable: Mapping[str, str],
    ) -> tuple[int, str]:
        from foveal.tasks.classify.prediction import write_labels

        return write_labels([prediction for prediction, _ in predictions], out, format, unreadable)

    def show(self, evaluation: Any) -> RenderableType:
        from foveal.tasks.classify.tables import evaluation_table

        return evaluation_table(evaluation, views=evaluation.inference.views)

    def check(self, data: str, split: str, options: dict[str, Any]) -> Checked:
        from foveal.tasks.clips.check import check_clips

        return check_clips(self, data, split, options)

    def ship(self, info: ModelInfo) -> Shipment:
        from foveal.tasks.clips.shipping import ship

        return ship(info, *_clip_of(info), shorter=_shorter(info))

    def caption(self, sample: dict[str, Any], classes: Sequence[str]) -> str:
        return classes[int(sample["label"])]


def _clip_of(info: ModelInfo) -> tuple[int, int, str]:
    """Frames, stride and what short videos do, as the weights say. Their file may come from anywhere."""
    from foveal.data.clips import check_clip

    found = tuple(info.extra.get(name) for name in ("frames", "stride", "short"))
    check_clip(*found)  # pyright: ignore[reportArgumentType]
    return found  # pyright: ignore[reportReturnType]


def _shorter(info: ModelInfo) -> int:
    """The shorter side of a frame before the crop: that of the network for small ones, 256 for 224."""
    small = info.image_size <= LARGEST_NATURAL_SIZE
    return info.image_size if small else round(SHORTER * info.image_size)
