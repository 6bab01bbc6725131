"""A network that is ready for use: with its task, its classes and its preprocessing, in one object."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from foveal.checkpoint import BlockSource, load
from foveal.data import decode_image
from foveal.data.joint import grey
from foveal.errors import FovealError
from foveal.hub import is_repository
from foveal.image_files import survey_images
from foveal.machine import choose_device
from foveal.model_info import ModelInfo
from foveal.models import create_model, data_config, list_models
from foveal.sources import Frame
from foveal.tasks import Task, task_named
from foveal.tasks.options import make_options

Source = str | os.PathLike[str] | bytes | Tensor | np.ndarray
VALUES_AT_ONCE = 3 * 2**22
"""Values of prepared images that go through a network together."""
BUNDLED = "default.safetensors"
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Predictor:
    """A network in eval mode with all that is needed to use it.

    Attributes:
        net: the network, on its device.
        info: classes and preprocessing, as the weights file says.
        name: what the weights are called; shown in every picture.

    Example:
        >>> predictor = open_bundled()
        >>> prediction = predictor(torch.zeros(3, 40, 40, dtype=torch.uint8))
        >>> len(prediction.labels)
        5
    """

    net: nn.Module
    info: ModelInfo
    name: str

    @cached_property
    def task(self) -> Task:
        """What the network does."""
        return task_named(self.info.task)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def __repr__(self) -> str:
        model = self.info.model or type(self.net).__name__
        does = f"task {self.info.task}, {len(self.info.classes)} classes"
        return f"<Predictor {self.name}: {model}, {does}, on {self.device}>"

    def __call__(self, source: Any, **inference: Any) -> Any:
        """The answer for one image, or for a list of them.

        Args:
            source: a path, the bytes of an image file, a Pillow image, an array (h, w, 3) or a tensor (3, h, w) of
                uint8; or a list of these. For networks of clips a video or a folder of frames, or a tensor
                (3, frames, h, w).
            inference: options of the task, such as ``top=3`` to classify or ``inference="sliding"`` to segment.

        Returns:
            A prediction, which shows itself in a notebook; for a list, a list of predictions.

        Raises:
            FovealError: the image cannot be read, or an option does not fit.
            FileNotFoundError: there is no such file.
        """
        if not isinstance(source, list | tuple):
            return self([source], **inference)[0]
        images = [self._input(one) for one in source]
        names = [os.fspath(one) if isinstance(one, str | os.PathLike) else "" for one in source]
        answers = self.predict(images, self.inference_options(inference))
        return [
            replace(answer, file=str(name), image=image)
            for answer, name, image in zip(answers, names, images, strict=True)
        ]

    def _input(self, source: Any) -> Any:
        if isinstance(source, str | os.PathLike | bytes):
            return self.read(source)
        if hasattr(self.task, "example_size"):
            shape = tuple(getattr(source, "shape", ()))
            if not isinstance(source, Tensor) or source.dtype != torch.uint8 or len(shape) != 4:
                kind = getattr(source, "dtype", type(source).__name__)
                raise FovealError(
                    f"a clip must be a path or a tensor (3, frames, h, w) of uint8, got {kind} of shape {shape}"
                )
            return source
        return _image_of(source, self.info.channels, self.info.grey_bits)

    def inference_options(self, given: Mapping[str, Any]) -> Any:
        """The task's options of prediction.

        Raises:
            FovealError: the task has no such option, or a value is out of its range.
        """
        options = make_options(self.task.InferenceOptions, given, self.info.task)
        settle = getattr(self.task, "settle_inference", None)
        return options if settle is None else settle(options, self.info)

    @torch.no_grad()
    def predict(self, images: Sequence[UInt8[Tensor, "3 h w"]], inference: Any = None) -> list[Any]:
        """Answers for images of any size, in their order; images of one prepared size go together.

        Args:
            inference: an instance of the task's ``InferenceOptions``.
        """
        transform = self.task.eval_transform(self.info, inference)
        prepared = [transform({"image": image})["image"] for image in images]
        return self._answers(prepared, [(one.shape[-2], one.shape[-1]) for one in images], inference)

    def _answers(
        self, prepared: Sequence[Tensor], original: Sequence[tuple[int, int]], inference: Any
    ) -> list[Any]:
        answers: list[Any] = [None] * len(prepared)
        for indices in _groups([one.shape for one in prepared]):
            batch = torch.stack([prepared[i] for i in indices]).to(self.device)
            sizes = [original[i] for i in indices]
            found = self.task.predict(self.net, batch, sizes, self.info, inference)
            for i, answer in zip(indices, found, strict=True):
                answers[i] = answer
        return answers

    def read(self, file: str | os.PathLike[str] | bytes) -> Any:
        """A file as what the task answers for: an image, or a video.

        Raises:
            FovealError: it cannot be read.
        """
        own = getattr(self.task, "read_file", None)
        if own is None or isinstance(file, bytes):
            return decode_image(file, channels=self.info.channels, grey_bits=self.info.grey_bits)
        return own(Path(file), self.info)

    def predict_files(
        self,
        files: Iterable[Path | Frame | None],
        inference: Any,
        unreadable: dict[str, str],
        batch_size: int = 32,
    ) -> Iterator[tuple[Any, Tensor]]:
        """Answers for image files, each with its image, one batch after the other.

        Args:
            files: files and frames; at None what waits for its batch is answered.
            unreadable: is filled with the files that cannot be read and the reason.
        """
        transform = self.task.eval_transform(self.info, inference)
        waiting: list[tuple[Path, Any, Tensor]] = []
        values = 0
        for file in files:
            if file is not None:
                try:
                    name, image = (
                        (file.name, file.image) if isinstance(file, Frame) else (file, self.read(file))
                    )
                    # the frames of a video are read here
                    prepared = transform({"image": image})["image"]
                except (FovealError, OSError) as error:
                    unreadable[str(file)] = str(error)
                    continue
                waiting.append((name, image, prepared))
                values += prepared.numel()
            if file is None or len(waiting) == batch_size or values > VALUES_AT_ONCE:
                yield from self._answered(waiting, inference)
                waiting, values = [], 0
        yield from self._answered(waiting, inference)

    @torch.no_grad()
    def _answered(self, waiting: list[tuple[Path, Any, Tensor]], inference: Any) -> Iterator[tuple[Any, Any]]:
        sizes = [(image.shape[-2], image.shape[-1]) for _, image, _ in waiting]
        answers = self._answers([prepared for *_, prepared in waiting], sizes, inference)
        for (file, image, _), answer in zip(waiting, answers, strict=True):
            yield replace(answer, file=str(file)), image

    # -------------------------------------------------------------------------------------------- what the network sees

    @cached_property
    def _resize(self) -> Any:
        return self.task.eval_transform(self.info).without_normalization()

    @cached_property
    def _normalize(self) -> Any:
        return self.task.eval_transform(self.info).normalization_alone()

    def view(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What the network sees of a sample, at its size and still uint8; masks and boxes with it.

        The image is (3, h, w), to be shown; of what a network for grey images sees all channels are equal.
        """
        seen = self._resize(sample)
        image = seen["image"]
        return {**seen, "image": image.expand(3, *image.shape[1:])}

    def prepare(self, view: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """A view, normalised as in training."""
        return self._normalize({"image": view})["image"]

    def point(self, image_size: tuple[int, int], pixel: tuple[int, int]) -> tuple[int, int]:
        """Where a pixel (y, x) of an image of (height, width) comes to lie in the view.

        Raises:
            FovealError: the pixel is outside the image, or cut off by the view.
        """
        (height, width), (y, x) = image_size, pixel
        if not (0 <= y < height and 0 <= x < width):
            raise FovealError(f"query must lie inside the image of {height}x{width}, got {y},{x}")
        box = torch.tensor([x, y, x + 1.0, y + 1.0])
        image = torch.empty(3, height, width, dtype=torch.uint8)
        view = self.view({"image": image, "box_xyxy": box})
        x1, y1, x2, y2 = view["box_xyxy"].tolist()
        if x2 <= x1 or y2 <= y1:
            raise FovealError(f"query must lie in the part of the image that the network sees, got {y},{x}")
        rows, columns = view["image"].shape[1:]
        return min(int((y1 + y2) / 2), rows - 1), min(int((x1 + x2) / 2), columns - 1)


def predictor(
    weights: str | os.PathLike[str], device: str = "auto", blocks: BlockSource | None = None
) -> Predictor:
    """A network ready for use, from a weights file or from a model's name.

    Args:
        weights: a file that `foveal train`, `compare` or `convert` wrote; a repository that holds one,
            "hf-hub:user/name[@revision]" or "local-dir:folder"; or the name of a model with published weights, such as
            "resnet50". What is not here is fetched once from the network.
        device: "auto", "cpu", "cuda", ...
        blocks: the Python file that defines blocks of your own which the weights hold, or more, as for `foveal.load`.

    Raises:
        FovealError: not one of our files, one without the facts that training stores, or no such device.
        FileNotFoundError: there is neither such a file nor such a model.
        ConnectionError: published weights are neither in the cache nor to be fetched.

    Example:
        >>> import foveal, tempfile, pathlib
        >>> from foveal.model_info import ModelInfo
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> net = foveal.create_model("cifar_resnet8", num_classes=2)
        >>> foveal.save(net, path, **ModelInfo("classify", ["cat", "dog"], 32).to_dict())
        >>> foveal.predictor(path)(torch.zeros(3, 40, 40, dtype=torch.uint8)).label in ("cat", "dog")
        True
    """
    if isinstance(weights, str) and is_repository(weights):
        return _from_net(load(weights, blocks=blocks), weights, weights, device)
    path = Path(weights)
    if path.exists() or path.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        return _from_net(load(path, blocks=blocks), _short_name(path), str(path), device)
    name = str(weights)
    if not list_models(name.partition(".")[0]):
        raise FileNotFoundError(
            "weights must be a file, a repository such as hf-hub:user/name, or a model that `foveal list` prints, "
            f"got {name}"
        )
    net = create_model(name, pretrained=True)
    return _ready(net, _published_info(net, name), f"{name} (published weights)", device)


def open_bundled(device: str = "cpu") -> Predictor:
    """The small network that comes with the package, trained on the bundled scenes."""
    with resources.as_file(resources.files("foveal.look") / BUNDLED) as path:
        return _from_net(load(path), f"{BUNDLED} (bundled, trained on scenes)", BUNDLED, device)


def _from_net(net: nn.Module, name: str, where: str, device: str) -> Predictor:
    return _ready(net, ModelInfo.from_dict(net.foveal_info, where), name, device)  # pyright: ignore[reportArgumentType]


def _ready(net: nn.Module, info: ModelInfo, name: str, device: str) -> Predictor:
    return Predictor(net.eval().requires_grad_(False).to(choose_device(device)), info, name)


def _published_info(net: nn.Module, name: str) -> ModelInfo:
    """The preprocessing and the classes that timm notes with published weights."""
    own = data_config(net)
    if (getattr(net, "pretrained_cfg", None) or {}).get("num_classes") != IMAGENET_CLASSES:
        raise FovealError(
            f"a model by name must be a classifier of ImageNet with published weights, got {name}"
        )
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    names = ImageNetInfo()
    return ModelInfo(
        task="classify",
        classes=[names.index_to_description(i, detailed=False) for i in range(IMAGENET_CLASSES)],
        image_size=own["input_size"][-1],
        mean=own["mean"],
        std=own["std"],
        interpolation=own["interpolation"],
        crop_share=own["crop_pct"],
        model=name,
    )


def _short_name(path: Path) -> str:
    """Enough of the path to tell two runs apart: ``run-1/weights/best.safetensors`` is shown from the run on."""
    parts = path.parts[-3:] if path.parent.name == "weights" else path.parts[-1:]
    return "/".join(parts)


def image_files(
    paths: Sequence[str | os.PathLike[str]],
    task: Task | None = None,
    *,
    also: Collection[str] = (),
    left_out: dict[str, str] | None = None,
) -> list[Path]:
    """Files as given; of folders the images at any depth, in the order of their names, without repeats.

    Args:
        task: whose files to find, where they may be no images.
        also: suffixes of other files to take from folders, as in `foveal.image_files.survey_images`.
        left_out: is filled with what looks like an image in a folder and is none of the files, and the reason.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    of_task = getattr(task, "find_files", None)
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            others: dict[str, str] = {}
            if of_task is None:
                inside, others = survey_images(path, also)
                inside = [path.joinpath(*name.split("/")) for name in inside]
                if left_out is not None:
                    left_out |= {str(path.joinpath(*name.split("/"))): why for name, why in others.items()}
            else:
                inside = of_task(path)
            if not inside:
                reason = next((f"; {name}: {why}" for name, why in others.items()), "")
                raise FileNotFoundError(f"a folder must hold images, got none in {path}{reason}")
            found += map(Path, inside)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"a path must exist, got {path}")
    return list(dict.fromkeys(found))


def _groups(shapes: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of equal shapes, no more of them together than memory allows."""
    by_shape: dict[Any, list[int]] = {}
    for i, shape in enumerate(shapes):
        by_shape.setdefault(tuple(shape), []).append(i)
    for shape, indices in by_shape.items():
        together = max(1, VALUES_AT_ONCE // max(1, int(np.prod(shape))))
        yield from (indices[k : k + together] for k in range(0, len(indices), together))


def _image_of(source: Any, channels: int, grey_bits: int) -> UInt8[Tensor, "c h w"]:
    if isinstance(source, str | os.PathLike | bytes):
        return decode_image(source, channels=channels, grey_bits=grey_bits)
    if isinstance(source, Tensor):
        image = source
    elif isinstance(source, np.ndarray):
        # a copy, as an array of Pillow's cannot be written to
        image = torch.from_numpy(source.copy()).permute(2, 0, 1) if source.ndim == 3 else torch.empty(0)
    elif hasattr(source, "convert"):
        from foveal.data.decode import to_tensor

        image = to_tensor(source, channels=channels, grey_bits=grey_bits)
    else:
        raise FovealError(
            f"an image must be a path, bytes, a Pillow image, an array or a tensor, got {type(source).__name__}"
        )
    image = grey(image) if channels == 1 else image
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != channels:
        shape = tuple(getattr(source, "shape", image.shape))
        raise FovealError(
            f"an image must be uint8, a tensor of shape ({channels}, h, w) or an array of shape (h, w, {channels}), "
            f"got {getattr(source, 'dtype', image.dtype)} of shape {shape}"
        )
    return image
