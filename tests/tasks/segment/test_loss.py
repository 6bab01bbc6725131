"""The loss of segmentation: labelled pixels alone, heads added, weights and hard pixels as defined."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.data import open_dataset
from foveal.tasks.segment.loss import NO_CLASS, balanced_weights, segmentation_losses, targets

IGNORED = 9


def segmentation_loss(logits, mask, **options):
    return torch.stack(list(segmentation_losses(logits, mask, **options).values())).sum()


def test_a_batch_without_a_labelled_pixel_has_loss_zero_and_finite_gradients():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for options in ({}, {"ohem": True}, {"class_weights": [1.0, 2, 3]}):
        loss = segmentation_loss({"fused": logits}, torch.full((2, 4, 4), IGNORED), **options)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert logits.grad.abs().sum() == 0


def test_heads_are_summed_and_the_auxiliary_one_counts_less(pair):
    logits, mask = pair
    one = segmentation_loss({"fused": logits}, mask)
    both = segmentation_loss({"fused": logits, "position": logits, "auxiliary": logits}, mask)
    assert both.item() == pytest.approx(2.4 * one.item(), rel=1e-6)


def test_class_weights_and_hard_pixels_are_those_of_the_definition(pair):
    logits, mask = pair
    weights = torch.tensor([0.2, 1.0, 3.0])
    expected = F.cross_entropy(logits, targets(mask, 3), weight=weights, ignore_index=NO_CLASS)
    assert segmentation_loss({"fused": logits}, mask, class_weights=weights.tolist()) == pytest.approx(
        expected.item(), rel=1e-5
    )
    target = targets(mask, 3)
    share = logits.softmax(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    hard = (target != NO_CLASS) & (share <= 0.7)
    losses = F.cross_entropy(logits, target, ignore_index=NO_CLASS, reduction="none")
    assert segmentation_loss({"fused": logits}, mask, ohem=True).item() == pytest.approx(
        losses[hard].mean().item(), rel=1e-5
    )


def test_where_few_pixels_are_hard_the_hardest_sixteenth_is_kept():
    sure = torch.linspace(2, 10, 64)  # the logit of the true class against 0: all above 0.7 probability
    logits = torch.stack([sure, torch.zeros(64)])[None].reshape(1, 2, 8, 8)
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    hardest = F.cross_entropy(logits, mask, reduction="none").flatten()[:4].mean()
    assert segmentation_loss({"fused": logits}, mask, ohem=True) == pytest.approx(hardest.item(), rel=1e-5)


def test_the_parts_are_named_by_head(pair):
    logits, mask = pair
    parts = segmentation_losses({"fused": logits, "auxiliary": logits}, mask)
    assert list(parts) == ["fused", "auxiliary"]
    assert parts["auxiliary"].item() == pytest.approx(0.4 * parts["fused"].item())


def test_weights_balance_by_median_frequency(tmp_path, write_mask_pair):
    first, second = np.zeros((4, 8)), np.zeros((4, 8))
    first[:, 6:] = 1  # 24 of class 0, 8 of class 1
    second[:, :4] = 2  # 16 of class 0, 16 of class 2
    for part in ("train", "val"):
        write_mask_pair(tmp_path / part, "a", first)
        write_mask_pair(tmp_path / part, "b", second)
    (tmp_path / "classes.txt").write_text("x\ny\nz\nnowhere")
    # frequencies 40/64, 8/32, 16/32; their median 1/2
    expected = [0.5 / 0.625, 0.5 / 0.25, 1.0, 1.0]
    data = open_dataset(str(tmp_path), "train", task="segment", ignore_index=9)
    assert balanced_weights(data, 4) == pytest.approx(expected)
