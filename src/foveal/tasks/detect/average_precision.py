"""COCO's average precision, by faster-coco-eval; and which detection is which object's, by the same rule, for the rest.

The figures come from faster-coco-eval, whose twelve numbers are those of pycocotools. Ids are numbered anew from 1
before they go there: both take the id 0 for "not found". `matched` matches by the same rule, image by image; intervals,
curves, confusions and worst images are made of it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

IOUS = np.round(np.arange(0.5, 1.0, 0.05), 2)
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100
SIZES = ("small", "medium", "large")
"""COCO's: areas below 32 x 32 pixels, below 96 x 96, and above."""
MOST_FOR_ALL = 10_000


@dataclass(frozen=True)
class ImageResult:
    """The objects and the detections of one image, in pixels as stored.

    Attributes:
        image_id, file: the annotations' own.
        size: (height, width).
        boxes: (n, 4) x1, y1, x2, y2 of the objects; labels, crowd, area: (n,).
        found: (d, 4) of the detections, the best first; scores, found_labels: (d,).
    """

    image_id: int | str
    file: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    found: np.ndarray
    scores: np.ndarray
    found_labels: np.ndarray


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures. NaN where there is no object to find.

    Attributes:
        figures: ``ap`` (over IoU 0.50 to 0.95), ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, ``ar``
            (recall with 100 detections an image).
        per_class: (classes, 2) AP and AP50.
        precision: (IoUs, recalls, classes), at ten IoUs and 101 recalls.
    """

    figures: dict[str, float]
    per_class: np.ndarray
    precision: np.ndarray


def average_precision(
    results: Sequence[ImageResult], classes: int, limit: int = MOST_DETECTIONS
) -> AveragePrecision:
    """COCO's average precision of all images together.

    Args:
        limit: detections that count in an image, COCO's 100 unless the evaluation takes more.

    Source: Lin et al., Microsoft COCO (2014), and its published evaluation.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    truth, found = as_coco(results, range(1, classes + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(truth)
        evaluation = COCOeval_faster(dataset, dataset.loadRes(found), "bbox")
        evaluation.params.maxDets = [1, 10, max(limit, MOST_DETECTIONS)]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoUs, recalls, classes, areas, limits); -1 where there is nothing to find
    precision = np.array(evaluation.eval["precision"], dtype=np.float64)
    recall = np.array(evaluation.eval["recall"], dtype=np.float64)
    precision, recall = (np.where(values < 0, np.nan, values) for values in (precision, recall))
    everything = precision[:, :, :, 0, -1]
    figures = {
        "ap": _mean(everything),
        "ap50": _mean(everything[0]),
        "ap75": _mean(everything[5]),
        **{f"ap_{name}": _mean(precision[:, :, :, 1 + i, -1]) for i, name in enumerate(SIZES)},
        "ar": _mean(recall[:, :, 0, -1]),
    }
    per_class = np.array([[_mean(everything[:, :, k]), _mean(everything[0, :, k])] for k in range(classes)])
    return AveragePrecision(figures, per_class, everything)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def as_coco(
    results: Sequence[ImageResult], category_ids: Sequence[int], *, own_ids: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The objects as a COCO data set and the detections as COCO results.

    Args:
        category_ids: the number of each class.
        own_ids: images by the annotations' own ids; else by numbers from 1.
    """
    images, annotations, found = [], [], []
    for number, one in enumerate(results, start=1):
        identity = one.image_id if own_ids else number
        images.append({"id": identity, "file_name": one.file, "height": one.size[0], "width": one.size[1]})
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        for i, (box, side) in enumerate(zip(one.boxes.tolist(), sides.tolist(), strict=True)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identity,
                    "category_id": category_ids[int(one.labels[i])],
                    "bbox": [*box[:2], *side],
                    "area": float(one.area[i]),
                    "iscrowd": int(one.crowd[i]),
                }
            )
        sides = one.found[:, 2:] - one.found[:, :2]
        found += [
            {
                "image_id": identity,
                "category_id": category_ids[int(label)],
                "bbox": [*box[:2], *side],
                "score": float(score),
            }
            for box, side, score, label in zip(
                one.found.tolist(), sides.tolist(), one.scores, one.found_labels, strict=True
            )
        ]
    categories = [{"id": identity, "name": str(identity)} for identity in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def overlaps(found: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (d, n) of detections and objects; for crowds the share of the detection that lies inside.

    Example:
        >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 1]]), np.array([False])).tolist()
        [[0.5]]
    """
    low = np.maximum(found[:, None, :2], boxes[None, :, :2])
    high = np.minimum(found[:, None, 2:], boxes[None, :, 2:])
    both = (high - low).clip(0).prod(-1)
    area = (found[:, 2:] - found[:, :2]).clip(0).prod(-1)[:, None]
    other = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1)[None]
    union = np.where(crowd[None], area, area + other - both)
    return np.where(union > 0, both / np.where(union > 0, union, 1), 0.0)


def matched(overlap: np.ndarray, crowd: np.ndarray, threshold: float) -> np.ndarray:
    """For each detection of one class, the best first, the object that it is: its place, -1 for none, -2 for a crowd.

    COCO's rule: a detection takes the free object that it overlaps most, from ``threshold`` on; where there is none, a
    crowd absorbs it.

    Args:
        overlap: (d, n), see `overlaps`.

    Example:
        >>> matched(np.array([[0.9], [0.8]]), np.array([False]), 0.5).tolist()
        [0, -1]
    """
    answer = np.full(len(overlap), -1)
    free = ~crowd
    for d, row in enumerate(overlap):
        candidates = np.where(free, row, -1.0)
        # of equals COCO takes the last
        best = len(row) - 1 - int(candidates[::-1].argmax()) if len(row) else -1
        if best >= 0 and candidates[best] >= min(threshold, 1 - 1e-10):
            answer[d], free[best] = best, False
        elif (crowd & (row >= threshold)).any():
            answer[d] = -2
    return answer


def interval(
    results: Sequence[ImageResult], classes: int, *, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of AP over images: they are drawn anew with replacement, as often as there are.

    It says how far AP would lie on other sets of this many images. It is not where AP on very many would lie: AP takes
    the best precision at each recall, which on few images is found by luck, so that 60 of them give some 0.03 more than
    thousands do. What drawing an image twice adds of that once more is taken out again.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 14.3: the bias-corrected percentiles,
    without the acceleration.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(results), np.full(len(results), 1 / len(results)), size=resamples)
    # the first row is the images as they are
    times = np.concatenate([np.ones((1, len(results))), drawn])
    values = _ap_of_draws(results, classes, times)
    point, others = values[0], values[1:]
    normal = NormalDist()
    below = (others < point).mean() + (others == point).mean() / 2
    shift = 2 * normal.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    low, high = np.quantile(others, [normal.cdf(shift + normal.inv_cdf(q)) for q in (0.025, 0.975)])
    return float(low), float(high)


def _ap_of_draws(results: Sequence[ImageResult], classes: int, times: np.ndarray) -> np.ndarray:
    """AP (draws,) where each image counts ``times`` (draws, images)."""
    sums, counts = np.zeros(len(times)), np.zeros(len(times))
    for k in range(classes):
        image, scores, right, ignored, objects = _of_class(results, k)
        wanted = times @ objects
        if not objects.any():
            continue
        order = np.argsort(-scores, kind="mergesort")
        for t in range(len(IOUS)):
            kept = order[~ignored[t, order]]
            values = _weighted_ap(times[:, image[kept]], right[t, kept], wanted)
            sums += np.where(wanted > 0, values, 0.0)
            counts += wanted > 0
    return sums / np.maximum(counts, 1)


def _of_class(
    results: Sequence[ImageResult], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of all detections of a class: image, score, right and ignored at each IoU; and the objects of each image."""
    image: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    scores: list[np.ndarray] = [np.zeros(0)]
    right: list[np.ndarray] = [np.zeros((len(IOUS), 0), dtype=bool)]
    ignored: list[np.ndarray] = [np.zeros((len(IOUS), 0), dtype=bool)]
    objects = np.zeros(len(results))
    for number, one in enumerate(results):
        here, there = one.labels == k, one.found_labels == k
        objects[number] = (here & ~one.crowd).sum()
        if not there.any():
            continue
        overlap = overlaps(one.found[there], one.boxes[here], one.crowd[here])
        answers = np.stack([matched(overlap, one.crowd[here], threshold) for threshold in IOUS])
        image.append(np.full(int(there.sum()), number))
        scores.append(one.scores[there])
        right.append(answers >= 0)
        ignored.append(answers == -2)
    return (
        np.concatenate(image),
        np.concatenate(scores),
        np.concatenate(right, axis=1),
        np.concatenate(ignored, axis=1),
        objects,
    )


def _weighted_ap(times: np.ndarray, right: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """AP (resamples,) where each detection, the best first, counts (resamples, d) times."""
    if not times.shape[1]:
        return np.zeros(len(times))
    hits, all_found = np.cumsum(times * right, axis=1), np.cumsum(times, axis=1)
    precision = hits / np.maximum(all_found, 1e-12)
    # the best precision at this recall or a higher one
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(wanted, 1e-12)[:, None]
    values = np.zeros(len(times))
    for row in range(len(times)):
        places = np.searchsorted(recall[row], RECALLS - 1e-12, side="left")
        inside = places < recall.shape[1]
        values[row] = precision[row, places[inside]].sum() / len(RECALLS)
    return values
