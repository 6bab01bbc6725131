"""Tests that are looked at again and again while seeds are added: their error, power, intervals and agreement."""

import numpy as np
import pytest

from foveal.compare.sequential import (
    LOOKS,
    sequential_differences,
    sequential_interval,
    sequential_p,
    sequentially_rejected,
)


def stopped_at(differences, level):
    """The number of seeds at which the sequential test rejects, or None."""
    return next((look for look in LOOKS if sequentially_rejected(differences[:look], level)), None)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(0, 0.02, LOOKS[-1]),
        lambda rng: rng.standard_t(2, LOOKS[-1]),
        lambda rng: np.round(rng.normal(0, 2, LOOKS[-1])),  # ties and zeros
    ],
    ids=["normal", "heavy tails", "ties"],
)
def test_looking_nine_times_finds_what_is_not_there_in_at_most_5_percent(draw, monkeypatch):
    """250 comparisons without an effect; 5 % would be 12, and more than 24 of 250 happens in 1 of 1000 such studies."""
    monkeypatch.setattr("foveal.compare.sequential.PATTERNS", 2**10)
    rng = np.random.default_rng(5)
    assert sum(stopped_at(draw(rng), 0.05) is not None for _ in range(250)) <= 24


def test_a_large_effect_stops_at_the_first_looks_and_power_is_as_predicted(monkeypatch):
    monkeypatch.setattr("foveal.compare.sequential.PATTERNS", 2**10)
    rng = np.random.default_rng(6)
    large = [stopped_at(rng.normal(3, 1, LOOKS[-1]), 0.05) for _ in range(40)]
    assert np.mean([look == LOOKS[0] for look in large]) > 0.9
    # one standard deviation: the fixed test needs 10 seeds for a power of 0.8
    small = [stopped_at(rng.normal(1, 1, LOOKS[-1]), 0.05) for _ in range(60)]
    assert np.mean([look is not None and look <= 16 for look in small]) > 0.8


def test_the_repeated_interval_holds_the_truth_wherever_it_stops(monkeypatch):
    monkeypatch.setattr("foveal.compare.sequential.PATTERNS", 2**10)
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(60):
        d = rng.normal(0.01, 0.02, LOOKS[-1])
        ends = [sequential_interval(d[:look]) for look in LOOKS[::2]]
        inside += all(low <= 0.01 <= high for low, high in ends)
    assert inside >= 53


def test_p_and_rejection_and_interval_agree():
    d = np.random.default_rng(8).normal(0.012, 0.02, 20)
    p = sequential_p(d)
    assert not sequentially_rejected(d, 0.9 * p)
    assert sequentially_rejected(d, 1.1 * p)
    low, high = sequential_interval(d)
    assert (low <= 0 <= high) == (p > 0.05)
    assert low < d.mean() < high


def test_before_the_first_look_nothing_is_known():
    assert sequential_p([0.1] * (LOOKS[0] - 1)) == 1.0


def test_less_than_the_difference_that_matters_is_a_finding_and_needs_both_directions():
    rng = np.random.default_rng(9)
    none = dict.fromkeys(range(20), 0.8)
    near, shifted = (
        {seed: 0.8 + mean + d for seed, d in enumerate(rng.normal(0, 0.004, 20))} for mean in (0.0, 0.012)
    )
    found = sequential_differences(none, {"near": near, "shifted": shifted}, detect=0.01)
    assert (found["near"].finding, found["shifted"].finding) == ("smaller", "better")
    scattered = rng.normal(0, 0.05, 20)
    wide = {seed: 0.8 + d for seed, d in enumerate(scattered - scattered.mean())}
    assert sequential_differences(none, {"wide": wide}, detect=0.01)["wide"].finding == "no evidence"
