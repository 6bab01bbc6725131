"""One function that opens any data set: bundled scenes, a folder, Parquet, or a torchvision set by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.data.folder import open_folder
from foveal.data.parquet import find_parquet, open_parquet
from foveal.data.scenes import Scenes
from foveal.data.segmentation import SceneMasks, open_segmentation
from foveal.data.torchvision_sets import open_torchvision
from foveal.data.transforms import JointTransform
from foveal.errors import FovealError

TORCHVISION = "torchvision:"


def open_dataset(spec: str, split: str = "train", *, task: str = "classify", **options: Any) -> Any:
    """Open one split of a data set: items are dictionaries, nothing is resized or augmented.

    A classification item holds ``image`` (3, h, w) uint8 and ``label`` int; scenes also ``mask`` (h, w) and
    ``box_xyxy`` (4,), Parquet ``box_xyxy`` where the file has such a column. The data set has ``classes`` (names
    in the order of the labels), ``skipped`` (unreadable items found so far, name -> reason), ``mirror`` (whether
    a mirrored image still shows its class) and a length.

    Args:
        spec: what to open.

            - ``"scenes"``: the bundled ones, see ``Scenes`` for the options (length, size, objects, seed, ...).
            - A folder of class folders, or of train, val and test folders with class folders inside. Images lie
              at any depth below their class folder; hidden files are ignored.
            - A Parquet file, or a folder of them, in the layout of Hugging Face ``datasets``.
            - ``"torchvision:NAME"``: any classification set of torchvision, with the options ``root``,
              ``download`` (default False: nothing is fetched unasked) and ``arguments`` (a dictionary for the
              class).
        split: "train", "val" or "test". What the data call "valid" or "validation" is val. Data that come in
            parts keep them. Without a val part, a seeded ``val_share`` of every class of the train part is val
            and the rest is train; the test part is never used for it. Data without parts are divided into train
            and val in the same way and have no test.
        task: "classify", or "segment" for images with a class for every pixel.
        options: for stored data
            ``val_share`` (default 0.1) and ``split_seed`` (default 0): the division described above;
            ``classes``: names that fix the order of the labels, for instance those stored with weights;
            ``max_unreadable`` (default 0.05): share of unreadable images above which the run fails;
            ``max_pixels``: images with more are unreadable;
            for Parquet ``image_column`` and ``label_column``, where the file does not say.

    Raises:
        ValueError: the data set, the split or an option is unknown; a class folder is empty; there are fewer
            than two classes; more than ``max_unreadable`` of the images cannot be read.

    Example:
        >>> data = open_dataset("scenes", "val", length=20)
        >>> len(data), data.classes[:3], data[0]["image"].dtype
        (20, ['0', '1', '2'], torch.uint8)
    """
    if task not in ("classify", "segment"):
        raise FovealError(f"task must be classify or segment, got {task!r}")
    if task == "segment":
        if spec == "scenes":
            check_options(Scenes, options, spec)
            return SceneMasks(split, **options)
        check_options(open_segmentation, options, spec)
        return open_segmentation(spec, split, **options)
    opener, where = _opener(spec)
    check_options(opener, options, spec)
    return opener(where, split, **options) if where is not None else opener(split, **options)


def _opener(spec: str) -> tuple[Callable[..., Any], Any]:
    """The function that opens ``spec`` and its first argument, None for scenes."""
    if spec == "scenes":
        return Scenes, None
    if spec.startswith(TORCHVISION):
        return open_torchvision, spec.removeprefix(TORCHVISION)
    root = Path(spec).expanduser()
    if not root.exists():
        raise FovealError(
            f"data must be 'scenes', 'torchvision:NAME', or a folder or Parquet file that exists, "
            f"got {spec!r}"
        )
    if root.suffix == ".parquet" or (root.is_dir() and find_parquet(root)):
        return open_parquet, root
    if root.is_file():
        raise FovealError(f"a data file must end in .parquet, got {spec!r}")
    return open_folder, root


def check_options(opener: Callable[..., Any], options: dict[str, Any], spec: str) -> None:
    known = [
        name
        for name, p in inspect.signature(opener).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in known:
            raise FovealError(f"options of {spec!r} are {', '.join(known)}, got {name!r}")


def as_tensors(dataset: Any, size: int | None = None) -> dict[str, Tensor]:
    """A whole data set in memory: each entry of the items stacked, numbers as int64. For small data.

    Args:
        dataset: from ``open_dataset``; any items with entries of equal shapes.
        size: bring images, masks and boxes to (size, size) by the shorter side and the centre crop first; needed
            where sizes differ.

    Raises:
        ValueError: the items' shapes differ and no ``size`` is given.

    Example:
        >>> batch = as_tensors(open_dataset("scenes", "val", length=20), size=16)
        >>> batch["image"].shape, batch["image"].dtype, batch["label"].dtype
        (torch.Size([20, 3, 16, 16]), torch.uint8, torch.int64)
    """
    if hasattr(dataset, "as_tensors") and size in (None, dataset.size):
        return dataset.as_tensors()
    resize = _resizer(size) if size is not None else None
    stacked: dict[str, Tensor] = {}
    for i in range(len(dataset)):
        sample = resize(dataset[i]) if resize else dataset[i]
        for name, value in sample.items():
            value = torch.as_tensor(value)
            if i == 0:  # one allocation instead of a list and its copy
                stacked[name] = value.new_empty((len(dataset), *value.shape))
            elif value.shape != stacked[name].shape[1:]:
                raise FovealError(
                    f"without size every {name} must have the same shape, "
                    f"got {tuple(stacked[name].shape[1:])} and {tuple(value.shape)}"
                )
            stacked[name][i] = value
    return stacked


def _resizer(size: int) -> JointTransform:
    from torchvision.transforms import v2

    return JointTransform([v2.Resize(size, antialias=True), v2.CenterCrop(size)], normalise=False)
