"""What the instrument finds where the answer is known: an effect that must be there, and none where none can be.

Small comparisons on bundled data, with the same worker, pairing and test as the comparison that follows. Of images
there are two: in both DANet's channel attention sits after the second stage of a network that sees less of the image
than lies between a patch and the cue that names it; in one of them the cue is needed, in the other it says nothing. A
task whose inputs are no images has data of its own, ``checked_on``: the control, a plain convolution, must find there
what the block of its recipe cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from foveal.compare.conclusion import MetricText
from foveal.compare.language import Language
from foveal.compare.plan import Plan, plan_comparison
from foveal.compare.summary import paired_values
from foveal.statistics import FEWEST_SEEDS, Difference, differences_to
from foveal.tasks import task_named

CHECK_BLOCK = "channel@stage:2"
CHECKS = {"cue": "scenes:cue", "local": "scenes:local"}
"""Name of a check and its data: attention must help with the cue, and cannot without."""

OWN_LENGTH = 1000
"""Items of a task's own data for each part: enough for the convolution to answer all of them after one epoch."""


class Known(NamedTuple):
    """Which variant of which check is compared with none, and what that is called in sentences and results."""

    name: str
    check: str
    variant: str


@dataclass(frozen=True)
class SelfCheck:
    """What the checks found.

    Attributes:
        known: the effect that must be there, and the one that cannot be.
        there, absent: the differences to none that were found for these two.
        block: the block that was inserted, as a person would type it.
        accuracies: check -> variant -> mean accuracy.
        text: how values are written.
    """

    known: tuple[Known, Known]
    there: Difference
    absent: Difference
    block: str
    accuracies: dict[str, dict[str, float]]
    text: MetricText

    @property
    def found(self) -> bool:
        """Whether the effect was found where there is one."""
        return self.there.finding == "better"

    @property
    def quiet(self) -> bool:
        """Whether none was found where there is none."""
        return self.absent.finding != "better"

    @property
    def passed(self) -> bool:
        """Whether both came out as they must."""
        return self.found and self.quiet

    def sentence(self, lang: str = "en") -> str:
        """Both outcomes in a sentence or two."""
        say = Language(lang).say
        first, second = (
            say(
                f"check_{one.name}_{'right' if right else 'wrong'}",
                difference=self.text.difference(found.mean),
                none=self.text.value(self.accuracies[one.check]["none"]),
                block=self.text.value(self.accuracies[one.check][one.variant]),
                seeds=found.seeds,
            )
            for one, found, right in zip(
                self.known, (self.there, self.absent), (self.found, self.quiet), strict=True
            )
        )
        return say("joined", first=first, second=second) + ("" if self.passed else say("check_failed"))

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        there, absent = self.known
        return {
            "passed": self.passed,
            "block": self.block,
            there.name: asdict(self.there),
            absent.name: asdict(self.absent),
            "accuracies": self.accuracies,
        }


def check_plans(task: str, device: str) -> dict[str, Plan]:
    """The comparisons of which the answer is known, with the fewest seeds that can show anything."""
    common = {"accelerator": device, "channels_last": True}
    own = getattr(task_named(task), "checked_on", None)
    if own is not None:
        training = {"task": task, "data": own, "data_options": {"length": OWN_LENGTH}, **common}
        return {"control": plan_comparison(None, seeds=FEWEST_SEEDS, control=True, training=training)}
    return {
        name: plan_comparison(
            [CHECK_BLOCK], seeds=FEWEST_SEEDS, control=False, training={"data": data, **common}
        )
        for name, data in CHECKS.items()
    }


def summarise_check(plans: Mapping[str, Plan], runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> SelfCheck:
    """From the runs of all checks to what they found."""
    plan = next(iter(plans.values()))
    (block,) = (variant for variant in plan.variants if variant.attends)
    known = (Known("cue", "cue", block.name), Known("local", "local", block.name))
    if "control" in plans:
        known = (Known("control", "control", "control"), Known("attention", "control", block.name))
    values = {name: paired_values(plan, runs[name]) for name, plan in plans.items()}
    there, absent = (
        differences_to(values[one.check]["none"], {one.variant: values[one.check][one.variant]})[one.variant]
        for one in known
    )
    accuracies = {
        name: {variant: sum(v.values()) / len(v) for variant, v in found.items()}
        for name, found in values.items()
    }
    return SelfCheck(
        known, there, absent, block.insert or "", accuracies, MetricText.of(plan.job.config.the_task)
    )
