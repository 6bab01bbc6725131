"""How an exported detector is used: see `foveal.tasks.shipping`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou

from foveal.model_info import ModelInfo
from foveal.models.boxes import to_xyxy
from foveal.tasks.detect import ASPECT, DEFAULT_THRESHOLD, DetectInference
from foveal.tasks.shipping import Shipment, in_bytes, network_input, read, resize

SAME_BOX = 0.9
"""IoU from which two answers of one query are one box."""


def ship(info: ModelInfo) -> Shipment:
    """``logits`` (b, q, k) and ``boxes`` (b, q, 4), centre and size as shares of images without padding."""
    return Shipment(
        outputs=("logits", "boxes"),
        call=lambda net, images: tuple(net(images)[name] for name in ("logits", "boxes")),
        rebuild=lambda outputs: dict(zip(("logits", "boxes"), outputs, strict=True)),
        agreement=same_answers,
        agreement_of="box and class",
        preprocessing={
            "resize_shorter": info.image_size,
            "longest": round(ASPECT * info.image_size),
            "threshold": DEFAULT_THRESHOLD,
            "limit": DetectInference().limit,
        },
        script=(read, in_bytes, resize, network_input, prepare, scores_of, answer),
        browser=("shipping.js", "detect/shipping.js"),
    )


def same_answers(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Share of all queries that say the same class and nearly the same box.

    Example:
        >>> import torch
        >>> logits, boxes = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]), torch.tensor([[[0.5, 0.5, 0.2, 0.2]] * 2])
        >>> same_answers([logits, boxes], [logits.flip(-1), boxes]), same_answers([logits, boxes], [logits, boxes])
        (0.0, 1.0)
    """
    same_class = wanted[0].argmax(-1) == found[0].argmax(-1)
    one, other = (to_xyxy(boxes[1].float()).flatten(0, 1) for boxes in (wanted, found))
    same_box = box_iou(one, other).diagonal() >= SAME_BOX
    return float((same_class.flatten() & same_box).float().mean())


def prepare(image, facts):
    """The whole image, its shorter side resized, its longer one no longer than is allowed."""
    factor = min(facts["resize_shorter"] / min(image.size), facts["longest"] / max(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return network_input(resize(np.asarray(image), height, width), facts)


def scores_of(logits, classes):
    """Scores, classes and queries of the answers in float64: of every query its best class where one more output than
    there are classes stands for no object, else every class of every query.
    """
    logits = logits.astype(np.float64)
    if logits.shape[1] == classes + 1:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        scores = (powers / powers.sum(1, keepdims=True))[:, :-1]
        return scores.max(1), scores.argmax(1), np.arange(len(scores))
    scores = (1 / (1 + np.exp(-logits))).ravel()
    places = np.arange(len(scores))
    return scores, places % classes, places // classes


def answer(outputs, image, name, about):
    """Class and score of each object, the best first, and its box: x1, y1, x2, y2 in pixels of the image."""
    facts, (width, height) = about["preprocessing"], image.size
    scores, classes, queries = scores_of(outputs[0][0], len(about["classes"]))
    best = np.argsort(-scores, kind="stable")[: facts["limit"]]
    x, y, w, h = outputs[1][0][queries[best]].T.astype(np.float64)
    edges = np.stack(
        [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], 1
    )
    boxes = np.clip(edges, 0, [width, height, width, height])
    kept = (scores[best] >= facts["threshold"]) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    labels = [(about["classes"][classes[i]], float(scores[i])) for i in best[kept]]
    return {"labels": labels, "boxes_xyxy": boxes[kept].round(2).tolist()}
