"""Whether the boxes of a data set are what they seem: every annotation and every image is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from foveal.data.boxed_images import DAMAGED, UNREADABLE, BoxedImages
from foveal.data.decode import decode_image
from foveal.data.findings import Finding
from foveal.data.sources.detection import (
    read_annotations,
    refuse_another_format,
    refuse_no_boxes,
    refuse_nothing,
    source_of,
)
from foveal.data.sources.packed import is_packed
from foveal.data.split import hold_out
from foveal.errors import FovealError
from foveal.palette import palette
from foveal.tasks import Checked, Task
from foveal.tasks.check import check_stored, few_of

USUAL_QUERIES = 100
"""Of DETR and of Sparse R-CNN, as published: objects of one image beyond them cannot be found."""
SHARED = ("val_share", "split_seed", "max_unreadable", "max_pixels", "channels", "grey_bits")


def check_boxes(task: Task, data: str, split: str, options: dict[str, Any]) -> Checked:
    """Everything about the boxes of one split.

    Raises:
        FovealError: the annotations cannot be read at all.
    """
    if data == "scenes" or is_packed(data):  # chunks hold what was found sound when they were packed
        return check_stored(task, data, split, options, lambda sample: sample["labels"].tolist())
    own = {name: value for name, value in options.items() if name not in (*SHARED, "format")}
    found = read_annotations(data, split, options.get("format"), own)
    source = source_of(
        found, **{n: options[n] for n in ("max_pixels", "channels", "grey_bits") if n in options}
    )
    indices = list(range(len(source)))
    if found.divide and len(source):
        share, seed = options.get("val_share", 0.1), options.get("split_seed", 0)
        names = [image.path for image in found.images]
        indices = hold_out(names, None, split, val_share=share, split_seed=seed)
    chosen = {found.images[i].path for i in indices}
    findings = [f for f in found.findings if not f.image or f.image in chosen]
    findings += [Finding("files that are not used", "warning", n, why) for n, why in found.left_out.items()]
    findings += source.read_headers(indices)
    try:
        refuse_nothing(found, split, data)
        refuse_another_format(findings, [source.images[i] for i in indices], data)
        refuse_no_boxes(source, indices, split, data, findings)
    except FovealError as error:
        findings.append(Finding("data that cannot be used as they stand", "error", data, str(error)))
    unread = {f.image for f in findings if f.kind in UNREADABLE}
    findings += _undecodable(source, [i for i in indices if found.images[i].path not in unread])
    counts: Counter[int] = Counter()
    boxes = []
    for index in indices:
        image = source.images[index]
        counts.update(image.labels.tolist())
        boxes.append(len(image.boxes))
        if source.object_count(index) > USUAL_QUERIES:
            text = f"{source.object_count(index)} objects, where DETR and Sparse R-CNN have {USUAL_QUERIES} queries"
            findings.append(
                Finding("images with more objects than queries", "warning", image.path, text, image.path)
            )
    classes = {name: counts[number] for number, name in enumerate(found.classes)}
    findings += few_of(classes, split, "objects")
    empty = boxes.count(0)
    most = max(boxes, default=0)
    told = (
        f"{sum(boxes):,} boxes of {len(classes)} classes, {np.mean(boxes) if boxes else 0:.1f} an image, at most "
        f"{most}; {empty:,} images without objects"
    )
    pictures = {source.images[i].path: _drawing(source, i) for i in indices}
    return Checked(
        len(indices), classes, findings, pictures, told + "".join(f"; {note}" for note in found.notes)
    )


def _undecodable(source: BoxedImages, indices: list[int]) -> list[Finding]:
    """Images whose header can be read and whose pixels cannot."""
    found = []
    for index in indices:
        content, name = source.contents.content(index), source.images[index].path
        try:
            decode_image(
                content, name=name if isinstance(content, bytes) else None, max_pixels=source.max_pixels
            )
        except (FovealError, OSError) as error:
            found.append(Finding(DAMAGED, "warning", name, str(error), name))
    return found


def _drawing(source: BoxedImages, index: int) -> Callable[[list[Finding]], np.ndarray]:
    """Draws an image with all its boxes, those of the findings with a broken line."""

    def draw(findings: list[Finding]) -> np.ndarray:
        from foveal.tasks.detect.prediction import draw_boxes

        image = source.images[index]
        content = source.contents.content(index)
        pixels = decode_image(content, name=image.path if isinstance(content, bytes) else None)
        wrong = [f for f in findings if f.box is not None]
        boxes = [*image.boxes.tolist(), *(list(f.box) for f in wrong if f.box is not None)]
        labels = [""] * len(image.boxes) + [f.kind for f in wrong]
        colours = np.concatenate([palette([str(i) for i in range(64)]), [[220, 30, 30]]]).astype(np.uint8)
        numbers = [*(n % 64 for n in image.labels.tolist()), *([64] * len(wrong))]
        broken = [False] * len(image.boxes) + [True] * len(wrong)
        return draw_boxes(
            pixels, torch.tensor(boxes).reshape(-1, 4), torch.tensor(numbers), labels, colours, dashed=broken
        )

    return draw
