"""What the instrument finds where the answer is known: an effect that must be there, and none where none can be.

Two small comparisons on bundled scenes, with the same worker, pairing and test as the comparison that follows. In both
DANet's channel attention sits after the second stage of a network that sees less of the image than lies between a patch
and the cue that names it; in one of them the cue is needed, in the other it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveal.compare.conclusion import MetricText
from foveal.compare.language import Language
from foveal.compare.plan import Plan, plan_comparison
from foveal.compare.summary import paired_values
from foveal.statistics import FEWEST_SEEDS, Difference, differences_to

CHECK_BLOCK = "channel@stage:2"
CHECKS = {"cue": "scenes:cue", "local": "scenes:local"}
"""Name of a check and its data: attention must help with the cue, and cannot without."""


@dataclass(frozen=True)
class SelfCheck:
    """What the two checks found.

    Attributes:
        cue: difference of the block to none where only attention can answer.
        local: the same where the answer is local.
        accuracies: check -> variant -> mean accuracy.
        text: how values are written.
    """

    cue: Difference
    local: Difference
    accuracies: dict[str, dict[str, float]]
    text: MetricText

    @property
    def found(self) -> bool:
        """Whether the effect was found where there is one."""
        return self.cue.finding == "better"

    @property
    def quiet(self) -> bool:
        """Whether none was found where there is none."""
        return self.local.finding != "better"

    @property
    def passed(self) -> bool:
        """Whether both checks came out as they must."""
        return self.found and self.quiet

    def sentence(self, lang: str = "en") -> str:
        """Both outcomes in a sentence or two."""
        say = Language(lang).say
        cue, local = (
            say(
                f"check_{name}_{'right' if right else 'wrong'}",
                difference=self.text.difference(found.mean),
                none=self.text.value(self.accuracies[name]["none"]),
                block=self.text.value(self.accuracies[name]["channel"]),
                seeds=found.seeds,
            )
            for name, found, right in (("cue", self.cue, self.found), ("local", self.local, self.quiet))
        )
        return say("joined", first=cue, second=local) + ("" if self.passed else say("check_failed"))

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "passed": self.passed,
            "block": CHECK_BLOCK,
            "cue": asdict(self.cue),
            "local": asdict(self.local),
            "accuracies": self.accuracies,
        }


def check_plans(device: str) -> dict[str, Plan]:
    """The two comparisons, with the fewest seeds that can show anything."""
    return {
        name: plan_comparison(
            [CHECK_BLOCK],
            seeds=FEWEST_SEEDS,
            control=False,
            training={"data": data, "accelerator": device, "channels_last": True},
        )
        for name, data in CHECKS.items()
    }


def summarise_check(plans: Mapping[str, Plan], runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> SelfCheck:
    """From the runs of both comparisons to what they found."""
    found, accuracies = {}, {}
    for name, plan in plans.items():
        values = paired_values(plan, runs[name])
        found[name] = differences_to(values["none"], {"channel": values["channel"]})["channel"]
        accuracies[name] = {variant: sum(v.values()) / len(v) for variant, v in values.items()}
    text = MetricText.of(next(iter(plans.values())).job.config.the_task)
    return SelfCheck(found["cue"], found["local"], accuracies, text)
