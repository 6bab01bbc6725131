"""The outcome of a comparison in a sentence or two, and how values of a metric are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveal.statistics import FEWEST_SEEDS, Difference, detectable_difference, seeds_needed
from foveal.tasks import Task
from foveal.train.progress import metric_name


@dataclass(frozen=True)
class MetricText:
    """How values of a task's metric are written: shares as per cent and their differences as points.

    Example:
        >>> text = MetricText("accuracy", is_share=True, higher_is_better=True)
        >>> text.value(0.8251), text.difference(0.0123), text.difference(-0.004), text.unit
        ('82.5', '+1.2', '−0.4', 'points')
    """

    name: str
    is_share: bool
    higher_is_better: bool

    @classmethod
    def of(cls, task: Task) -> MetricText:
        """For the metric of a task."""
        return cls(metric_name(task.metric), task.is_share, task.higher_is_better)

    @property
    def unit(self) -> str:
        """What a difference is counted in."""
        return "points" if self.is_share else f"of {self.name}"

    @property
    def factor(self) -> float:
        """From a value to the number that is written."""
        return 100.0 if self.is_share else 1.0

    @property
    def value_unit(self) -> str:
        """What follows a value."""
        return " %" if self.is_share else ""

    def value(self, value: float) -> str:
        """A value without its unit."""
        if math.isnan(value):
            return "–"
        text = f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"
        return text.replace("-", "−")

    def difference(self, value: float) -> str:
        """A difference of values, with its sign (a true minus) and without its unit."""
        if math.isnan(value):
            return "–"
        text = f"{100 * value:+.1f}" if self.is_share else f"{value:+.3g}"
        return text.replace("-", "−")

    def shown(self, name: str, d: Difference) -> str:
        """A difference with its interval and its p."""
        interval = f"95 % interval {self.difference(d.low)} to {self.difference(d.high)}"
        test = f"corrected p = {p_text(d.p_corrected)}"
        return f"{name} {self.difference(d.mean)} {self.unit}, {interval}, {test}".strip()


def conclude(
    to_none: Mapping[str, Difference],
    to_control: Mapping[str, Difference],
    *,
    attention: Sequence[str],
    data: str,
    text: MetricText,
    budget: str = "this budget",
    tuned: bool = False,
    idle: Sequence[str] = (),
) -> str:
    """The outcome in a few sentences.

    Args:
        to_none: differences to the network without attention, of attention variants and of the control.
        to_control: differences of attention variants to the control; empty without a control.
        attention: names of the attention variants.
        data: what the data is called.
        text: how values of the metric are written.
        budget: how long each run was, in words.
        tuned: whether every variant's learning rate was tuned.
        idle: variants whose blocks never took part; nothing is concluded about them.
    """
    taking_part = [name for name in attention if name not in idle]
    tried = [name for name in taking_part if name in to_none]
    slept = ""
    if idle:
        slept = (
            f"Nothing can be said about {_list(idle)}: {'its' if len(idle) == 1 else 'their'} blocks never took part "
            "(they change their input by less than 0.1 %); train longer, give them a higher rate, or another place."
        )
    if not tried:
        return slept or (
            f"Nothing can be said about {data}: no variant has finished a seed that the baseline has finished."
        )
    seeds = min(to_none[name].seeds for name in tried)
    if seeds < FEWEST_SEEDS:
        largest = max(tried, key=lambda name: abs(to_none[name].mean))
        found = f"{largest} {text.difference(to_none[largest].mean)} {text.unit}"
        return _joined(
            f"Too few seeds to say whether attention helps on {data}: {seeds} where at least {FEWEST_SEEDS} are "
            f"needed. The largest difference so far is {found}.",
            slept,
        )
    helping = [name for name in tried if to_none[name].finding == "better"]
    hurting = [name for name in tried if to_none[name].finding == "worse"]
    beyond = [name for name in helping if name in to_control and to_control[name].finding == "better"]
    first = _finding(
        tried, helping, beyond, to_none, to_control, data=f"{data} after {budget}", seeds=seeds, text=text
    )
    return _joined(
        first,
        _resolution(to_none, tried, seeds, text),
        _only_better_than_none(helping, beyond),
        _hurting(hurting, to_none, text, tuned),
        _control(to_none, attention, text),
        slept,
    )


def _finding(
    tried: Sequence[str],
    helping: Sequence[str],
    beyond: Sequence[str],
    to_none: Mapping[str, Difference],
    to_control: Mapping[str, Difference],
    *,
    data: str,
    seeds: int,
    text: MetricText,
) -> str:
    """The first sentence: whether attention helps."""
    sign = 1 if text.higher_is_better else -1
    best = max(beyond or helping or tried, key=lambda name: sign * to_none[name].mean)
    shown = text.shown(best, to_none[best])
    if not helping:
        blocks = f"none of the {len(tried)} blocks is better" if len(tried) > 1 else f"{best} is not better"
        return (
            f"No evidence that attention helps on {data}: {blocks} than the same network without it, beyond what "
            f"chance explains over {seeds} seeds (largest difference: {shown})."
        )
    if beyond:
        return (
            f"Attention helps on {data}: {_list(beyond)} {_is(beyond)} better than the same network without it and "
            f"better than a plain convolution block of equal cost (best: {shown} over none, "
            f"{text.difference(to_control[best].mean)} {text.unit} over the control; {seeds} seeds)."
        )
    doubt = "; without a control this may be the added capacity alone."
    if to_control:
        doubt = ", but there is no evidence of an advantage over a plain convolution block of equal cost."
    return (
        f"On {data}, {_list(helping)} {_is(helping)} better than the same network without attention "
        f"(best: {shown}; {seeds} seeds){doubt}"
    )


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _resolution(to_none: Mapping[str, Difference], tried: Sequence[str], seeds: int, text: MetricText) -> str:
    """What this comparison could have found."""
    needed = seeds_needed(len(to_none))
    if seeds < needed:
        shown = f"{seeds} seeds cannot show it for {len(to_none)} variants at once, however large it is"
        return f"{shown}: use {needed} or more."
    smallest = max(detectable_difference(to_none[name], comparisons=len(to_none)) for name in tried)
    return f"It could have found a difference of {text.difference(smallest).lstrip('+')} {text.unit}."


def _only_better_than_none(helping: Sequence[str], beyond: Sequence[str]) -> str:
    others = [name for name in helping if name not in beyond] if beyond else []
    return f"Better than none, but not than the control: {_list(others)}." if others else ""


def _hurting(hurting: Sequence[str], to_none: Mapping[str, Difference], text: MetricText, tuned: bool) -> str:
    """Worse is said of a block only where tuning found no rate at which it is not; otherwise of the rate."""
    if not hurting:
        return ""
    sign = 1 if text.higher_is_better else -1
    worst = min(hurting, key=lambda name: sign * to_none[name].mean)
    most = "most: " if len(hurting) > 1 else ""
    where = "no attention" if tuned else "no attention at this learning rate (another may do better: tune)"
    return f"Worse than {where}: {_list(hurting)} ({most}{text.shown(worst, to_none[worst])})."


def _control(to_none: Mapping[str, Difference], attention: Sequence[str], text: MetricText) -> str:
    control = [name for name in to_none if name not in attention]
    if not control or to_none[control[0]].finding not in ("better", "worse"):
        return ""
    found = to_none[control[0]]
    return f"The control is itself {found.finding} than none ({text.shown('', found)})."


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
