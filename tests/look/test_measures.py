"""Numbers: known maps get known scores, and chance is called chance."""

import math

import pytest
import torch
from torch import Tensor, nn

from foveal.look import measures


class Planted(nn.Module):
    """A block whose mask is what the caller plants in the image's second channel."""

    def attention(self, x: Tensor, positions: object = None) -> dict[str, Tensor]:
        return {"spatial_mask": x[:, 1:2]}

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Rows(nn.Module):
    """A block whose rows are uniform, or lie on their own query."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def attention(self, x: Tensor, positions: list[tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        rows = torch.zeros(len(x), len(positions or [0]), *x.shape[2:])
        for i, point in enumerate(positions or [(0, 0)]):
            if self.own:
                rows[:, i, point[0], point[1]] = 1
            else:
                rows[:, i] = 1 / rows[0, 0].numel()
        return {"rows": rows}

    def forward(self, x: Tensor) -> Tensor:
        return x


def classifier(block: nn.Module) -> nn.Module:
    """Two classes: the mean of the first channel, and its negative."""
    head = nn.Linear(3, 2, bias=False)
    head.weight.data = torch.tensor([[40.0, 0, 0], [-40.0, 0, 0]])
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def planted_batches(on_object: bool, images: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    objects = torch.zeros(images, 8, 8, dtype=torch.uint8)
    for one in objects:
        y, x = torch.randint(0, 6, (2,), generator=generator).tolist()
        one[y : y + 2, x : x + 2] = 1
    image = torch.zeros(images, 3, 8, 8)
    image[:, 0] = objects.float() - objects.float().mean() * 0.5
    image[:, 1] = objects.float() if on_object else torch.rand(images, 8, 8, generator=generator)
    return [{"image": image[:10], "mask": objects[:10]}, {"image": image[10:], "mask": objects[10:]}]


def test_a_mask_on_the_object_beats_chance_and_its_curves_beat_random() -> None:
    (site,) = measures.score_sites(classifier(Planted()), planted_batches(on_object=True))
    values = site.values
    assert values["share"].mean == pytest.approx(1)
    assert values["share_chance"].mean == pytest.approx(4 / 64)
    assert values["pointing"].mean == pytest.approx(1)
    assert values["deletion_vs_random"].low > 0
    assert "attention on the object: above chance" in site.verdict
    assert "pointing game: above chance" in site.verdict
    assert values["share"].count == 24


def test_a_random_mask_is_said_not_to_beat_chance() -> None:
    (site,) = measures.score_sites(classifier(Planted()), planted_batches(on_object=False))
    assert site.values["share_gain"].low < 0 < site.values["share_gain"].high
    for name in ("attention on the object", "pointing game", "deletion", "insertion"):
        assert f"{name}: does not beat chance" in site.verdict


def test_pointing_above_chance_is_said_to_be_no_better_than_the_centre_where_it_is_not() -> None:
    """Objects in the middle of 3 of 4 images, and a map that finds those and no other."""
    image = torch.zeros(24, 3, 8, 8)
    objects = torch.zeros(24, 8, 8, dtype=torch.uint8)
    objects[:, 3:5, 3:5] = 1
    objects[:6] = 0
    objects[:6, :2, :2] = 1
    image[:, 1, 4, 4] = 1
    (site,) = measures.score_sites(classifier(Planted()), [{"image": image, "mask": objects}], curve_images=0)
    assert site.values["pointing_vs_centre"].mean == 0
    assert "pointing game: above chance, but no better than the centre of the image" in site.verdict


def test_uniform_rows_are_one_global_context_and_own_rows_are_not() -> None:
    batches = planted_batches(on_object=True)
    (uniform,) = measures.score_sites(classifier(Rows(own=False)), batches)
    (own,) = measures.score_sites(classifier(Rows(own=True)), batches)
    assert uniform.values["entropy"].mean == pytest.approx(1)
    assert uniform.values["query_dependence"].mean == pytest.approx(0, abs=1e-6)
    assert own.values["entropy"].mean == pytest.approx(0)
    assert own.values["query_dependence"].mean == pytest.approx(1)
    assert uniform.values["share_gain"].mean == pytest.approx(0, abs=1e-6)
    assert uniform.values["pointing_gain"].mean == pytest.approx(0, abs=1e-6)
    assert uniform.values["contribution"].mean == 0


def test_a_box_is_a_mask_where_there_is_no_mask() -> None:
    batch = {"image": torch.zeros(1, 3, 6, 8), "box_xyxy": torch.tensor([[2.0, 1.0, 5.0, 4.0]])}
    objects = measures.object_mask(batch)
    assert objects is not None
    assert objects.sum() == 9
    assert objects[0, 1:4, 2:5].all()
    assert measures.object_mask({"image": batch["image"]}) is None


def test_without_known_objects_nothing_is_claimed() -> None:
    batches = [{"image": batch["image"]} for batch in planted_batches(on_object=True)]
    (site,) = measures.score_sites(classifier(Planted()), batches, curve_images=0)
    assert "share" not in site.values
    assert "nothing to compare with chance" in site.verdict


def test_pointing_counts_ties_by_their_part_on_the_object() -> None:
    objects = torch.zeros(1, 4, 4, dtype=torch.bool)
    objects[:, :, :1] = True
    _, pointing, chance = measures.share_on_object(torch.ones(1, 2, 2), objects)
    assert pointing.item() == pytest.approx(0.25)
    assert chance.item() == pytest.approx(0.25)


def test_images_where_a_measure_is_undefined_are_left_out_of_its_interval() -> None:
    """A mask of zeros has no entropy; the others' interval is the t interval over them alone."""
    batches = planted_batches(on_object=True)
    batches[0]["image"][:2, 1] = 0
    (site,) = measures.score_sites(classifier(Planted()), batches, curve_images=0)
    assert site.values["entropy"].count == 22
    assert site.values["mask_mean"].count == 24
    assert math.isfinite(site.values["entropy"].low)


def test_one_image_has_a_mean_and_no_interval() -> None:
    batch = {name: value[:1] for name, value in planted_batches(on_object=True)[0].items()}
    (site,) = measures.score_sites(classifier(Planted()), [batch], curve_images=0)
    assert site.values["share"].mean == pytest.approx(1)
    assert math.isnan(site.values["share"].low)
    assert "does not beat chance" in site.verdict


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        measures.score_sites(classifier(Planted()), [])
