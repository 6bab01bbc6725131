import pytest
import torch
from torch import nn

from foveal.errors import FovealError
from foveal.statistics import wilson_interval
from foveal.tasks.classify.metric import Accuracy, calibration, flipped_logits

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


def test_figures_by_class_and_confusions_are_those_of_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    torch.manual_seed(0)
    labels = torch.randint(0, 8, (300,))  # class 8 has no image, yet is an answer
    logits = torch.randn(300, 9) + 1.5 * nn.functional.one_hot(labels, 9)
    details = counted(logits, labels).report()["details"]
    answers = logits.argmax(1)
    expected = precision_recall_fscore_support(labels, answers, labels=range(8), zero_division=0)
    for c in range(8):
        ours = details["classes"][CLASSES[c]]
        assert [ours[k] for k in ("precision", "recall", "f1", "images")] == pytest.approx(
            [float(column[c]) for column in expected]
        )
    matrix = confusion_matrix(labels, answers, labels=range(9))
    ours = {(one["true"], one["predicted"]): one["images"] for one in details["confusions"]}
    for t in range(9):
        for p in range(9):
            if t != p:
                assert ours.get((CLASSES[t], CLASSES[p]), 0) == matrix[t, p]
    counts = [one["images"] for one in details["confusions"]]
    assert counts == sorted(counts, reverse=True)
    assert CLASSES[8] not in details["classes"]


def test_calibration_is_the_papers_equation_5():
    torch.manual_seed(0)
    confidence = torch.rand(500, dtype=torch.float64)
    confidence[0], confidence[1] = 1.0, 3 / 15  # on the edges of bins
    right = torch.rand(500) < confidence
    expected = 0.0
    for m in range(15):
        inside = [i for i in range(500) if m / 15 < confidence[i] <= (m + 1) / 15]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            expected += len(inside) / 500 * abs(accuracy - mean)
    found = calibration(confidence, right)
    assert found["expected_error"] == pytest.approx(expected)
    assert sum(one["images"] for one in found["bins"]) == 500


def test_the_worst_images_are_named_by_their_place_in_the_data():
    logits = torch.tensor([[0.0, 9.0], [5.0, 0.0], [0.0, 1.0]])
    metric = Accuracy(["a", "b"], ["a", "b"])
    batch = {"image": logits, "label": torch.tensor([0, 0, 0]), "index": torch.tensor([7, 3, 2**25 + 1])}
    metric.update(nn.Identity(), batch)
    worst = metric.report()["details"]["worst"]
    assert [one["index"] for one in worst] == [7, 2**25 + 1, 3]
    assert (worst[0]["true"], worst[0]["predicted"]) == ("a", "b")


class Columns(nn.Module):
    """The logits of an image are its first row: the mirror image has them the other way round."""

    def forward(self, x):
        return x[:, 0, 0]


def test_flip_averages_the_probabilities_of_the_mirror_image():
    torch.manual_seed(0)
    images, labels = torch.randn(20, 1, 1, 3), torch.randint(0, 3, (20,))
    probabilities = (images[:, 0, 0].softmax(1) + images[:, 0, 0].flip(-1).softmax(1)) / 2
    metric = Accuracy(CLASSES[:3], CLASSES[:3], logits=flipped_logits)
    metric.update(Columns(), {"image": images, "label": labels})
    assert metric.compute()["loss"] == pytest.approx(
        float(-probabilities.log()[range(20), labels].mean()), rel=1e-5
    )
    assert metric.compute()["accuracy"] == pytest.approx(
        float((probabilities.argmax(1) == labels).float().mean())
    )
    plain = Accuracy(CLASSES[:3], CLASSES[:3])
    plain.update(Columns(), {"image": images, "label": labels})
    assert plain.compute()["loss"] != metric.compute()["loss"]


def test_a_device_without_float64_is_enough(without_float64):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 9), torch.randint(0, 9, (50,))
    there = counted(without_float64(logits), labels)
    assert there.compute() == counted(logits, labels).compute()
    with pytest.raises(TypeError, match="float64"):
        without_float64(logits).double()
