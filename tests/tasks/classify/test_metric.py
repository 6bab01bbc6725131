import pytest
import torch
from torch import nn

from foveal.errors import FovealError
from foveal.statistics import wilson_interval
from foveal.tasks.classify.metric import Accuracy

CLASSES = [f"class {i}" for i in range(9)]


def counted(logits, labels, classes=CLASSES, theirs=None):
    metric = Accuracy(classes, theirs or classes)
    metric.update(nn.Identity(), {"image": logits, "label": labels})
    return metric


def test_counts_of_parts_add_up_to_the_figures_of_the_whole():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 9), torch.randint(0, 9, (50,))
    first, second = (counted(logits[i], labels[i]) for i in (slice(0, 7), slice(7, 50)))
    first.merge(second)
    figures = first.compute()
    assert first.images == 50
    assert figures["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    in_five = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    assert figures["top5"] == pytest.approx(in_five.float().mean().item())
    assert figures["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_fewer_than_five_classes_are_all_in_the_best_five():
    torch.manual_seed(0)
    metric = counted(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), CLASSES[:3])
    assert metric.compute()["top5"] == 1.0
    assert metric.counts[:, 0].tolist() == [2, 1, 1]
    low, high = metric.report()["interval"]
    assert low <= metric.compute()["accuracy"] <= high


def test_classes_are_matched_by_name_and_never_by_number():
    logits = torch.eye(3)
    metric = counted(logits[[2, 0]], torch.tensor([0, 1]), ["a", "b", "c"], ["c", "a"])
    assert metric.compute()["accuracy"] == 1.0
    assert metric.report()["per_class"] == {"a": 1.0, "c": 1.0}
    with pytest.raises(FovealError, match="among the 1 of the weights, got b"):
        Accuracy(["a"], ["a", "b"])


def test_the_interval_holds_the_share_and_stays_within_0_and_1():
    for right, images in ((0, 10), (10, 10), (3, 7), (900, 1000)):
        low, high = wilson_interval(right, images)
        assert -1e-9 <= low <= right / images <= high + 1e-9 <= 1 + 1e-8
    assert wilson_interval(50, 100)[0] == pytest.approx(0.4038, abs=1e-4)  # statistics tables
