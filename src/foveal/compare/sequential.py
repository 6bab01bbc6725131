"""What may be concluded while seeds are added until it is known: tests and intervals that hold wherever one stops."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from foveal.statistics import FEWEST_SEEDS, LEVEL, Difference, differences_to, holm

LOOKS = (8, 10, 12, 14, 16, 20, 24, 28, 32)
"""Numbers of seeds after which a comparison that stops by itself looks at its results."""
PATTERNS = 2**14
"""Sign patterns of a sequential test, the observed one among them."""


def sequential_p(differences: Sequence[float], looks: Sequence[int] = LOOKS) -> float:
    """Two-sided p of paired differences that were looked at after each number of seeds in ``looks``.

    If a variant changes nothing, each difference is as likely to have come out with the other sign, whatever their
    sizes. At level a the test may spend a n / n_max of its error up to the look at n seeds. Among random sign patterns
    of the observed sizes, the observed one among them, the most extreme that this allows are rejected, and those that
    were rejected at an earlier look stay so. As the rule is the same for all patterns, at most a share a of them is
    ever rejected: the test is exact, wherever one stops. p is the smallest a at which the observed one is rejected.

    Args:
        differences: up to the last look that was taken.
        looks: all looks that were planned.

    Example:
        >>> round(sequential_p([0.1] * 12), 4), round(sequential_p([0.1, -0.1] * 6), 2)
        (0.0018, 1.0)

    Source: Lan and DeMets, Discrete Sequential Boundaries for Clinical Trials (1983), the spending function a t;
        Fisher's test of `sign_flip_p` in place of the normal distribution, as in Plamadeala and Rosenberger, Sequential
        Monitoring with Conditional Randomization Tests (2012).
    """
    sums, taken = _pattern_sums(differences, looks)
    low, high = 0.0, 1.0
    if not _rejected(sums, taken, looks[-1], high):
        return 1.0
    while high - low > 1 / PATTERNS:
        middle = (low + high) / 2
        low, high = (low, middle) if _rejected(sums, taken, looks[-1], middle) else (middle, high)
    return high


def sequentially_rejected(
    differences: Sequence[float], level: float = LEVEL, looks: Sequence[int] = LOOKS
) -> bool:
    """Whether `sequential_p` is at most ``level``.

    Example:
        >>> sequentially_rejected([0.1] * 8), sequentially_rejected([0.1] * 8, 0.005)
        (True, False)
    """
    sums, taken = _pattern_sums(differences, looks)
    return _rejected(sums, taken, looks[-1], level)


def _pattern_sums(differences: Sequence[float], looks: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """|sum of differences| up to each look that was taken, of the observed and of random signs (patterns, looks)."""
    d = np.asarray(differences, dtype=float)
    taken = [look for look in looks if look <= len(d)]
    signs = np.random.default_rng(0).integers(0, 2, size=(PATTERNS, len(d)), dtype=np.int8) * 2.0 - 1.0
    signs[0] = np.where(d < 0, -1.0, 1.0)
    sums = np.abs(np.cumsum(signs * np.abs(d), axis=1))[:, [look - 1 for look in taken]]
    # equal sums in another order of addition are equal
    return np.round(sums / (np.abs(d).sum() or 1.0), 9), taken


def _rejected(sums: np.ndarray, looks: Sequence[int], most: int, level: float) -> bool:
    """Whether the first pattern is rejected at some look."""
    racing = np.ones(len(sums), dtype=bool)
    for column, look in enumerate(looks):
        budget = int(level * look / most * len(sums)) - int((~racing).sum())
        if budget <= 0:
            continue
        ordered = np.sort(sums[racing, column])[::-1]
        # of equal sums all or none
        bound = ordered[budget] if budget < len(ordered) else -1.0
        out = racing & (sums[:, column] > bound)
        if out[0]:
            return True
        racing &= ~out
    return False


def sequential_interval(differences: Sequence[float], looks: Sequence[int] = LOOKS) -> tuple[float, float]:
    """The 95 % interval of the mean difference that goes with `sequential_p`: the differences it does not reject.

    Example:
        >>> low, high = sequential_interval([0.01, 0.02, 0.03, 0.02, 0.01, 0.02, 0.03, 0.02])
        >>> round(low, 3), round(high, 3)
        (0.01, 0.03)

    Source: Jennison and Turnbull, Interim Analyses: The Repeated Confidence Interval Approach (1989).
    """
    d = np.asarray(differences, dtype=float)
    spread = float(np.ptp(d)) or 1e-6
    ends = []
    for sign in (-1.0, 1.0):
        inside, outside = 0.0, 1.5 * spread
        for _ in range(9):
            middle = (inside + outside) / 2
            kept = not sequentially_rejected(d - d.mean() - sign * middle, looks=looks)
            inside, outside = (middle, outside) if kept else (inside, middle)
        ends.append(float(d.mean()) + sign * outside)
    return ends[0], ends[1]


def sequential_differences(
    baseline: Mapping[int, float],
    variants: Mapping[str, Mapping[int, float]],
    *,
    detect: float,
    looks: Sequence[int] = LOOKS,
    higher_is_better: bool = True,
) -> dict[str, Difference]:
    """As `differences_to`, for seeds that were added until it was known: p and intervals hold wherever one stops.

    "smaller" is said where differences of ``detect`` and more are rejected in both directions, each at 5 % and not
    corrected for the number of variants; "better" and "worse" are corrected by Holm.

    Args:
        detect: the difference that matters, as a share.
    """
    fixed = differences_to(baseline, variants, higher_is_better=higher_is_better)
    paired = {
        name: [
            variants[name][seed] - baseline[seed] for seed in sorted(variants[name].keys() & baseline.keys())
        ]
        for name in fixed
    }
    p_values = {name: sequential_p(d, looks) for name, d in paired.items()}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    found = {}
    for name, d in paired.items():
        mean, seeds = fixed[name].mean, len(d)
        low, high = sequential_interval(d, looks) if seeds >= looks[0] else (math.nan, math.nan)
        finding = fixed[name].finding
        if seeds >= FEWEST_SEEDS:
            finding = "no evidence"
        if corrected[name] <= LEVEL:
            finding = "better" if (mean > 0) == higher_is_better else "worse"
        elif max(abs(low), abs(high)) < detect:
            finding = "smaller"
        found[name] = Difference(mean, low, high, p_values[name], corrected[name], seeds, finding)
    return found
