"""Loss and figures of segmentation: one confusion matrix, in the masks' own pixels, with nothing ignored counted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.errors import FovealError
from foveal.tasks.segment import SegmentInference
from foveal.tasks.segment.loss import NO_CLASS, targets
from foveal.tasks.segment.metric import MeanIoU, bootstrap_interval, confusion, intersect_and_union

IGNORED = 9
CLASSES = ["a", "b", "c"]


def measured(logits, mask, classes=CLASSES, theirs=None):
    metric = MeanIoU(classes, theirs or classes, SegmentInference())
    metric.update(Says(len(classes)), {"image": logits, "mask": mask})
    return metric


class Says(nn.Module):
    """Answers with the first channels of the image, so that a test chooses every logit."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return {"fused": images[:, : self.classes]}


def test_the_matrix_has_truth_in_rows_and_leaves_ignored_pixels_out():
    truth = torch.tensor([[0, 0, 0, 1, IGNORED, 255]])
    said = torch.tensor([[1, 1, 0, 0, 1, 1]])
    assert confusion(said[None], truth[None], 2).tolist() == [[1, 2], [1, 0]]


def test_figures_agree_with_torchmetrics(pair):
    from torchmetrics.classification import MulticlassJaccardIndex

    logits, mask = pair
    peer = MulticlassJaccardIndex(3, ignore_index=IGNORED, average=None)
    peer.update(logits, mask)
    ours = measured(logits, mask).compute()
    assert ours["miou"] == pytest.approx(peer.compute().mean().item(), rel=1e-6)
    expected = F.cross_entropy(logits, targets(mask, 3), ignore_index=NO_CLASS)
    assert ours["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_the_figure_is_of_one_matrix_and_no_mean_of_images(pair):
    logits, mask = pair
    logits = logits.clone()
    # one image is nearly right
    logits[0] += 5 * F.one_hot(mask[0].clamp_max(2), 3).permute(2, 0, 1)
    parts = [measured(logits[i : i + 1], mask[i : i + 1]) for i in range(5)]
    of_images = np.mean([part.compute()["miou"] for part in parts])
    together, *others = parts
    for other in others:
        together.merge(other)
    whole = measured(logits, mask).compute()
    assert together.compute()["miou"] == pytest.approx(whole["miou"], abs=1e-12)
    assert abs(of_images - whole["miou"]) > 1e-2


def test_what_is_counted_are_the_pixels_of_the_mask_and_not_of_the_network():
    image, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 12, 20, dtype=torch.uint8)
    image[:, 1, :, 2:] = 9.0
    metric = measured(image, mask, ["a", "b"])
    assert metric.pixels == metric.parts[0][1].sum() == 12 * 20
    assert metric.parts[0][2, 1] == pytest.approx(12 * 10, abs=12 * 2)


def test_a_batch_is_counted_in_parts_to_the_same_sums(pair, monkeypatch):
    logits, mask = pair
    whole = measured(logits, mask)
    monkeypatch.setattr("foveal.tasks.segment.metric.PIXELS_AT_ONCE", 100)
    parts = measured(logits, mask)
    assert parts.images == whole.images == 6
    assert torch.equal(torch.stack(parts.parts), torch.stack(whole.parts))


def test_masks_without_a_labelled_pixel_are_refused():
    with pytest.raises(FovealError, match="at least 1 labelled pixel"):
        measured(torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), IGNORED)).compute()


def test_classes_are_matched_by_name(pair):
    logits, mask = pair
    swapped = torch.tensor([2, 1, 0])
    other = torch.where(mask == IGNORED, IGNORED, swapped[mask.clamp_max(2)])
    ours = measured(logits, other, theirs=["c", "b", "a"])
    assert ours.compute() == measured(logits, mask).compute()


def test_a_class_nobody_has_is_left_out_of_the_mean_and_reported_as_absent():
    mask = torch.tensor([[[0, 0, 1, 1]]])
    logits = F.one_hot(mask, 3).permute(0, 3, 1, 2).float()
    metric = measured(logits, mask)
    assert metric.compute()["miou"] == 1.0
    assert metric.report()["per_class"] == {"a": 1.0, "b": 1.0, "c": None}


def test_the_interval_is_over_images_and_seeded():
    truth = torch.randint(0, 3, (40, 8, 8), generator=torch.Generator().manual_seed(0))
    said = torch.where(torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) < 0.7, truth, 0)
    parts = torch.stack(
        [intersect_and_union(confusion(s[None], t[None], 3)) for s, t in zip(said, truth, strict=True)]
    )
    low, high = bootstrap_interval(parts)
    total = parts.sum(0)
    miou = (total[0] / (total[1] + total[2] - total[0])).mean().item()
    assert low < miou < high
    assert bootstrap_interval(parts) == (low, high)
    narrow = bootstrap_interval(parts.repeat(9, 1, 1))
    assert (narrow[1] - narrow[0]) == pytest.approx((high - low) / 3, rel=0.2)
    assert bootstrap_interval(parts[:1].repeat(5, 1, 1))[0] == pytest.approx(
        bootstrap_interval(parts[:1])[1]
    ), "images that are all the same leave nothing to chance"


def test_the_interval_counts_pixels_and_is_not_of_image_means():
    # all right, all wrong
    large, small = intersect_and_union(1000 * torch.eye(2)), intersect_and_union(10 * (1 - torch.eye(2)))
    low, high = bootstrap_interval(torch.stack([large, small] * 20))
    assert 0.95 < low < high < 1


def test_a_device_without_float64_is_enough(pair, without_float64):
    logits, mask = pair
    there = measured(without_float64(logits), without_float64(mask))
    assert there.compute() == measured(logits, mask).compute()
