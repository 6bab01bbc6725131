"""What may be concluded from accuracies paired by seed: intervals, exact tests, one correction, one sentence.

The unit is a training run. All variants of one seed share the initial backbone and the order of the images, so
their differences are taken seed by seed. The intervals and tests speak of other seeds on the same images, not of
other images.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from foveal.errors import FovealError

LEVEL = 0.05
FEWEST_SEEDS = 6
"""With 5 pairs the exact two-sided test cannot go below 2 / 2^5 = 0.0625."""
MOST_EXACT = 16
"""Up to 2^16 sign patterns are enumerated; beyond, as many are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % t interval; the ends are nan below 2 values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Paired difference to a baseline.

    Attributes:
        mean, low, high: the difference and its 95 % t interval, not corrected for the number of variants.
        p: of the exact sign-flip test, two-sided.
        p_corrected: Holm's, over all variants compared with this baseline.
        seeds: number of pairs.
        finding: "better", "worse" or "no evidence"; "too few seeds" below 6.
    """

    mean: float
    low: float
    high: float
    p: float
    p_corrected: float
    seeds: int
    finding: str


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval of independent values.

    Example:
        >>> e = estimate([1.0, 2.0, 3.0])
        >>> [round(v, 3) for v in (e.mean, e.low, e.high)]
        [2.0, -0.484, 4.484]
    """
    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else math.nan
    if len(x) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half)


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


def differences_to(
    baseline: Mapping[int, float], variants: Mapping[str, Mapping[int, float]]
) -> dict[str, Difference]:
    """Compare every variant with one baseline, paired by seed, and correct for their number.

    Args:
        baseline: seed -> accuracy.
        variants: name -> seed -> accuracy. Seeds the baseline lacks are left out; a variant without a common
            seed is left out.

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
            finding = "better" if e.mean > 0 else "worse"
        found[name] = Difference(e.mean, e.low, e.high, p, p_corrected, len(d), finding)
    return found


def points(share: float, signed: bool = True) -> str:
    """A share or a difference of shares in points (hundredths), with a true minus sign.

    Example:
        >>> points(0.0123), points(-0.004), points(0.8251, signed=False)
        ('+1.2', '−0.4', '82.5')
    """
    if math.isnan(share):
        return "–"
    text = f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}"
    return text.replace("-", "−")


def verdict(
    to_none: Mapping[str, Difference],
    to_control: Mapping[str, Difference],
    *,
    attention: Sequence[str],
    data: str,
) -> str:
    """The outcome in a sentence or two.

    Args:
        to_none: differences to the network without attention, of attention variants and of the control.
        to_control: differences of attention variants to the control; empty without a control.
        attention: names of the attention variants.
        data: what the data is called.
    """
    tried = [name for name in attention if name in to_none]
    if not tried:
        return f"Nothing can be said about {data}: no variant has finished a seed that the baseline has finished."
    seeds = min(to_none[name].seeds for name in tried)
    best = max(tried, key=lambda name: to_none[name].mean)
    if seeds < FEWEST_SEEDS:
        return (
            f"Too few seeds to say whether attention helps on {data}: {seeds} where at least {FEWEST_SEEDS} are "
            f"needed. The largest difference so far is {_shown(best, to_none[best], p=False)}."
        )
    helping = [name for name in tried if to_none[name].finding == "better"]
    hurting = [name for name in tried if to_none[name].finding == "worse"]
    beyond = [name for name in helping if name in to_control and to_control[name].finding == "better"]
    sentences = []
    if not helping:
        blocks = f"none of the {len(tried)} blocks is better" if len(tried) > 1 else f"{best} is not better"
        sentences.append(
            f"No evidence that attention helps on {data}: {blocks} than the same network without it, beyond what "
            f"chance explains over {seeds} seeds (largest difference: {_shown(best, to_none[best])})."
        )
        needed = seeds_needed(len(to_none))
        if seeds < needed:
            sentences.append(
                f"{seeds} seeds cannot show it for {len(to_none)} variants at once, however large it is: "
                f"use {needed} or more."
            )
    elif beyond:
        best = max(beyond, key=lambda name: to_none[name].mean)
        sentences.append(
            f"Attention helps on {data}: {_list(beyond)} {_is(beyond)} better than the same network without it and "
            f"better than a plain convolution block of equal cost (best: {_shown(best, to_none[best])} over none, "
            f"{points(to_control[best].mean)} points over the control; {seeds} seeds)."
        )
        others = [name for name in helping if name not in beyond]
        if others:
            sentences.append(f"Better than none, but not than the control: {_list(others)}.")
    else:
        best = max(helping, key=lambda name: to_none[name].mean)
        doubt = "; without a control this may be the added capacity alone."
        if to_control:
            doubt = ", but there is no evidence of an advantage over a plain convolution block of equal cost."
        sentences.append(
            f"On {data}, {_list(helping)} {_is(helping)} better than the same network without attention "
            f"(best: {_shown(best, to_none[best])}; {seeds} seeds){doubt}"
        )
    if hurting:
        worst = min(hurting, key=lambda name: to_none[name].mean)
        most = "most: " if len(hurting) > 1 else ""
        sentences.append(
            f"Worse than no attention: {_list(hurting)} ({most}{_shown(worst, to_none[worst])})."
        )
    control = [name for name in to_none if name not in attention]
    if control and to_none[control[0]].finding in ("better", "worse"):
        c = to_none[control[0]]
        sentences.append(f"The control is itself {c.finding} than none ({_shown('', c)}).")
    return " ".join(sentences)


def _shown(name: str, d: Difference, p: bool = True) -> str:
    interval = f", 95 % interval {points(d.low)} to {points(d.high)}" if not math.isnan(d.low) else ""
    test = f", corrected p = {p_text(d.p_corrected)}" if p else ""
    return f"{name} {points(d.mean)} points{interval}{test}".strip()


def p_text(p: float) -> str:
    """Example:
    >>> p_text(0.0391), p_text(0.4), p_text(0.00002)
    ('0.039', '0.40', '< 0.001')
    """
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
