"""COCO's figures against pycocotools on the same objects and detections, and our own matching against both."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foveal.tasks.detect.average_precision import (
    ImageResult,
    as_coco,
    average_precision,
    interval,
    matched,
    overlaps,
)

CLASSES = 3


def results(seed=0, images=40, crowds=True):
    """Objects, and detections that are near them, doubled, of another class, missing, or nowhere."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(images):
        n = int(rng.integers(0, 6))
        corner, side = rng.uniform(0, 300, (n, 2)), rng.uniform(4, 180, (n, 2))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, CLASSES, n)
        crowd = (rng.uniform(size=n) < 0.15) & crowds
        copies = np.repeat(np.arange(n), rng.integers(0, 3, n))
        shifted = boxes[copies] + rng.normal(0, 8, (len(copies), 4))
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
        stray = rng.uniform(0, 200, (3, 2))
        found = np.concatenate([shifted, np.concatenate([stray, stray + 60], axis=1)])
        found_labels = np.concatenate([labels[copies], rng.integers(0, CLASSES, 3)])
        flip = rng.uniform(size=len(found)) < 0.1
        found_labels = np.where(flip, rng.integers(0, CLASSES, len(found)), found_labels)
        # scores that are often equal, as rounded ones are
        scores = np.round(rng.uniform(size=len(found)), 1)
        order = np.argsort(-scores, kind="stable")
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.4, 1, n)
        made.append(
            ImageResult(100 - i, f"{i}.png", (400, 500), boxes, labels, crowd, area, found[order], scores[order],
                        found_labels[order])
        )  # fmt: skip
    return made


def by_pycocotools(made, first_id=1):
    truth, found = as_coco(made, [7, 9, 12], own_ids=True)
    for annotation in truth["annotations"]:
        annotation["id"] += first_id - 1
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_pycocotools_with_crowds_and_equal_scores(seed):
    made = results(seed)
    # pycocotools looks at images in the order of their ids
    mine = average_precision(sorted(made, key=lambda one: one.image_id), CLASSES)
    theirs = by_pycocotools(made)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [mine.figures[name] for name in names] == pytest.approx(list(theirs.stats[:6]), abs=1e-12)
    assert mine.figures["ar"] == pytest.approx(theirs.stats[8], abs=1e-12)
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    assert mine.precision == pytest.approx(np.where(precision < 0, np.nan, precision), abs=1e-12, nan_ok=True)


def test_annotation_ids_from_zero_change_nothing_here_and_do_in_pycocotools():
    boxes = np.array([[0.0, 0, 50, 50], [100, 100, 180, 180]])
    zero, none = np.zeros(2, int), np.zeros(2, bool)
    made = [
        ImageResult(1, "1.png", (400, 500), boxes, zero, none, np.ones(2), boxes, np.array([0.9, 0.8]), zero)
    ]
    assert by_pycocotools(made, first_id=0).stats[0] < 0.5
    assert average_precision(made, 1).figures["ap"] == pytest.approx(1)


def test_our_matching_gives_the_same_average_precision_as_the_bootstrap_of_it_says():
    """With every image drawn once, what the interval is made of is AP itself."""
    from foveal.tasks.detect import average_precision as module

    made = results(3, images=60)
    values = []
    for k in range(CLASSES):
        _, scores, right, ignored, objects = module._of_class(made, k)
        order = np.argsort(-scores, kind="mergesort")
        for t in range(10):
            kept = order[~ignored[t, order]]
            once = np.ones((1, len(kept)))
            values.append(module._weighted_ap(once, right[t, kept], np.array([objects.sum()]))[0])
    assert np.mean(values) == pytest.approx(average_precision(made, CLASSES).figures["ap"], abs=1e-9)


def test_the_interval_holds_the_figure_and_is_the_same_every_time():
    made = results(4, images=60)
    low, high = interval(made, CLASSES)
    assert low < average_precision(made, CLASSES).figures["ap"] < high
    assert (low, high) == interval(made, CLASSES)
    assert high - low > interval(made * 4, CLASSES)[1] - interval(made * 4, CLASSES)[0]


def test_the_interval_of_few_images_has_the_figure_in_its_middle():
    """Drawing images twice raises AP: of plain percentiles more lie above it than below."""
    shares = []
    for seed in range(6):
        made = results(seed, images=25)
        low, high = interval(made, CLASSES)
        shares.append((average_precision(made, CLASSES).figures["ap"] - low) / (high - low))
    assert 0.42 < np.mean(shares) < 0.58


def test_nothing_found_is_zero_and_no_object_is_undefined():
    one = results(0, images=4)
    nothing = [
        ImageResult(r.image_id, r.file, r.size, r.boxes, r.labels, r.crowd, r.area, np.zeros((0, 4)), np.zeros(0),
                    np.zeros(0, int))
        for r in one
    ]  # fmt: skip
    assert average_precision(nothing, CLASSES).figures["ap"] == 0
    empty = [
        ImageResult(r.image_id, r.file, r.size, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0),
                    r.found, r.scores, r.found_labels)
        for r in one
    ]  # fmt: skip
    assert np.isnan(average_precision(empty, CLASSES).figures["ap"])


def test_a_detection_takes_the_object_it_overlaps_most_and_a_crowd_takes_the_rest():
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [40, 40, 90, 90]])
    crowd = np.array([False, False, True])
    found = np.array([[4.0, 0, 14, 10], [0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    overlap = overlaps(found, boxes, crowd)
    assert matched(overlap, crowd, 0.5).tolist() == [1, 0, -1, -2]
    assert overlap[3, 2] == 1
