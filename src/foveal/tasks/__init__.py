"""What a network can be trained to do: one package for each task, and one dictionary of them all.

Everything above this room (training, evaluation, prediction, comparing, looking, the command line) knows a task only
by the names of `Task`. A new task is one more entry in `TASKS`. Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from foveal.errors import FovealError
from foveal.tasks.classify import Classify
from foveal.tasks.clips import Clips
from foveal.tasks.detect import Detect
from foveal.tasks.generate import Generate
from foveal.tasks.segment import Segment

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.console import RenderableType
    from torch import Tensor, nn

    from foveal.data.findings import Finding
    from foveal.model_info import ModelInfo

    Sample = dict[str, Any]
    Batch = dict[str, Any]


class Metric(Protocol):
    """Figures over the images of a split, gathered batch by batch, in one process or several."""

    @property
    def images(self) -> int:
        """How many were counted."""
        ...

    def update(self, net: nn.Module, batch: Batch) -> None:
        """Run the network, in eval mode and without gradients, on a batch and add what came out."""
        ...

    def merge(self, other: Any) -> None:
        """Add what another process gathered."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures, among them ``loss`` and the task's ``metric``."""
        ...

    def report(self) -> dict[str, Any]:
        """What an evaluation adds to `compute`: ``interval`` (95 %, of the metric), ``interval_of``, ``per_class``,
        and in ``details`` whatever else the task measures, as JSON values."""
        ...


class Prediction(Protocol):
    """What a network says of one image. It shows itself in a terminal (``repr``) and in a notebook (a picture)."""

    file: str
    labels: Sequence[tuple[str, float]]

    def draw(self, image: Tensor) -> np.ndarray:
        """The image, uint8 (3, h, w), with the answer drawn into it: uint8 (h, w, 3)."""
        ...


@dataclass(frozen=True)
class Checked:
    """What a look at every image of a split found.

    Attributes:
        images: how many there are.
        classes: name -> how many images or objects have it.
        findings: what is wrong, or worth to know.
        pictures: name of an image -> a function that draws it, uint8 (h, w, 3), with some findings about it.
        summary: a few words more on what there is.
    """

    images: int
    classes: dict[str, int]
    findings: list[Finding]
    pictures: dict[str, Callable[[list[Finding]], np.ndarray]]
    summary: str = ""


@dataclass(frozen=True)
class AnswerSite:
    """What each object of one answer looked at, at one place of the network: for a page on which one points at objects.

    Attributes:
        name: path of the module in the network. block: its class.
        labels: of the n objects, with their scores.
        boxes: (n, 4) left, top, right and bottom edge as shares of the image.
        maps: (n, h, w) the attention of each over the image, which sums to 1; or None.
        paths: (n, s, 4) the boxes that each went through, from its start; or None.
    """

    name: str
    block: str
    labels: list[str]
    boxes: Tensor
    maps: Tensor | None = None
    paths: Tensor | None = None


class Task(Protocol):
    """The names that a task must have; an object that has them is a task.

    A task may also have

    - ``step(training, batch, generator) -> dict[str, Tensor]`` and ``make_optimizers(net, config) -> list``, where one
      training step is not "losses, backward, one optimiser step";
    - ``settle_training(config) -> dict``: the options of training that hold for this task where the person says nothing
      (``model_options`` are merged one by one); it may refuse values that make no sense;
    - ``backbone_lr(config) -> float``: the learning rate of the network's ``backbone`` as a factor of ``lr``;
    - ``opening_lines(config, net, data) -> list[str]``: what a run says before its first step;
    - ``remarks(rows, config) -> list[str]``: what it says after an epoch, from the rows of metrics so far;
    - ``choose_parts(data, options) -> dict``: the parts ``train`` and ``val``, where an option changes them;
    - ``collate_training(samples) -> list[Batch]``: one batch for training, where `collate` would make several;
    - ``example_size(image_size) -> tuple[int, ...]``: the sizes of an input, where they are not height and width;
    - ``find_files(folder) -> list[str]`` and ``read_file(path, info) -> image``, where files are no images;
    - ``stacks_samples = False``, where a batch is not its samples' entries stacked;
    - ``results(metric, info) -> Any``: what was found in every image, for a JSON file;
    - ``look_pictures(predictor, image) -> list``: (name, picture) of what an answer looked at, for networks whose own
      attention says it;
    - ``answer_sites(predictor, view) -> list[AnswerSite]``: the same for the page, of an image as the network sees it;
    - ``preprocessing``: ``mean`` and ``std`` of a network that is trained from nothing, where they are not ImageNet's;
    - ``sample(net, info, inference) -> Iterator[(prediction, image)]``, where predictions come without images;
    - ``sample_picture(net, info) -> np.ndarray``: what a run draws after each epoch, uint8 (h, w, 3);
    - ``curves_beside``: figures of validation that a run draws beside the metric, such as ``("spread", "gamma")``;
    - ``report_pass(net, images)``: a pass that runs every block, where that of a batch of images does not;
    - ``object_mask(batch) -> Tensor | None``, (b, h, w) bool: where the object of each image is known to be, so that
      attention can be scored against it;
    - ``settle_inference(inference, info)``: its options of inference with the defaults that depend on the network;
    - ``inherited_data_options(info, data) -> dict``: which options of the training's data hold on other data;
    - ``page_sections(evaluation, predictor) -> list[tuple[str, str]]``: titles and HTML of what the page of an
      evaluation shows of this task; names from the world are escaped by the task;
    - ``pipeline_tag``: what the Hugging Face hub calls the task;
    - ``bundled_recipes``: bundled data -> training options of a run that takes seconds;
    - ``checked_on``: bundled data on which a comparison checks itself, where inputs are no images: a plain convolution
      must answer there what the block of the recipe cannot;
    - ``compared(model) -> dict``: what a comparison takes on any data where the person says nothing else: ``insert``
      or ``models``, and options of training; ``model`` is the network that was asked for, or None;
    - ``items``: what it counts, in the plural, where that is not images;
    - ``floor_data(data, split, options) -> data set | None``: another part of the same data, for figures that real
      images reach among themselves (the metric's ``update_floor(batch)``);
    - ``ship(info) -> Shipment``: how its networks leave Python (`foveal.tasks.shipping`); without it they cannot be
      exported.

    Attributes:
        Options: dataclass of the task's own options of training, each with a docstring; `foveal train --task NAME`
            takes them.
        InferenceOptions: dataclass of the options that evaluation and prediction take. It may have a property
            ``inputs_each``, how many inputs of the network one item becomes.
        default_model, default_batch_size: where the person names none.
        metric: the figure that says how good a network is.
        higher_is_better: which way the metric points.
        is_share: whether the metric is a share from 0 to 1, which people read as per cent.
        writes_folder: whether predictions go to a folder rather than into one text.
    """

    Options: ClassVar[type]
    InferenceOptions: ClassVar[type]
    default_model: ClassVar[str]
    default_batch_size: ClassVar[int]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    is_share: ClassVar[bool]
    writes_folder: ClassVar[bool]

    def open(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        """Open one split of a data set: items are dictionaries with ``image``, uint8 (3, h, w)."""
        ...

    def describe(self, data: Mapping[str, Any], options: Any) -> dict[str, Any]:
        """What the weights file must say of this task beyond the classes.

        Args:
            data: the parts ``train`` and ``val``.
            options: an instance of ``Options``.

        Raises:
            FovealError: the data cannot be used for this task, or an option does not fit them.
        """
        ...

    def default_image_size(self, data: Any) -> int:
        """The size in pixels at which the network sees the images where the person names none."""
        ...

    def build(self, model: str, num_classes: int, **options: Any) -> nn.Module:
        """Build a network by name.

        Raises:
            FovealError: the name is unknown, or such a network cannot do this task.
        """
        ...

    def train_transform(self, data: Any, info: ModelInfo, options: Any, augment: bool) -> Any:
        """From a stored sample to what the network takes in training."""
        ...

    def eval_transform(self, info: ModelInfo, inference: Any = None) -> Any:
        """From a stored sample to what the network takes in evaluation; without randomness.

        Training and evaluation give a `foveal.data.JointTransform`, or what is used like one
        (`foveal.data.clips.ClipTransform`).

        Args:
            inference: an instance of ``InferenceOptions``, where views of an image depend on it.
        """
        ...

    def collate(self, samples: Sequence[Sample]) -> list[Batch]:
        """Batches of tensors from samples: one, or one for each size of image where sizes differ."""
        ...

    def losses(
        self, net: nn.Module, batch: Batch, info: ModelInfo, options: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The parts of the loss by name; their sum is minimised, and each part is logged."""
        ...

    def new_metric(self, info: ModelInfo, classes: Sequence[str], inference: Any = None) -> Metric:
        """An empty metric for data of these ``classes``, which are among those of the network."""
        ...

    def predict(
        self,
        net: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        info: ModelInfo,
        inference: Any = None,
    ) -> list[Any]:
        """Answers for a batch of prepared images (b, c, h, w), each at its own original size (height, width)."""
        ...

    def write(
        self,
        predictions: Iterable[tuple[Any, Tensor]],
        out: Path | None,
        info: ModelInfo,
        inference: Any,
        format: str,
        unreadable: Mapping[str, str],
    ) -> tuple[int, str]:
        """Write predictions, each with its image, as they come.

        Args:
            out: a file, or a folder where the task ``writes_folder``; None returns the text instead.
            unreadable: file -> reason; filled while ``predictions`` are taken.

        Returns:
            How many predictions there were, and what to print.
        """
        ...

    def show(self, evaluation: Any) -> RenderableType:
        """An evaluation as a table for the terminal."""
        ...

    def check(self, data: str, split: str, options: dict[str, Any]) -> Checked:
        """Look at every annotation and every image of a split once.

        Raises:
            FovealError: the data cannot be opened at all.
        """
        ...

    def caption(self, sample: Sample, classes: Sequence[str]) -> str:
        """A word that says what a sample shows, for pictures of examples."""
        ...


TASKS: dict[str, Task] = {
    "classify": Classify(),
    "segment": Segment(),
    "detect": Detect(),
    "generate": Generate(),
    "clips": Clips(),
}


def collate_training(task: Task) -> Callable[[Sequence[Sample]], list[Batch]]:
    """How the samples of a training batch become one."""
    return getattr(task, "collate_training", task.collate)


def items_of(task: Task) -> str:
    """What a task counts, in the plural.

    Example:
        >>> items_of(task_named("classify")), items_of(task_named("clips"))
        ('images', 'clips')
    """
    return getattr(task, "items", "images")


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        FovealError: there is none.

    Example:
        >>> task_named("classify").metric
        'accuracy'
    """
    if name not in TASKS:
        raise FovealError(f"task must be one of {', '.join(TASKS)}, got {name}")
    return TASKS[name]
