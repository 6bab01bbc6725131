"""Loss and figures of segmentation: one confusion matrix, in the masks' own pixels, with nothing ignored counted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.data import open_dataset
from foveal.train import TrainConfig
from foveal.train.segment import (
    NO_CLASS,
    balanced_weights,
    confusion,
    count,
    facts,
    metrics,
    natural_size,
    scores,
    segmentation_loss,
    targets,
    transforms,
)

IGNORED = 9
COLOURS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Says(nn.Module):
    """Answers with the first channels of the image, so that a test chooses every logit."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return {"fused": images[:, : self.classes]}


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 8, 10, generator=generator)
    mask = torch.randint(0, 3, (6, 8, 10), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.3] = IGNORED
    mask[5] = IGNORED
    return logits, mask


def test_the_matrix_has_truth_in_rows_and_leaves_ignored_pixels_out():
    truth = torch.tensor([[0, 0, 0, 1, IGNORED, 255]])
    said = torch.tensor([[1, 1, 0, 0, 1, 1]])
    assert confusion(said[None], truth[None], 2).tolist() == [[1, 2], [1, 0]]


def test_figures_agree_with_torchmetrics(pair):
    from torchmetrics.classification import MulticlassJaccardIndex

    logits, mask = pair
    peer = MulticlassJaccardIndex(3, ignore_index=IGNORED, average=None)
    peer.update(logits, mask)
    ours = metrics(count(Says(3), {"image": logits, "mask": mask}, 3))
    assert ours["val_miou"] == pytest.approx(peer.compute().mean().item(), rel=1e-6)
    expected = F.cross_entropy(logits, targets(mask, 3), ignore_index=NO_CLASS)
    assert ours["val_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_the_figure_is_of_one_matrix_and_no_mean_of_images(pair):
    logits, mask = pair
    logits = logits.clone()
    logits[0] += 5 * F.one_hot(mask[0].clamp_max(2), 3).permute(2, 0, 1)  # one image is nearly right
    batches = [{"image": logits[i : i + 1], "mask": mask[i : i + 1]} for i in range(5)]
    together = metrics(sum(count(Says(3), batch, 3) for batch in batches))
    of_images = np.mean([metrics(count(Says(3), batch, 3))["val_miou"] for batch in batches])
    whole = metrics(count(Says(3), {"image": logits, "mask": mask}, 3))
    assert together["val_miou"] == pytest.approx(whole["val_miou"], abs=1e-12)
    assert abs(of_images - whole["val_miou"]) > 1e-2


def test_what_is_counted_are_the_pixels_of_the_mask_and_not_of_the_network():
    image, mask = torch.zeros(1, 2, 4, 4), torch.zeros(1, 12, 20, dtype=torch.uint8)
    image[:, 1, :, 2:] = 9.0
    sums = count(Says(2), {"image": image, "mask": mask}, 2)
    assert sums[:, :2].sum() == 12 * 20
    assert sums[0, 1] == pytest.approx(12 * 10, abs=12 * 2)


def test_a_batch_is_counted_in_parts_to_the_same_sums(pair, monkeypatch):
    logits, mask = pair
    whole = count(Says(3), {"image": logits, "mask": mask}, 3)
    monkeypatch.setattr("foveal.train.segment.PIXELS_AT_ONCE", 100)
    assert torch.allclose(count(Says(3), {"image": logits, "mask": mask}, 3), whole)


def test_a_batch_without_a_labelled_pixel_has_loss_zero_and_finite_gradients():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    for options in ({}, {"ohem": True}, {"class_weights": torch.tensor([1.0, 2, 3])}):
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
    assert segmentation_loss({"fused": logits}, mask, class_weights=weights) == pytest.approx(
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


def test_a_class_nobody_has_is_left_out_of_the_mean():
    found = scores(torch.tensor([[4, 0, 0], [0, 2, 0], [0, 0, 0]]))
    assert found["miou"] == 1.0
    assert math.isnan(found["iou"][2])


# ------------------------------------------------------------------------------------------- what a run asks for


def opened(folder, **options):
    return {
        p: open_dataset(str(folder), p, task="segment", ignore_index=9, **options) for p in ("train", "val")
    }


def config(**options):
    return TrainConfig(task="segment", **options)


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
    data = opened(tmp_path)
    assert balanced_weights(data["train"], 4) == pytest.approx(expected)
    assert facts(config(class_weights="balanced"), data)["class_weights"] == pytest.approx(expected)


def test_sizes_are_the_data_s_own_and_the_ignore_value_travels(masks_folder):
    data = opened(masks_folder)
    assert natural_size(data["train"]) == 32
    assert facts(config(crop_size=24), data) == {"ignore_index": 9, "crop_size": 24, "class_weights": None}


@pytest.mark.parametrize("size", [16, 32, 50])
def test_training_gets_square_crops_and_validation_whole_images_with_their_own_masks(masks_folder, size):
    data = opened(masks_folder)["val"]
    to_train, to_eval = transforms(config(crop_size=40), data, size, COLOURS)
    for i in range(4):
        torch.manual_seed(i)
        sample = data[i]
        crop, whole = to_train(sample), to_eval(sample)
        assert (crop["image"].shape, crop["mask"].shape) == ((3, 40, 40), (40, 40))
        assert set(crop["mask"].unique().tolist()) <= {0, 1, 2, IGNORED}
        assert torch.equal(whole["mask"], sample["mask"])
        assert min(whole["image"].shape[1:]) == size
        ratio = sample["mask"].shape[0] / sample["mask"].shape[1]
        assert whole["image"].shape[1] / whole["image"].shape[2] == pytest.approx(ratio, rel=0.05)


def test_image_and_mask_move_together_and_the_mask_is_never_interpolated(masks_folder):
    """Colours name the class, so every crop tells whether its mask still lies on its image."""
    data = opened(masks_folder)["train"]
    to_train, _ = transforms(config(scale_range=[0.5, 2.0]), data, 32, COLOURS)
    seen = set()
    for i in range(24):
        torch.manual_seed(i)
        out = to_train(data[i % len(data)])
        image = out["image"] * 0.25 + 0.5
        named = torch.where(image[2] > 0.6, 1, torch.where(image[0] > 0.6, 2, 0))
        mask = out["mask"].long()
        seen |= set(mask.unique().tolist())
        labelled = mask != IGNORED
        assert (named == mask)[labelled].float().mean() > 0.93, i
    assert seen <= {0, 1, 2, IGNORED}
    assert IGNORED in seen


def test_scenes_are_neither_scaled_nor_mirrored():
    data = open_dataset("scenes", "train", task="segment", length=4)
    to_train, _ = transforms(config(), data, 64, COLOURS)
    for i in range(4):
        assert torch.equal(to_train(data[i])["mask"], data[i]["mask"])
