"""The outcome of a comparison in a sentence or two, and how values of a metric are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveal.compare.language import Language
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

    def shown(self, name: str, d: Difference, language: Language | None = None) -> str:
        """A difference with its interval and its p."""
        language = language or Language()
        ends = {"low": self.difference(d.low), "high": self.difference(d.high)}
        unit, p = self.unit_in(language), p_text(d.p_corrected)
        said = language.say(
            "shown",
            name=name,
            difference=self.difference(d.mean),
            unit=unit,
            p=p if p.startswith("<") else f"= {p}",
            **ends,
        )
        return said.strip()

    def unit_in(self, language: Language) -> str:
        """What a difference is counted in, in that language."""
        return language.say("points") if self.is_share else language.say("of_metric", metric=self.name)


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
    detect: float | None = None,
    lang: str = "en",
    network: str | None = None,
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
        detect: the difference that seeds were added for; None where their number was fixed.
        lang: "en" or "zh".
        network: where networks are compared instead of blocks in one, the name of that which the others are compared
            with.
    """
    return Verdict(
        to_none, to_control, attention, data, text, budget, tuned, idle, detect, Language(lang), network
    ).sentences()


@dataclass(frozen=True)
class Verdict:
    """What `conclude` was given; each function is one sentence, empty where it has nothing to say."""

    to_none: Mapping[str, Difference]
    to_control: Mapping[str, Difference]
    attention: Sequence[str]
    data: str
    text: MetricText
    budget: str
    tuned: bool
    idle: Sequence[str]
    detect: float | None
    language: Language
    network: str | None = None

    def sentences(self) -> str:
        """All of them."""
        slept, say = self.slept(), self.language.say
        if not self.tried:
            return slept or say("nothing_finished", data=self.data)
        if self.seeds < FEWEST_SEEDS:
            largest = max(self.tried, key=lambda name: abs(self.to_none[name].mean))
            few = say(
                "too_few_seeds" if self.network is None else "too_few_seeds_of_networks",
                data=self.data,
                seeds=self.seeds,
                needed=FEWEST_SEEDS,
                largest=largest,
                difference=self.text.difference(self.to_none[largest].mean),
                unit=self.unit,
            )
            return self.language.joined([few, slept])
        return self.language.joined(
            [
                self.finding(),
                self.smaller(),
                self.resolution(),
                self.others_better(),
                self.hurting(),
                self.control(),
                self.too_few(),
                slept,
            ]
        )

    @property
    def tried(self) -> list[str]:
        """Attention variants whose blocks took part, with seeds for a finding; where none has them, with any."""
        some = [name for name in self.attention if name not in self.idle and name in self.to_none]
        enough = [name for name in some if self.to_none[name].seeds >= FEWEST_SEEDS]
        return enough or some

    @property
    def seeds(self) -> int:
        """Seeds that each of them has finished."""
        return min(self.to_none[name].seeds for name in self.tried)

    @property
    def unit(self) -> str:
        """What differences are counted in."""
        return self.text.unit_in(self.language)

    def found(self, finding: str) -> list[str]:
        """The variants of a finding."""
        return [name for name in self.tried if self.to_none[name].finding == finding]

    @property
    def beyond(self) -> list[str]:
        """Variants that are better than none and than the control."""
        better = self.found("better")
        return [
            name for name in better if name in self.to_control and self.to_control[name].finding == "better"
        ]

    def shown(self, name: str) -> str:
        """A variant with its difference to none."""
        return self.text.shown(name, self.to_none[name], self.language)

    def finding(self) -> str:
        """The first sentence: whether attention helps, or another network is better."""
        helping, beyond, language = self.found("better"), self.beyond, self.language
        sign = 1 if self.text.higher_is_better else -1
        best = max(beyond or helping or self.tried, key=lambda name: sign * self.to_none[name].mean)
        values = {"data": self.data, "budget": self.budget, "seeds": self.seeds, "shown": self.shown(best)}
        if self.network is not None:
            values["network"] = self.network
        if not helping:
            if self.network is not None:
                return language.say("no_better_network", **values)
            return language.counted("no_evidence", len(self.tried), best=best, **values)
        names = beyond or helping
        values |= {"names": language.listed(names), "is_": language.counted("is", len(names))}
        if self.network is not None:
            return language.say("better_network", **values)
        if beyond:
            over = self.text.difference(self.to_control[best].mean)
            return language.say("helps", over_control=over, unit=self.unit, **values)
        return language.say("better_not_control" if self.to_control else "better_no_control", **values)

    def smaller(self) -> str:
        """Variants for which a difference that matters is excluded."""
        names = self.found("smaller")
        if not names or self.detect is None:
            return ""
        detect = self.text.difference(self.detect).lstrip("+")
        return self.language.say("smaller", detect=detect, unit=self.unit, names=self.language.listed(names))

    def resolution(self) -> str:
        """What this comparison could have found; where seeds were added until it was known, that is settled."""
        count, needed = len(self.to_none), seeds_needed(len(self.to_none))
        if self.detect is not None:
            return ""
        if self.seeds < needed:
            return self.language.say("cannot_show", seeds=self.seeds, count=count, needed=needed)
        smallest = max(detectable_difference(self.to_none[name], comparisons=count) for name in self.tried)
        if smallest == 0:
            # no spread to tell it from; without a difference, nothing that these images show was changed
            alike = all(self.to_none[name].mean == 0 for name in self.tried)
            return self.language.say("alike", baseline=self.network or "none") if alike else ""
        difference = self.text.difference(smallest).lstrip("+")
        return self.language.say("resolution", difference=difference, unit=self.unit)

    def others_better(self) -> str:
        """Variants that are better than none, but not than the control, where others are."""
        others = [name for name in self.found("better") if name not in self.beyond] if self.beyond else []
        return self.language.say("others_better", names=self.language.listed(others)) if others else ""

    def hurting(self) -> str:
        """Worse is said of a block only where tuning found no rate at which it is not; otherwise of the rate."""
        names = self.found("worse")
        if not names:
            return ""
        sign = 1 if self.text.higher_is_better else -1
        worst = min(names, key=lambda name: sign * self.to_none[name].mean)
        key = "worse" if self.tuned else "worse_at_rate"
        if self.network is not None:
            key = "worse_network"
        return self.language.say(
            key, network=self.network, names=self.language.listed(names), shown=self.shown(worst)
        )

    def control(self) -> str:
        """Whether the control itself differs from none."""
        control = [name for name in self.to_none if name not in self.attention]
        if not control or self.to_none[control[0]].finding not in ("better", "worse"):
            return ""
        found = self.to_none[control[0]]
        return self.language.say(f"control_{found.finding}", shown=self.text.shown("", found, self.language))

    def too_few(self) -> str:
        """Variants that lost so many runs that nothing is said about them."""
        names = [
            name
            for name in self.attention
            if name not in self.idle and name in self.to_none and name not in self.tried
        ]
        listed = self.language.listed(names) if names else ""
        return self.language.say("too_few_runs", names=listed, needed=FEWEST_SEEDS) if names else ""

    def slept(self) -> str:
        """Variants about which nothing can be said."""
        if not self.idle:
            return ""
        its = self.language.counted("its", len(self.idle))
        return self.language.say("inert", names=self.language.listed(list(self.idle)), its=its)


def p_text(p: float) -> str:
    """Example:
    >>> p_text(0.0391), p_text(0.4), p_text(0.00002)
    ('0.039', '0.40', '< 0.001')
    """
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
