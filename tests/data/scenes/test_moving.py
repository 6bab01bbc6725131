"""Moving digits: what moves is what the label says, and a single frame does not tell."""

import pytest
import torch

from foveal.data import open_dataset
from foveal.data.scenes import MovingDigits, direction_clips


def halves(clips):
    """Centres of the light in the upper and the lower half, frame by frame: (n, 2, t)."""
    light = clips[:, 0].float()
    columns = torch.arange(light.shape[-1]).float()
    parts = light.unflatten(2, (2, -1)).sum(3)
    return ((parts * columns).sum(-1) / parts.sum(-1).clamp_min(1e-6)).transpose(1, 2)


def test_one_of_two_digits_moves():
    data = MovingDigits("train", length=200).as_tensors()
    assert data["image"].shape == (200, 3, 6, 28, 28)
    way = halves(data["image"]).diff(dim=2)
    moved = way.abs().mean(2).sort(1).values
    assert (moved[:, 0] < 0.3).all()
    assert (moved[:, 1] > 0.7).all()
    assert torch.bincount(data["label"], minlength=10).min() > 5


def test_the_label_is_the_class_of_the_moving_one():
    """The still digit alone looks alike in all frames; what is left over is the moving one, as the control draws it."""
    both, alone = MovingDigits("val", length=50), MovingDigits("val", length=50, direction=True)
    for i in range(50):
        assert (both[i]["image"].int() >= alone[i]["image"].int()).all()
    assert both.classes == [str(digit) for digit in range(10)]


def test_where_a_digit_is_says_nothing_in_any_frame():
    """The place of the still digit is distributed as those of the moving one over all frames."""
    places = halves(MovingDigits("train", length=2000).as_tensors()["image"])
    way = places.diff(dim=2).abs().mean(2)
    first = way.argmax(1)
    rows = torch.arange(len(first))
    moving, still = places[rows, first].flatten(), places[rows, 1 - first, 0]
    shares = torch.linspace(0.1, 0.9, 9)
    assert torch.allclose(moving.quantile(shares), still.quantile(shares), atol=0.7)


def test_a_reversed_clip_has_the_other_direction():
    data = direction_clips("train", length=400).as_tensors()
    centre = (data["image"][:, 0].float().sum(2) * torch.arange(28)).sum(2) / data["image"][:, 0].float().sum(
        (2, 3)
    )
    assert ((centre[:, -1] > centre[:, 0]).long() == data["label"]).all()
    assert 150 < int(data["label"].sum()) < 250
    # the places at the beginning of those to the right are those at the end of those to the left
    right, left = centre[data["label"] == 1], centre[data["label"] == 0]
    assert abs(float(right[:, 0].mean() - left[:, -1].mean())) < 0.4


def test_items_do_not_depend_on_length_or_company():
    data = MovingDigits("test", length=20)
    assert torch.equal(data[7]["image"], MovingDigits("test", length=9)[7]["image"])
    assert torch.equal(data.as_tensors()["image"][7], data[7]["image"])
    assert torch.equal(data[-1]["image"], data[19]["image"])
    assert data.fingerprint != MovingDigits("test", length=20, seed=1).fingerprint


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"size": 4}, "size must be between 20 and 128, got 4"), ({"frames": 1}, "frames must be")],
)
def test_options_out_of_range_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        open_dataset("scenes", task="clips", **options)
    with pytest.raises(IndexError, match="below 2"):
        MovingDigits("val", length=2).render([2])
