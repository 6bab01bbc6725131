"""Images with boxes around their objects: COCO JSON, YOLO, PASCAL VOC and Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.data.boxed_images import UNREADABLE, BoxedImages, Files, Rows
from foveal.data.boxes import Annotations
from foveal.data.dataset import StoredDataset, few, refuse_repeated
from foveal.data.decode import check_decoding
from foveal.data.findings import Finding, counted, refuse_errors
from foveal.data.opening import MAX_PIXELS
from foveal.data.sources.coco import find_coco, read_coco
from foveal.data.sources.parquet import find_parquet
from foveal.data.sources.parquet_boxes import read_parquet_boxes
from foveal.data.sources.voc import find_voc, read_voc
from foveal.data.sources.yolo import find_yolo, read_yolo
from foveal.data.split import hold_out
from foveal.errors import FovealError

FORMATS = ("coco", "yolo", "voc", "parquet")
# the options that each format has beyond what all of them have
OWN_OPTIONS = {
    "coco": ("annotations", "images", "box_format"),
    "yolo": ("classes",),
    "voc": ("classes", "voc_origin"),
    "parquet": ("classes", "box_format", "image_column"),
}
MOST_OUTSIDE = 0.2
"""Share of the boxes that may leave their image; more of them are rather in another format."""
LEAVING = ("boxes that leave the image", "boxes outside the image")


def open_detection(
    spec: str,
    split: str = "train",
    *,
    format: str | None = None,
    annotations: str | None = None,
    images: str | None = None,
    box_format: str | None = None,
    voc_origin: int | None = None,
    image_column: str | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
    channels: int = 3,
    grey_bits: int = 16,
) -> StoredDataset:
    """Stored images with boxes; ``open_dataset(..., task="detect")`` calls this and documents the items.

    Images that have annotations without any box are kept: they show what is no object. Boxes without an area are left
    out and told; those that leave their image are cut at its border.

    Args:
        spec: a folder, or a COCO JSON, a YOLO YAML or a Parquet file.

            - COCO: JSON files with images, annotations and categories in ``annotations/``, beside the images or in the
              folders of the parts; a word of a file's or folder's name is its part (``instances_train2017.json``).
            - YOLO: a YAML file with ``names`` and ``train``, ``val``, or folders ``images`` and ``labels`` with a class
              list such as ``classes.txt``. An image without a label file has no objects.
            - PASCAL VOC: ``Annotations/*.xml`` and ``JPEGImages``, with the lists of ``ImageSets/Main`` where they are
              there, or XML files beside the images, in parts or not.
            - Parquet: a column ``objects`` as in Hugging Face ``datasets``, or ``box_xyxy`` and ``label``, one box an
              image.
        split: as in ``open_dataset``.
        format: "coco", "yolo", "voc" or "parquet", where a folder could be read in two ways.
        annotations, images: COCO: the JSON file and the folder of the images, below the folder.
        box_format: COCO and Parquet: "xywh" (left, top, width, height; the default) or "xyxy" (corners).
        voc_origin: VOC: 1 (PASCAL's rule, the default): coordinates count from 1 and include the last pixel; 0: they
            are edges from 0.
        image_column, classes, val_share, split_seed, max_unreadable, max_pixels, channels, grey_bits: as in
            ``open_dataset``.

    Raises:
        FovealError: the format cannot be told, an annotation is of no class, sizes contradict each other, more than a
            fifth of the boxes leave their images, or as in ``open_dataset``.
    """
    check_decoding(channels, grey_bits)
    given = {
        "annotations": annotations,
        "images": images,
        "box_format": box_format,
        "voc_origin": voc_origin,
        "image_column": image_column,
        "classes": classes,
    }
    found = read_annotations(spec, split, format, {k: v for k, v in given.items() if v is not None})
    refuse_errors(found.findings)
    refuse_nothing(found, split, spec)
    source = source_of(found, max_pixels=max_pixels, channels=channels, grey_bits=grey_bits)
    indices: Sequence[int] = range(len(source))
    if found.divide and len(source):
        names = [image.path for image in found.images]
        indices = hold_out(names, None, split, val_share=val_share, split_seed=split_seed)
    findings = [*_of_images(found, indices), *source.read_headers(indices)]
    refuse_errors(findings)
    refuse_another_format(findings, [source.images[i] for i in indices], spec)
    # images that cannot be read are named and counted by the data set itself
    told = counted([finding for finding in findings if finding.kind not in UNREADABLE])
    refuse_no_boxes(source, indices, split, spec, findings)
    return StoredDataset(
        source, indices, found.classes, max_unreadable=max_unreadable, left_out=found.left_out,
        notes=[*_of_classes(source, indices, found.classes, split), *found.notes, *told],
        category_ids=found.category_ids,
    )  # fmt: skip


def source_of(found: Annotations, **decoding: int) -> BoxedImages:
    """The images that annotations speak of, with the options of `decode_image`."""
    contents = (
        Rows(found.table) if found.table is not None else Files(found.root, [i.path for i in found.images])
    )
    return BoxedImages(contents, found.images, **decoding)


def read_annotations(spec: str, split: str, format: str | None, options: dict[str, Any]) -> Annotations:
    """What the annotations of a split say, as they stand.

    Args:
        options: those that only some formats have, as given.

    Raises:
        FovealError: the format cannot be told, or has no such option.
    """
    root = Path(spec).expanduser()
    if not root.exists():
        raise FovealError(
            "data with boxes must be 'scenes', a folder, or a COCO JSON, YOLO YAML or Parquet file that exists, got "
            f"{spec!r}"
        )
    kind = format or format_of(root)
    if kind not in FORMATS:
        raise FovealError(f"format must be one of {', '.join(FORMATS)}, got {format}")
    foreign = [name for name in options if name not in OWN_OPTIONS[kind]]
    if foreign:
        known = ", ".join(OWN_OPTIONS[kind])
        raise FovealError(
            f"{spec!r} is in the format {kind}, whose own options are {known}, got {foreign[0]}"
        )
    if options.get("box_format") not in (None, "xywh", "xyxy"):
        raise FovealError(f"box_format must be xywh or xyxy, got {options['box_format']}")
    match kind:
        case "coco":
            found = read_coco(root, split, **options)
        case "yolo":
            found = read_yolo(root, split, **options)
        case "voc":
            found = read_voc(root, split, **options)
        case _:
            found = read_parquet_boxes(root, split, **options)
    return found


def refuse_nothing(found: Annotations, split: str, spec: str) -> None:
    """Raise where there is no class or no image, or where two classes have one name."""
    if not found.classes:
        raise FovealError(f"detection needs at least 1 class, got none in {spec}")
    refuse_repeated(found.classes)
    if not found.images:
        raise FovealError(f"data with boxes must list images, got none for {split} in {spec}")


def refuse_no_boxes(
    source: BoxedImages, indices: Sequence[int], split: str, spec: str, findings: Sequence[Finding]
) -> None:
    """Raise where none of the images has a box, and say what became of those that were annotated."""
    if any(source.object_count(i) for i in indices):
        return
    told = counted(findings)
    raise FovealError(
        f"data with boxes must hold at least 1 object for {split}, got none in {len(indices):,} images of {spec}"
        + (f"; {told[0]}" if told else "")
    )


def format_of(root: Path) -> str:
    """Which format a file or folder is in.

    Raises:
        FovealError: none, or more than one.
    """
    if root.is_file():
        kinds = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".parquet": "parquet"}
        if root.suffix.lower() not in kinds:
            raise FovealError(f"a file of boxes must end in {', '.join(kinds)}, got {root}")
        return kinds[root.suffix.lower()]
    kinds = formats_in(root) + ["parquet"] * bool(find_parquet(root))
    if len(kinds) == 1:
        return kinds[0]
    if not kinds:
        raise FovealError(
            "a folder with boxes must hold COCO JSON files, a YOLO data.yaml or images and labels, VOC's XML files or "
            f"Parquet, got none of them in {root}"
        )
    raise FovealError(
        f"a folder must be in one format, got {' and '.join(kinds)} in {root}; choose by option format"
    )


def formats_in(root: Path) -> list[str]:
    """The formats, of files beside the images, that a folder looks like."""
    found = {
        "coco": any(find_coco(root).values()),
        "yolo": find_yolo(root) is not None,
        "voc": bool(find_voc(root)),
    }
    return [kind for kind, there in found.items() if there]


def _of_images(found: Annotations, indices: Sequence[int]) -> list[Finding]:
    """Findings about the chosen images, and those that are about none in particular."""
    others = {image.path for image in found.images} - {found.images[i].path for i in indices}
    return [finding for finding in found.findings if finding.image not in others]


def refuse_another_format(findings: Sequence[Finding], images: Sequence[Any], spec: str) -> None:
    """Corners taken for widths look plausible, but leave the image; shares of it lie in its first pixel.

    Raises:
        FovealError: more than a fifth of the boxes leave their image, or all of them lie in the first pixel.
    """
    largest = max((float(image.boxes.max()) for image in images if len(image.boxes)), default=2.0)
    if largest <= 1:
        raise FovealError(
            f"boxes must be in pixels, got numbers up to {largest:g} in all of {spec}, which may be shares of the image"
        )
    leaving = [finding for finding in findings if finding.kind in LEAVING]
    outside = sum(finding.kind == LEAVING[1] for finding in leaving)
    boxes = sum(len(image.boxes) for image in images) + outside
    if len(leaving) > max(1, MOST_OUTSIDE * boxes):
        raise FovealError(
            f"at most {MOST_OUTSIDE:.0%} of the boxes may leave their image, got {len(leaving)} of {boxes} in {spec}, "
            f"the first in {leaving[0].where}: {leaving[0].text}; are they corners "
            "(--data_options.box_format xyxy), or of images of another size?"
        )


def _of_classes(source: BoxedImages, indices: Sequence[int], classes: Sequence[str], split: str) -> list[str]:
    """How many boxes and images without any there are, and the classes without a box."""
    counts: Counter[int] = Counter()
    empty = crowds = 0
    for index in indices:
        image = source.images[index]
        counts.update(image.labels.tolist())
        empty += len(image.boxes) == 0
        crowds += int(image.crowd.sum())
    notes = [f"{split}: {counts.total():,} boxes in {len(indices):,} images"]
    if empty:
        notes[0] += f", {empty:,} of them without objects, which are kept"
    if crowds:
        notes[0] += f"; {crowds} boxes of crowds, which are not trained on"
    absent = [name for label, name in enumerate(classes) if not counts[label]]
    if absent:
        verb = "has" if len(absent) == 1 else "have"
        notes.append(f"{len(absent)} of {len(classes)} classes {verb} no box for {split}: {few(absent)}")
    return notes
