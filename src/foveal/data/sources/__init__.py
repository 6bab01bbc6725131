"""One function that opens any data set: bundled scenes, a folder, Parquet, or a torchvision set by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveal.data.scenes import (
    CueScenes,
    Digits,
    MovingDigits,
    SceneBoxes,
    SceneMasks,
    Scenes,
    direction_clips,
    local_scenes,
)
from foveal.data.sources.clips import open_clips
from foveal.data.sources.detection import formats_in, open_detection
from foveal.data.sources.folder import open_folder
from foveal.data.sources.packed import is_packed, open_packed
from foveal.data.sources.parquet import find_parquet, open_parquet
from foveal.data.sources.segmentation import open_segmentation
from foveal.data.sources.torchvision import TORCHVISION, open_torchvision
from foveal.data.split import NoPartError
from foveal.errors import FovealError

# bundled data sets for classification, by name
BUNDLED: dict[str, Callable[..., Any]] = {
    "scenes": Scenes,
    "scenes:cue": CueScenes,
    "scenes:local": local_scenes,
    "digits": Digits,
}

# what opens the bundled data of a task, by name, each with the function whose options it takes; and what its stored
# data
OTHER_TASKS: dict[
    str, tuple[dict[str, tuple[Callable[..., Any], Callable[..., Any]]], Callable[..., Any]]
] = {
    "segment": ({"scenes": (SceneMasks, Scenes)}, open_segmentation),
    "detect": ({"scenes": (SceneBoxes, Scenes)}, open_detection),
    "clips": (
        {
            "scenes": (MovingDigits, MovingDigits),
            "scenes:direction": (direction_clips, direction_clips),
        },
        open_clips,
    ),
}


def open_dataset(spec: str, split: str = "train", *, task: str = "classify", **options: Any) -> Any:
    """Open one split of a data set: items are dictionaries, nothing is resized or augmented.

    A classification item holds ``image`` (3, h, w) uint8 and ``label`` int; scenes also ``mask`` (h, w) and
    ``box_xyxy`` (4,), Parquet ``box_xyxy`` where the file has such a column. A segmentation item holds ``image`` and
    ``mask`` (h, w) uint8. A detection item holds ``image``, ``boxes_xyxy`` (n, 4) float32 in pixel edges, ``labels``
    (n,) int64, ``crowd`` (n,) bool, ``area`` (n,) float32, ``original_xyxy`` (the boxes again, which no transform
    moves), ``original_size`` (2,) height and width, and the annotations' own ``image_id``, ``annotation_ids`` (n,) and
    ``file``; n is 0 for an image without objects. An item of clips holds ``image`` (3, frames, h, w), the
    whole video, and ``label``.

    The data set has a length and

    - ``classes``: names in the order of the labels; ``names``: those of the items;
    - ``mirror``: whether a mirrored image still shows its class; ``augment``, where it is there and False: random crops
      would spoil the images; ``ignore_index``: the mask value of no class;
    - ``skipped``: unreadable items found so far, name -> reason; ``left_out``: files that look like images and are no
      items, name -> reason; ``notes``: sentences a person should read once;
    - ``fingerprint``: a hash that changes when the items, their files or the classes do.

    Args:
        spec: what to open.

            - ``"scenes"``: the bundled ones, see ``Scenes`` for the options (length, size, objects, seed, ...);
              ``"scenes:cue"``: a question that only attention can answer, see ``CueScenes``; ``"scenes:local"``:
              one like it that needs none.
            - A folder of class folders, or of train, val and test folders with class folders inside. Images lie
              at any depth below their class folder, each real file once; hidden files are ignored. A folder is a part
              if train, val, valid, validation, test, training or testing is a word of its name: ``training_set``,
              ``seg_train``, ``train2017``. Where a name may be a part or a class, both readings are refused.
            - A Parquet file, or a folder of them, in the layout of Hugging Face ``datasets``.
            - A folder of chunks that `foveal pack` wrote, or litdata; or the URL of one. See `open_packed`.
            - ``"torchvision:NAME"``: any classification set of torchvision, with the options ``root``,
              ``download`` (default False: nothing is fetched unasked) and ``arguments`` (a dictionary for the
              class).
            - For ``task="segment"``: ``"scenes"``, a folder of images and masks,
              ``"torchvision:VOCSegmentation"`` or ``"torchvision:Cityscapes"``; options in `open_segmentation`.
            - For ``task="detect"``: ``"scenes"``, or COCO JSON, YOLO, PASCAL VOC or Parquet; see `open_detection`.
            - For ``task="clips"``: ``"scenes"`` (which of two digits moves, see ``MovingDigits``),
              ``"scenes:direction"`` (to which side one moves), or videos in class folders or listed in CSV files; see
              `open_clips`.
        split: "train", "val" or "test". What the data call "valid" or "validation" is val. Data that come in
            parts keep them. Without a val part, a seeded ``val_share`` of every class of the train part is val
            and the rest is train; the test part is never used for it. Data without parts are divided into train
            and val in the same way and have no test.
        task: "classify", "segment" for images with a class for every pixel, "detect" for images with boxes, "clips" for
            videos.
        options: for stored data
            ``val_share`` (default 0.1) and ``split_seed`` (default 0): the division described above;
            ``classes``: names that fix the order of the labels, for instance those stored with weights;
            ``max_unreadable`` (default 0.05): share of unreadable images above which the run fails;
            ``max_pixels``: images with more are unreadable;
            ``channels`` (3, or 1 for grey) and ``grey_bits`` (default 16): see ``decode_image``;
            for Parquet ``image_column`` and ``label_column``, where the file does not say.

    Raises:
        FovealError: the data set, the split or an option is unknown; a class folder is empty; there are fewer
            than two classes; the folder can be read in two ways; more than ``max_unreadable`` of the images cannot be
            read.

    Example:
        >>> data = open_dataset("scenes", "val", length=20)
        >>> len(data), data.classes[:3], data[0]["image"].dtype
        (20, ['0', '1', '2'], torch.uint8)
    """
    if task not in ("classify", *OTHER_TASKS):
        raise FovealError(f"task must be one of classify, {', '.join(OTHER_TASKS)}, got {task!r}")
    _check_names(options.get("classes"))
    bundled, open_stored = OTHER_TASKS.get(task, ({}, None))
    if spec in bundled:
        opener, takes = bundled[spec]
        check_options(takes, options, spec)
        return opener(split, **options)
    if spec not in BUNDLED and is_packed(spec):
        check_options(open_packed, options, spec)
        return open_packed(spec, split, **{**options, "task": task})
    if open_stored is not None:
        check_options(open_stored, options, spec)
        return open_stored(spec, split, **options)
    opener, where = _opener(spec)
    check_options(opener, options, spec)
    if where is None:
        return opener(split, **options)
    try:
        return opener(where, split, **options)
    except NoPartError:
        raise
    except FovealError as error:
        formats = formats_in(where) if isinstance(where, Path) and where.is_dir() else []
        if not formats:
            raise
        raise FovealError(
            f"{spec} looks like images with boxes ({' and '.join(formats)}), which task detect opens; for task "
            f"classify {error}"
        ) from error


def _check_names(classes: Any) -> None:
    """Refuse names that YAML has read as something else: no, yes, 007."""
    if isinstance(classes, str) or classes is None:
        return
    wrong = [name for name in classes if not isinstance(name, str)]
    if wrong:
        raise FovealError(
            f"classes must be names, got {wrong[0]!r}, a {type(wrong[0]).__name__}; put names that YAML takes for "
            "numbers or truth values in quotes"
        )


def _opener(spec: str) -> tuple[Callable[..., Any], Any]:
    """The function that opens ``spec`` and its first argument, None for scenes."""
    if spec in BUNDLED:
        return BUNDLED[spec], None
    if spec.startswith(TORCHVISION):
        return open_torchvision, spec.removeprefix(TORCHVISION)
    root = Path(spec).expanduser()
    if not root.exists():
        raise FovealError(
            f"data must be {', '.join(map(repr, BUNDLED))}, 'torchvision:NAME', or a folder or Parquet file that "
            f"exists, got {spec!r}"
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
