"""The options of one training run that every task has. Importing this file imports no torch: ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.hub import is_repository
from foveal.model_info import LARGEST_SIZE
from foveal.tasks import Task, task_named
from foveal.tasks.options import make_options

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2")
BY_TASK: Any = None
"""Default of an option that the task settles, see `foveal.tasks.Task`."""
UNLESS_SETTLED = {
    "epochs": 8, "optimizer": "sgd", "weight_decay": 5e-4, "schedule": "cosine", "warmup_epochs": 0.5, "clip_norm": 0.0,
    "ema": 0.0,
}  # fmt: skip
DEFAULT_LR = {"sgd": 0.1, "adamw": 1e-3}
# from weights that were trained before, the learning rate of a new network would undo what they learned
TRAINED_LR_SCALE = 0.1
# learning rate of inserted blocks as a factor of the network's: sign-like updates drive scales that start at zero, and
# the attention before them, far too quickly at the network's own rate, and so does SGD's usual 0.1 (docs/comparing.md
# has the measurements)
BLOCK_LR_SCALE = 0.1
# an option -> the least value it may have
LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "nodes"), 1),
    **dict.fromkeys(("lr", "weight_decay", "warmup_epochs", "clip_norm", "freeze_epochs", "inserted_lr"), 0),
    **dict.fromkeys(("ema", "momentum", "checkpoint_steps", "seed", "workers"), 0),
    "image_size": 8,
}


@dataclass
class TrainConfig:
    """Train a network, with any attention blocks inserted, and keep all it made in one run folder.

    Example:
        >>> TrainConfig(insert=["cbam@residual:3"], epochs=1).model
        'cifar_resnet8'
        >>> TrainConfig.from_dict({"epochs": 3, "mixup": 0.2}).task_options["mixup"]
        0.2
        >>> TrainConfig(epochs=0)
        Traceback (most recent call last):
        foveal.errors.FovealError: epochs must be at least 1, got 0
    """

    # what
    task: str = "classify"
    """What to learn: classify (one label an image), segment (one a pixel), detect (a box and a label for each object),
    generate (images from noise) or clips (one label a video). Each has options of its own."""
    task_options: dict = field(default_factory=dict)
    """The options that only this task has, by name."""
    model: str = ""
    """A name from `foveal list`: one of ours or any timm model; to segment, danet_, danet_position_, danet_channel_,
    fcn_nonlocal_ or fcn_ and a timm model; to detect, detr_, detr_dc5_ or sparse_rcnn_ and one; or a repository, as for
    --from. Default: a small network for the task."""
    model_options: dict = field(default_factory=dict)
    """More options of the model, such as --model_options.channel_form paper for danet_resnet18."""
    pretrained: bool = False
    """Begin with the published weights of the model (fetched once from the network)."""
    from_weights: str | None = field(default=None, metadata={"alias": "from"})
    """Begin with the weights of this file, which a run, compare or convert wrote, or of a repository that holds one,
    hf-hub:user/name[@revision] or local-dir:folder: its network, blocks and preprocessing; of layers with one row a
    class the rows of classes that the new data have too, by name."""
    insert: list[str] = field(default_factory=list)
    """A block and where it goes: [FILE.py:]name[(option=value,...)][@residual|block|stage|pattern][:stages].
    Repeatable."""
    start: Literal["identity", "paper"] = "identity"
    """Inserted blocks begin by changing no output (identity), or initialised as in their papers (paper)."""
    data: str = "scenes"
    """The bundled "scenes", a folder with one folder a class, a folder of Parquet files, or torchvision:NAME; to
    segment, to detect or of clips, what `foveal.data.open_dataset` says of them."""
    data_options: dict = field(default_factory=dict)
    """More options of the data set, such as --data_options.size 48 for scenes."""
    image_size: int | None = None
    """Size in pixels at which the network sees the images: the side of a square to classify, the shorter side to
    segment and to detect. Default: the weights' own with pretrained or from_weights, else one that suits the data."""
    augment: bool = True
    """Random scale, crop and flip of the training images, where the data set allows it."""

    # how long and how fast
    epochs: int = BY_TASK
    """Passes over the training images. Default: 8, to detect the recipe's."""
    batch_size: int = 0
    """Images in a batch, on each device; 0: the task's own number, 64 to classify, 16 to segment
    and to detect."""
    accumulate: int = 1
    """Batches whose gradients are averaged before one optimiser step."""
    optimizer: Literal["sgd", "adamw"] = BY_TASK
    """sgd has Nesterov momentum; adamw has decoupled weight decay. Default: sgd, to detect adamw."""
    lr: float | None = None
    """Highest learning rate, reached after the warm-up. Default: 0.1 for sgd, 0.001 for adamw; a tenth
    of that with pretrained or from_weights; to detect, the recipe's."""
    blocks: list[str] = field(default_factory=list)
    """Python files with the blocks of your own that the weights of --from hold, or, with --resume, that the run has;
    they are run. Repeatable."""
    inserted_lr: float | None = None
    """Learning rate of inserted blocks. Default: a tenth of lr."""
    momentum: float = 0.9
    """Momentum of sgd, beta1 of adamw."""
    weight_decay: float = BY_TASK
    """Weight decay; biases, norms and the scales and gate biases of inserted blocks have none. Default: 0.0005; to
    detect, 0.0001."""
    schedule: Literal["cosine", "poly", "constant"] = BY_TASK
    """What the learning rate does after the warm-up: to zero along half a cosine or as (1 - t)^0.9, or stay. Default:
    cosine."""
    warmup_epochs: float = BY_TASK
    """The learning rate rises linearly over this many epochs. Default: 0.5, to detect the recipe's."""
    clip_norm: float = BY_TASK
    """Largest norm of all gradients together; 0 does not clip. Default: 0, to detect the recipe's."""
    freeze_epochs: int = 0
    """For this many epochs train only the inserted blocks and the classifier."""
    ema: float = BY_TASK
    """Decay of a running average of the weights, such as 0.999, which is then what is evaluated; 0 keeps none.
    Default: 0, for the bundled digits 0.99."""

    # where
    accelerator: str = "auto"
    """cpu, cuda, mps or auto."""
    devices: int = 1
    """How many devices to train on, on each node; -1 takes all."""
    nodes: int = 1
    """How many machines."""
    strategy: str = "auto"
    """How several devices share the work: auto or ddp; a network of yours that skips some of its own parameters
    wants ddp_find_unused_parameters_true; fsdp2 keeps weights, gradients and optimiser states in shards."""
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
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """Where figures go besides metrics.csv: event files of TensorBoard in the run folder, or Weights & Biases."""
    checkpoint_steps: int = 500
    """Write checkpoint.ckpt at each epoch's end and after this many optimiser steps within one; 0: epochs only."""

    def __post_init__(self) -> None:
        task = task_named(self.task)
        if is_repository(self.model) and self.from_weights is None:
            # what a repository names comes with its weights
            self.model, self.from_weights = "", self.model
        if self.pretrained and self.from_weights is not None:
            raise FovealError(
                f"pretrained and from_weights exclude each other, got both, with {self.from_weights}"
            )
        if self.from_weights is None:
            self.model = self.model or task.default_model
        self.task_options = asdict(make_options(task.Options, self.task_options, self.task))
        self._settle(task)
        if self.lr is None:
            trained = self.pretrained or self.from_weights is not None
            self.lr = DEFAULT_LR.get(self.optimizer, 0.0) * (TRAINED_LR_SCALE if trained else 1)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise FovealError(f"{name} must be at least {least}, got {value}")
        if self.image_size is not None and self.image_size > LARGEST_SIZE:
            raise FovealError(f"image_size must be at most {LARGEST_SIZE}, got {self.image_size}")
        for name in ("ema", "momentum"):
            if getattr(self, name) >= 1:
                raise FovealError(f"{name} must be below 1, got {getattr(self, name)}")
        for name, choices in (
            ("optimizer", tuple(DEFAULT_LR)),
            ("schedule", ("cosine", "poly", "constant")),
            ("precision", ("float32", "bfloat16", "float16")),
            ("start", ("identity", "paper")),
            ("logger", ("csv", "tensorboard", "wandb")),
        ):
            if getattr(self, name) not in choices:
                raise FovealError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)}")
        if self.devices < 1 and self.devices != -1:
            raise FovealError(f"devices must be at least 1, or -1 for all, got {self.devices}")
        if self.strategy not in STRATEGIES:
            raise FovealError(
                f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy}: take ddp, or fsdp2 for a "
                "network in shards"
            )
        if self.strategy == "fsdp2":
            self._refuse_with_shards(task)

    def _refuse_with_shards(self, task: Task) -> None:
        """What is not made for a network in shards."""
        for name in ("ema", "freeze_epochs"):
            if getattr(self, name):
                raise FovealError(
                    f"{name} must be 0 with strategy fsdp2, got {getattr(self, name)}; take ddp"
                )
        if hasattr(task, "make_optimizers"):
            raise FovealError(
                f"strategy fsdp2 is for one network and one optimiser, got task {self.task}; take ddp"
            )

    def _settle(self, task: Task) -> None:
        """Fill in what the person left open: as the task says, else as for all tasks."""
        settle = getattr(task, "settle_training", None)
        settled = {} if settle is None else settle(self)
        network = settled.pop("model_options", {})
        if self.from_weights is None:
            self.model_options = {**network, **self.model_options}
        common = {**UNLESS_SETTLED, "batch_size": task.default_batch_size}
        for name, value in {**common, **settled}.items():
            # 0 images in a batch say as little as None
            if getattr(self, name) is None or (name == "batch_size" and not self.batch_size):
                setattr(self, name, value)

    @property
    def block_lr(self) -> float:
        """The learning rate of inserted blocks."""
        assert self.lr is not None
        return self.lr * BLOCK_LR_SCALE if self.inserted_lr is None else self.inserted_lr

    @property
    def the_task(self) -> Task:
        """The task that ``task`` names."""
        return task_named(self.task)

    @property
    def options(self) -> Any:
        """The options that only this task has, as an instance of its dataclass."""
        return make_options(self.the_task.Options, self.task_options, self.task)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TrainConfig:
        """A config from a flat mapping of option names to values, such as a ``config.yaml`` that was read.

        Raises:
            FovealError: a name is no option, or a value is out of its range.
        """
        common = {f.name for f in fields(cls)}
        own = {f.name for f in fields(task_named(options.get("task", "classify")).Options)}
        unknown = sorted(set(options) - common - own)
        if unknown:
            task = options.get("task", "classify")
            raise FovealError(
                f"a config must hold options of training with task {task} only, got {', '.join(unknown)}"
            )
        task_options = {name: value for name, value in options.items() if name in own - common}
        shared = {name: value for name, value in options.items() if name in common}
        return cls(**{**shared, "task_options": {**shared.get("task_options", {}), **task_options}})

    def to_dict(self) -> dict[str, Any]:
        """The flat mapping that `from_dict` reads."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "task_options"}
        return {**shared, **self.task_options}

    @property
    def of_all_nodes(self) -> dict[str, Any]:
        """The options that must be the same on every node: with others, processes wait for each other without end."""
        options = {name: value for name, value in self.to_dict().items() if name not in OF_ONE_NODE}
        data = {name: value for name, value in self.data_options.items() if name not in DATA_OF_ONE_NODE}
        return {**options, "data_options": data}


# options that say where a run computes, not what: these alone may change when it is resumed
RESUMABLE_OPTIONS = ("accelerator", "strategy", "workers", "blocks")
# options that may differ between the nodes of a run: where things lie there, and how they are read
OF_ONE_NODE = (
    "accelerator", "workers", "blocks", "insert", "from_weights", "data", "data_options", "out", "logger",
)  # fmt: skip
DATA_OF_ONE_NODE = ("root", "download", "arguments", "cache", "cache_gib")
# options that a comparison varies itself, or that change none of its results
NOT_OF_COMPARISONS = (
    "insert", "out", "seed", "devices", "nodes", "strategy", "workers", "checkpoint_steps", "logger",
)  # fmt: skip
