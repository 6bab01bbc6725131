"""Costs and losses are the papers', matched at once as one by one, and bad numbers are told apart."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert, generalized_box_iou

from foveal.errors import FovealError
from foveal.models.boxes import generalized_iou, to_cxcywh, to_xyxy
from foveal.models.set_loss import Objects, SetLoss, number_of_boxes

SIZES = torch.tensor([[40, 60], [100, 30], [64, 64]])
COUNTS = (3, 0, 2)
KINDS = {"detr": SetLoss(), "sparse": SetLoss("focal", class_weight=2.0, corners=True)}


def some(kind: str, sets: int = 2, queries: int = 6, classes: int = 4):
    """Predictions and objects of three images."""
    generator = torch.Generator().manual_seed(3)
    targets = []
    for count, (h, w) in zip(COUNTS, SIZES.tolist(), strict=True):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([w, h]) / 2
        size = (1 + torch.rand(count, 2, generator=generator) * torch.tensor([w, h])) / 3
        labels = torch.randint(classes, (count,), generator=generator)
        targets.append({"boxes_xyxy": torch.cat([corner, corner + size], 1), "labels": labels})
    logits = torch.randn(sets, 3, queries, classes + (kind == "detr"), generator=generator) * 2
    boxes = torch.rand(sets, 3, queries, 4, generator=generator) * 0.5 + 0.2
    return logits.requires_grad_(), boxes.requires_grad_(), targets, Objects.of(targets, SIZES, classes)


def literal_cost(kind: str, logits, boxes, labels, wanted):
    """One image: the papers' costs of every pair, with torchvision's GIoU; wanted is (t, 4) centre and size."""
    a, b = box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
    if kind == "detr":
        classes = -logits.softmax(-1)[:, labels]
        return classes + 5 * torch.cdist(boxes, wanted, p=1) - 2 * generalized_box_iou(a, b)
    p = logits.sigmoid()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    classes = (positive - negative)[:, labels]
    return 2 * classes + 5 * torch.cdist(a, b, p=1) - 2 * generalized_box_iou(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_the_papers(kind):
    logits, boxes, _, objects = some(kind)
    found = KINDS[kind].costs(logits, boxes, objects)
    for s, i in itertools.product(range(2), range(3)):
        n = COUNTS[i]
        expected = literal_cost(kind, logits[s, i], boxes[s, i], objects.labels[i, :n], objects.boxes[i, :n])
        torch.testing.assert_close(found[s, i, :, :n], expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matching_is_the_cheapest_of_all(kind):
    logits, boxes, _, objects = some(kind)
    cost = KINDS[kind].costs(logits, boxes, objects)
    matched = KINDS[kind].match(logits, boxes, objects)
    for s, i in itertools.product(range(2), range(3)):
        n = COUNTS[i]
        every = itertools.permutations(range(6), n)
        best = min(every, key=lambda rows: sum(float(cost[s, i, r, t]) for t, r in enumerate(rows)))
        assert matched[s, i, :n].tolist() == list(best)
        assert (matched[s, i, n:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_papers(kind):
    logits, boxes, _, objects = some(kind)
    matched = KINDS[kind].match(logits, boxes, objects)
    parts = KINDS[kind](logits, boxes, objects)
    expected = dict.fromkeys(("class", "l1", "giou"), 0.0)
    for s in range(2):
        wanted = torch.full((3, 6), 4)
        for i, n in enumerate(COUNTS):
            rows = matched[s, i, :n]
            wanted[i, rows] = objects.labels[i, :n]
            mine, theirs = boxes[s, i, rows], objects.boxes[i, :n]
            a, b = box_convert(mine, "cxcywh", "xyxy"), box_convert(theirs, "cxcywh", "xyxy")
            one, two = (mine, theirs) if kind == "detr" else (a, b)
            expected["l1"] += 5 * F.l1_loss(one, two, reduction="sum") / 5
            if n:
                expected["giou"] += 2 * (1 - torch.diag(generalized_box_iou(a, b))).sum() / 5
        if kind == "detr":
            weight = torch.tensor([1.0, 1, 1, 1, 0.1])
            expected["class"] += F.cross_entropy(logits[s].transpose(1, 2), wanted, weight)
        else:
            y = F.one_hot(wanted, 5)[..., :4].float()
            p = logits[s].sigmoid()
            surprise = F.binary_cross_entropy_with_logits(logits[s], y, reduction="none")
            right = p * y + (1 - p) * (1 - y)
            balance = 0.25 * y + 0.75 * (1 - y)
            expected["class"] += 2 * (balance * (1 - right) ** 2 * surprise).sum() / 5
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=0)


def test_more_objects_than_predictions_leave_some_unmatched():
    logits, boxes, _, objects = some("detr", queries=2)
    matched = KINDS["detr"].match(logits, boxes, objects)
    assert (matched[:, 0] >= 0).sum(1).tolist() == [2, 2]
    assert sum(KINDS["detr"](logits, boxes, objects).values()).isfinite()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_prediction_that_is_not_finite_stops_no_matching_and_shows_in_the_loss(bad):
    for broken in ("logits", "boxes"):
        logits, boxes, _, objects = some("detr")
        with torch.no_grad():
            (logits if broken == "logits" else boxes)[0, 0, 2, 1] = bad
        assert not sum(KINDS["detr"](logits, boxes, objects).values()).isfinite()


@pytest.mark.parametrize(
    ("box", "label", "words"),
    [
        (
            [1, 2, float("nan"), 4],
            0,
            r"finite with x1 < x2 and y1 < y2, got \[1.0, 2.0, nan, 4.0\], box 1 of image 2",
        ),
        ([5, 2, 5, 4], 0, r"got \[5.0, 2.0, 5.0, 4.0\], box 1 of image 2"),
        ([9, 2, 5, 4], 0, r"got \[9.0, 2.0, 5.0, 4.0\], box 1 of image 2"),
        ([1, 2, 3, 4], 4, "labels must be from 0 to 3, got 4, box 1 of image 2"),
        ([1, 2, 3, 4], -1, "labels must be from 0 to 3, got -1, box 1 of image 2"),
    ],
)
def test_a_bad_annotation_is_named_with_its_image(box, label, words):
    _, _, targets, _ = some("detr")
    targets[2]["boxes_xyxy"][1] = torch.tensor(box)
    targets[2]["labels"][1] = label
    with pytest.raises(FovealError, match=words):
        Objects.of(targets, SIZES, 4)


def test_half_types_compute_costs_and_areas_in_float32():
    logits, boxes, _, objects = some("sparse")
    cost = KINDS["sparse"].costs(logits, boxes, objects)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(KINDS["sparse"].costs(logits, boxes, objects), cost)
        assert KINDS["sparse"](logits, boxes, objects)["giou"].dtype == torch.float32


def test_the_number_of_boxes_is_at_least_one():
    nothing = [{"boxes_xyxy": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]
    assert number_of_boxes(Objects.of(nothing, SIZES[:1], 4)) == 1
    assert number_of_boxes(some("detr")[3]) == 5


def test_the_number_of_boxes_is_averaged_over_processes_that_train_and_over_no_others(monkeypatch):
    def add_another(number):
        number += 9  # what the other process has

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_another)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert number_of_boxes(some("detr")[3], shared=True) == 7
    assert number_of_boxes(some("detr")[3]) == 5


def test_giou_is_torchvisions_and_indifferent_to_the_units():
    torch.manual_seed(0)
    a, b = (to_xyxy(torch.rand(50, 4)) for _ in range(2))
    expected = generalized_box_iou(a, b)
    torch.testing.assert_close(generalized_iou(a[:, None], b[None]), expected, rtol=0, atol=1e-6)
    pixels = torch.tensor([1333.0, 800.0, 1333.0, 800.0])
    torch.testing.assert_close(
        generalized_iou(a * pixels, b * pixels), torch.diag(expected), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(to_xyxy(to_cxcywh(a)), a, rtol=0, atol=1e-6)
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert generalized_iou(point, point) == 0
