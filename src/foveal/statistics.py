"""What may be concluded from values paired by seed: intervals, exact tests, one correction.

The unit is a training run. All variants of one seed share the initial backbone and the order of the images, so
their differences are taken seed by seed. The intervals and tests speak of other seeds on the same images, not of
other images.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.errors import FovealError

LEVEL = 0.05
FEWEST_SEEDS = 6
"""With 5 pairs the exact two-sided test cannot go below 2 / 2^5 = 0.0625."""
MOST_EXACT = 16
"""Up to 2^16 sign patterns are enumerated; beyond, as many are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A mean of ``count`` values with its two-sided t interval, of 95 % by default; the ends are nan below 2 values."""

    mean: float
    low: float
    high: float
    count: int = 0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Difference:
    """Paired difference to a baseline.

    Attributes:
        mean, low, high: the difference and its 95 % t interval, not corrected for the number of variants.
        p: of the exact sign-flip test, two-sided.
        p_corrected: Holm's, over all variants compared with this baseline.
        seeds: number of pairs.
        finding: "better", "worse" or "no evidence"; "too few seeds" below 6; "smaller" where seeds were added until
            a difference of the size that was looked for could be excluded.
    """

    mean: float
    low: float
    high: float
    p: float
    p_corrected: float
    seeds: int
    finding: str


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean and t interval of independent values.

    Args:
        level: the chance that the interval misses the mean, by default 0.05 for an interval of 95 %.

    Example:
        >>> e = estimate([1.0, 2.0, 3.0])
        >>> [round(v, 3) for v in (e.mean, e.low, e.high)]
        [2.0, -0.484, 4.484]
    """
    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else math.nan
    if len(x) < 2:
        return Estimate(mean, math.nan, math.nan, len(x))
    # scipy takes a second to import, and much of what imports this file needs none of it
    from scipy import stats

    half = float(stats.t.ppf(1 - level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half, len(x))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of paired differences: the share of sign patterns whose mean is at least as far from 0.

    If a variant changes nothing, each difference is as likely to have come out with the other sign. All 2^n
    patterns are tried up to n = 16; beyond, 2^16 drawn ones and the observed one.

    Raises:
        ValueError: no differences.

    Example:
        >>> sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # all the same sign: 2 of 64 patterns
        0.03125

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) == 0:
        raise FovealError("differences must hold at least one value, got none")
    observed = abs(d.sum())
    tolerance = 1e-9 * np.abs(d).sum()  # equal sums in another order of addition are equal
    if len(d) <= MOST_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
        return float(np.mean(np.abs(signs @ d) >= observed - tolerance))
    signs = np.random.default_rng(0).choice([1.0, -1.0], size=(2**MOST_EXACT, len(d)))
    extreme = np.count_nonzero(np.abs(signs @ d) >= observed - tolerance)
    return (extreme + 1) / (len(signs) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected so that the chance of any false finding among them stays below the level.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def seeds_needed(comparisons: int) -> int:
    """Fewest seeds with which the exact test can go below 0.05 after correction for so many comparisons.

    Example:
        >>> [seeds_needed(n) for n in (1, 2, 5, 6)]
        [6, 7, 8, 8]
    """
    seeds = FEWEST_SEEDS
    while comparisons * 2.0 ** (1 - seeds) > LEVEL:
        seeds += 1
    return seeds


def detectable_difference(found: Difference, *, comparisons: int, power: float = 0.8) -> float:
    """The smallest true difference that such a comparison finds with probability ``power``.

    From the spread of the paired differences, by the t test at the level that Holm's correction asks of the first of
    ``comparisons``: an approximation of the exact test's power that holds from 6 seeds on.

    Example:
        >>> d = Difference(0.01, 0.0, 0.02, 0.05, 0.05, 8, "no evidence")
        >>> round(detectable_difference(d, comparisons=1), 4), round(detectable_difference(d, comparisons=6), 4)
        (0.0138, 0.0192)

    Source: Cohen, Statistical Power Analysis (1988), chapter 2, the paired t test.
    """
    from scipy import stats

    degrees = found.seeds - 1
    half_at_level = float(stats.t.ppf(1 - LEVEL / 2, degrees))
    error = (found.high - found.low) / 2 / half_at_level
    needed = float(stats.t.ppf(1 - LEVEL / 2 / comparisons, degrees) + stats.t.ppf(power, degrees))
    return needed * error


def seeds_to_detect(difference: float, spread: float, *, comparisons: int, power: float = 0.8) -> int:
    """The fewest seeds with which a true difference is found with probability ``power``.

    Args:
        difference: what is to be found, as a share (0.01 is one point).
        spread: standard deviation of the paired differences, from earlier runs.

    Raises:
        FovealError: the difference is not above 0.

    Example:
        >>> [seeds_to_detect(d, 0.012, comparisons=6) for d in (0.05, 0.02, 0.01)]
        [8, 8, 21]
    """
    from scipy import stats

    if not difference > 0:
        raise FovealError(f"difference must be above 0, got {difference}")
    seeds = seeds_needed(comparisons)
    while seeds < 10**4:
        quantiles = stats.t.ppf(1 - LEVEL / 2 / comparisons, seeds - 1) + stats.t.ppf(power, seeds - 1)
        if float(quantiles) * spread / math.sqrt(seeds) <= difference:
            break
        seeds += 1
    return seeds


def differences_to(
    baseline: Mapping[int, float],
    variants: Mapping[str, Mapping[int, float]],
    *,
    higher_is_better: bool = True,
) -> dict[str, Difference]:
    """Compare every variant with one baseline, paired by seed, and correct for their number.

    Args:
        baseline: seed -> value of the metric.
        variants: name -> seed -> value. Seeds the baseline lacks are left out; a variant without a common
            seed is left out.
        higher_is_better: which way the metric points.

    Example:
        >>> none = {seed: 0.80 for seed in range(8)}
        >>> found = differences_to(none, {"se": {seed: 0.81 + seed / 1000 for seed in range(8)}})
        >>> found["se"].finding, found["se"].p
        ('better', 0.0078125)
    """
    paired = {
        name: [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
        for name, values in variants.items()
    }
    paired = {name: d for name, d in paired.items() if d}
    p_values = [sign_flip_p(d) for d in paired.values()]
    found = {}
    for (name, d), p, p_corrected in zip(paired.items(), p_values, holm(p_values), strict=True):
        e = estimate(d)
        if len(d) < FEWEST_SEEDS:
            finding = "too few seeds"
        elif p_corrected > LEVEL:
            finding = "no evidence"
        else:
            finding = "better" if (e.mean > 0) == higher_is_better else "worse"
        found[name] = Difference(e.mean, e.low, e.high, p, p_corrected, len(d), finding)
    return found


def wilson_interval(right: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of an accuracy, from the number of images alone.

    It says nothing of other training runs, which differ by more: `foveal compare` measures those.

    Example:
        >>> [round(x, 3) for x in wilson_interval(90, 100)]
        [0.826, 0.945]

    Source:
        Wilson (1927): the score interval of a binomial share.
    """
    p, n = right / images, images
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half
