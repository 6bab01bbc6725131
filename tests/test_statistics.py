import math

import numpy as np
import pytest
from scipy import stats

from foveal.errors import FovealError
from foveal.statistics import (
    detectable_difference,
    differences_to,
    estimate,
    holm,
    seeds_needed,
    seeds_to_detect,
    sign_flip_p,
)


def paired(differences, base=0.8):
    none = dict.fromkeys(range(len(differences)), base)
    return none, {seed: base + d for seed, d in enumerate(differences)}


def test_the_interval_is_students():
    values = [0.81, 0.84, 0.79, 0.90, 0.85]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    e = estimate(values)
    assert (e.mean, e.low, e.high) == pytest.approx((np.mean(values), low, high))


def test_one_value_has_no_interval():
    e = estimate([0.5])
    assert e.mean == 0.5
    assert math.isnan(e.low)
    assert math.isnan(e.high)


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_test_is_scipys_permutation_test(seed):
    d = np.random.default_rng(seed).normal(0.3, 1, size=9)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=10_000).pvalue
    assert sign_flip_p(d) == pytest.approx(expected)


def test_the_exact_test_by_hand():
    # of 8 patterns of 1, 2, 4 those with |sum| >= 5: +-(1+2+4), +-(-1+2+4)
    assert sign_flip_p([-1.0, 2.0, 4.0]) == 4 / 8
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


def test_equal_sums_in_another_order_count_as_equal():
    # 0.1 + 0.2 - 0.3 is not 0 in floating point, and is as extreme as any other pattern with sum 0
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0


def test_many_pairs_are_drawn_and_never_give_zero():
    assert 0 < sign_flip_p([1.0] * 40) < 1e-4
    assert sign_flip_p([1.0, -1.0] * 20) == 1.0


def test_holm_against_the_definition():
    p = [0.001, 0.02, 0.3, 0.04, 0.011]
    assert holm(p) == pytest.approx([0.005, 0.06, 0.3, 0.08, 0.044])
    assert holm([0.8, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_fewer_than_six_seeds_find_nothing_however_large_the_difference():
    none, better = paired([0.2, 0.21, 0.22, 0.23, 0.24])
    d = differences_to(none, {"se": better})["se"]
    assert d.finding == "too few seeds"
    none, better = paired([0.2, 0.21, 0.22, 0.23, 0.24, 0.25])
    assert differences_to(none, {"se": better})["se"].finding == "better"


def test_six_seeds_are_too_few_for_five_variants_and_eight_are_enough():
    for seeds, finding in ((6, "no evidence"), (8, "better")):
        none, better = paired([0.1 + i / 100 for i in range(seeds)])
        found = differences_to(none, {f"block{i}": better for i in range(5)})
        assert {d.finding for d in found.values()} == {finding}
    assert seeds_needed(5) == 8


def test_a_lower_accuracy_is_worse():
    none, worse = paired([-0.1 - i / 100 for i in range(8)])
    assert differences_to(none, {"se": worse})["se"].finding == "worse"


def test_only_common_seeds_are_compared():
    found = differences_to({0: 0.5, 1: 0.6, 5: 0.9}, {"se": {0: 0.6, 1: 0.7, 2: 0.1}, "cbam": {7: 0.5}})
    assert found["se"].mean == pytest.approx(0.1)
    assert found["se"].seeds == 2
    assert "cbam" not in found


def test_the_rate_of_false_findings_stays_below_the_level():
    """No variant differs: in how many of 600 experiments is any called better or worse?"""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(600):
        base = rng.normal(0.8, 0.02, size=8)
        none = dict(enumerate(base))
        variants = {str(i): dict(enumerate(base + rng.normal(0, 0.01, size=8))) for i in range(6)}
        false += any(d.finding in ("better", "worse") for d in differences_to(none, variants).values())
    assert false / 600 < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


def test_a_large_true_difference_is_found():
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        base = rng.normal(0.8, 0.02, size=8)
        variants = {str(i): dict(enumerate(base + rng.normal(0, 0.01, size=8))) for i in range(4)}
        variants["good"] = dict(enumerate(base + rng.normal(0.04, 0.01, size=8)))
        found += differences_to(dict(enumerate(base)), variants)["good"].finding == "better"
    assert found > 90


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        e = estimate(rng.normal(0.5, 0.1, size=8))
        covered += e.low <= 0.5 <= e.high
    assert 0.93 < covered / 1000 < 0.97


def test_lower_may_be_better():
    none, variant = paired([-0.01 - 0.001 * i for i in range(8)])
    assert differences_to(none, {"se": variant})["se"].finding == "worse"
    assert differences_to(none, {"se": variant}, higher_is_better=False)["se"].finding == "better"


@pytest.mark.parametrize("seeds", [8, 12])
def test_a_difference_of_the_size_it_names_is_found_as_often_as_it_says(seeds):
    """400 simulated comparisons with 3 variants, of which one differs by just that much."""
    generator = np.random.default_rng(seeds)
    spread, comparisons = 0.01, 3
    true = (
        spread
        * float(stats.t.ppf(1 - 0.05 / 2 / comparisons, seeds - 1) + stats.t.ppf(0.8, seeds - 1))
        / math.sqrt(seeds)
    )
    found = 0
    for _ in range(400):
        none = dict.fromkeys(range(seeds), 0.8)
        shifts = {"se": true, "cbam": 0.0, "dual": 0.0}
        variants = {
            name: {s: 0.8 + shift + generator.normal(0, spread) for s in range(seeds)}
            for name, shift in shifts.items()
        }
        found += differences_to(none, variants)["se"].finding == "better"
    assert 0.7 < found / 400 < 0.95


def test_the_spread_is_read_from_the_interval():
    none, variant = paired([0.01 * math.sin(7 * i) for i in range(8)])
    d = differences_to(none, {"se": variant})["se"]
    values = [variant[i] - none[i] for i in range(8)]
    error = float(np.std(values, ddof=1)) / math.sqrt(8)
    quantiles = float(stats.t.ppf(0.975, 7) + stats.t.ppf(0.8, 7))
    assert detectable_difference(d, comparisons=1) == pytest.approx(quantiles * error)


def test_seeds_grow_as_the_difference_shrinks_and_suffice():
    needed = [seeds_to_detect(d, 0.012, comparisons=6) for d in (0.05, 0.02, 0.01, 0.005)]
    assert needed == sorted(needed)
    assert needed[0] == 8, "the exact test needs these whatever the difference"
    with pytest.raises(FovealError, match="difference must be above 0"):
        seeds_to_detect(0.0, 0.01, comparisons=1)


def test_nothing_against_nothing_is_found_in_one_of_twenty():
    """1,000 simulated comparisons of five variants that are all the same: any finding is an error."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        none = {s: generator.normal(0.8, 0.01) for s in range(8)}
        variants = {f"v{k}": {s: generator.normal(0.8, 0.01) for s in range(8)} for k in range(5)}
        wrong += any(d.finding != "no evidence" for d in differences_to(none, variants).values())
    assert wrong / 1000 < 0.07
