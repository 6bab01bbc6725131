import pytest
import torch
from torch import nn

from foveal.train.classify import count, metrics, wilson_interval


def test_counts_of_parts_add_up_to_the_figures_of_the_whole():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 9), torch.randint(0, 9, (50,))
    parts = [
        count(nn.Identity(), {"image": logits[i], "label": labels[i]}, 9) for i in (slice(0, 7), slice(7, 50))
    ]
    figures = metrics(torch.stack(parts).sum(0))
    assert figures["val_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    in_five = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    assert figures["val_top5"] == pytest.approx(in_five.float().mean().item())
    assert figures["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_fewer_than_five_classes_are_all_in_the_best_five():
    counts = count(nn.Identity(), {"image": torch.randn(4, 3), "label": torch.tensor([0, 1, 2, 0])}, 3)
    assert metrics(counts)["val_top5"] == 1.0
    assert counts[:, 0].tolist() == [2, 1, 1]


def test_the_interval_holds_the_share_and_stays_within_0_and_1():
    for right, images in ((0, 10), (10, 10), (3, 7), (900, 1000)):
        low, high = wilson_interval(right, images)
        assert -1e-9 <= low <= right / images <= high + 1e-9 <= 1 + 1e-8
    assert wilson_interval(50, 100)[0] == pytest.approx(0.4038, abs=1e-4)  # statistics tables
