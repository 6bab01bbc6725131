"""The options of one training run. Importing this file imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from foveal.errors import FovealError

DEFAULT_MODELS = {"classify": "cifar_resnet8", "segment": "danet_test_resnet"}
DEFAULT_BATCHES = {"classify": 64, "segment": 16}
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
SCALE_RANGE = (0.5, 2.0)
# Options that mean nothing to the other task, with their defaults.
ONLY_FOR = {
    "classify": {"label_smoothing": 0.0, "mixup": 0.0},
    "segment": {"crop_size": None, "scale_range": list(SCALE_RANGE), "class_weights": None, "ohem": False},
}


@dataclass
class TrainConfig:
    """Train a network, with any attention blocks inserted, and keep all it made in one run folder.

    Example:
        >>> TrainConfig(insert=["cbam@residual:3"], epochs=1).model
        'cifar_resnet8'
        >>> TrainConfig(mixup=-1.0)
        Traceback (most recent call last):
        foveal.errors.FovealError: mixup must be at least 0, got -1.0
    """

    # what
    task: Literal["classify", "segment"] = "classify"
    """classify: one label an image; segment: one a pixel."""
    model: str = ""
    """A name from `foveal list`: one of ours or any timm model; to segment, danet_, danet_position_, danet_channel_,
    fcn_nonlocal_ or fcn_ and a timm model. Default: a small network for the task."""
    model_options: dict = field(default_factory=dict)
    """More options of the model, such as --model_options.channel_form paper for danet_resnet18."""
    pretrained: bool = False
    """Begin with the published weights of the model (fetched once from the network)."""
    insert: list[str] = field(default_factory=list)
    """A block and where it goes: name[(option=value,...)][@residual|block|stage|pattern][:stages]. Repeatable."""
    start: Literal["identity", "paper"] = "identity"
    """Inserted blocks begin by changing no output (identity), or initialised as in their papers (paper)."""
    data: str = "scenes"
    """The bundled "scenes", a folder with one folder a class, a folder of Parquet files, or torchvision:NAME."""
    data_options: dict = field(default_factory=dict)
    """More options of the data set, such as --data_options.size 48 for scenes."""
    image_size: int | None = None
    """classify: side of the square images the network sees, in pixels; default: that of the data up to 96, else 224.
    segment: shorter side of the images as the network sees them; default: the data's own, their median."""
    crop_size: int | None = None
    """segment: side of the square crops to train on, in pixels of images of image_size. Default: image_size."""
    scale_range: list[float] = field(default_factory=lambda: list(SCALE_RANGE))
    """segment: smallest and largest factor by which a training image is resized before the crop, as in DANet's code."""
    augment: bool = True
    """Random scale, crop and flip of the training images, where the data set allows it."""

    # how long and how fast
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 0
    """Images in a batch, on each device; 0: 64 to classify, 16 to segment."""
    accumulate: int = 1
    """Batches whose gradients are added before one optimiser step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has Nesterov momentum; adamw has decoupled weight decay."""
    lr: float = 0.1
    """Highest learning rate, reached after the warm-up."""
    inserted_lr: float | None = None
    """Learning rate of inserted blocks. Default: lr."""
    momentum: float = 0.9
    """Momentum of sgd, beta1 of adamw."""
    weight_decay: float = 5e-4
    """Weight decay; biases, norms and the scales and gate biases of inserted blocks have none."""
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    """What the learning rate does after the warm-up: to zero along half a cosine or as (1 - t)^0.9, or stay."""
    warmup_epochs: float = 0.5
    """The learning rate rises linearly over this many epochs."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 does not clip."""
    freeze_epochs: int = 0
    """For this many epochs train only the inserted blocks and the classifier."""

    # what the loss sees
    label_smoothing: float = 0.0
    """classify: share of the target spread evenly over all classes, from 0 to 1."""
    mixup: float = 0.0
    """classify: mix pairs of images with a share drawn from Beta(mixup, mixup); 0 mixes none."""
    class_weights: list[float] | Literal["balanced"] | None = None
    """segment: factor of each class in the loss, in their order, such as [1,1,2.5]; or balanced: from the training
    masks, by median frequency."""
    ohem: bool = False
    """segment: only hard pixels count, those whose class has less than 0.7 probability, at least a sixteenth of all."""
    ema: float = 0.0
    """Decay of a running average of the weights, such as 0.999, which is then what is evaluated; 0 keeps none."""

    # where
    accelerator: str = "auto"
    """cpu, cuda, mps or auto."""
    devices: int = 1
    """How many devices to train on, on each node; -1 takes all."""
    nodes: int = 1
    """How many machines."""
    strategy: str = "auto"
    """How several devices share the work: auto or ddp; a network of yours that skips some of its own parameters
    wants ddp_find_unused_parameters_true."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 and float16 mean automatic mixed precision: weights stay float32."""
    channels_last: bool = False
    """Keep images and weights in channels-last order: often quicker on CPUs and GPUs."""
    workers: int | None = None
    """Processes that read and augment images. Default: none for small images, else one a core up to 8."""
    seed: int = 0
    """Fixes initial weights, data order and every random choice."""

    # the run folder
    out: str | None = None
    """Run folder; must be new or empty. Default: the first free runs/train/MODEL[-BLOCKS][-NUMBER]."""
    checkpoint_steps: int = 500
    """Write checkpoint.ckpt at each epoch's end and after this many optimiser steps within one; 0: epochs only."""

    def __post_init__(self) -> None:
        self.model = self.model or DEFAULT_MODELS.get(self.task, "")
        self.batch_size = self.batch_size or DEFAULT_BATCHES.get(self.task, 0)
        at_least = {
            **dict.fromkeys(("epochs", "batch_size", "accumulate", "nodes"), 1),
            **dict.fromkeys(("lr", "weight_decay", "warmup_epochs", "clip_norm", "freeze_epochs"), 0),
            **dict.fromkeys(("label_smoothing", "mixup", "ema", "momentum", "checkpoint_steps", "seed"), 0),
            **dict.fromkeys(("image_size", "inserted_lr", "workers"), 0),
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise FovealError(f"{name} must be at least {least}, got {value}")
        for name in ("label_smoothing", "ema", "momentum"):
            if getattr(self, name) >= 1:
                raise FovealError(f"{name} must be below 1, got {getattr(self, name)}")
        if self.devices < 1 and self.devices != -1:
            raise FovealError(f"devices must be at least 1, or -1 for all, got {self.devices}")
        if self.strategy not in STRATEGIES:
            raise FovealError(
                f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy}: checkpoints are written "
                "from a network that is whole on every device; take ddp"
            )
        for name in ("image_size", "crop_size"):
            value = getattr(self, name)
            if value is not None and value < 8:
                raise FovealError(f"{name} must be at least 8, got {value}")
        self._check_task()

    def _check_task(self) -> None:
        """Options of the other task, and the values of those that only segmentation has."""
        if self.task not in DEFAULT_MODELS:
            raise FovealError(f"task must be one of {', '.join(DEFAULT_MODELS)}, got {self.task}")
        for task, options in ONLY_FOR.items():
            for name, default in options.items():
                if self.task != task and getattr(self, name) != default:
                    raise FovealError(f"{name} is an option of task {task}, got it with task {self.task}")
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise FovealError(
                f"scale_range must be two factors, 0 < smallest <= largest, got {self.scale_range}"
            )
        weights = self.class_weights
        if isinstance(weights, list) and (
            not sum(weights) > 0 or not all(0 <= w < float("inf") for w in weights)
        ):
            raise FovealError(f"class_weights must be finite, at least 0 and not all 0, got {weights}")

    @classmethod
    def from_dict(cls, options: dict) -> TrainConfig:
        """A config from a mapping of option names to values, such as a ``config.yaml`` that was read.

        Raises:
            ValueError: a name is no option, or a value is out of its range.
        """
        unknown = sorted(set(options) - {f.name for f in fields(cls)})
        if unknown:
            raise FovealError(f"a config must hold options of train only, got {', '.join(unknown)}")
        return cls(**options)


# Options that say where a run computes, not what: these alone may change when it is resumed.
MOVABLE = ("accelerator", "strategy", "workers")
