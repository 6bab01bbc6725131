"""One run of a comparison, as plain values that can travel to another process or machine."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from foveal.compare.variants import Variant, build
from foveal.model_info import ModelInfo
from foveal.train.config import TrainConfig


@dataclass(frozen=True)
class Job:
    """What a worker needs to do one run.

    Attributes:
        variant: which network.
        config: how to train it; ``config.seed`` is the run's.
        info: classes and preprocessing.
        device: "cpu" or "cuda".
        norms: paths of norms whose scale starts at one, in every variant.
        keep_weights: whether the trained weights come back with the result.
        settings: everything the result depends on; kept with it.
        trial_share: for a trial of tuning, the share of the training images that are measured on; None for a run.
        only_time: whether a few steps are timed instead of a whole run.
    """

    variant: Variant
    config: TrainConfig
    info: ModelInfo
    device: str
    norms: list[str]
    keep_weights: bool
    settings: dict[str, Any]
    trial_share: float | None = None
    only_time: bool = False

    def timed(self) -> Job:
        """The job that times a few steps of this one."""
        return replace(self, only_time=True, keep_weights=False)

    @property
    def name(self) -> str:
        """What to call the run in messages."""
        return f"{self.variant.name}, seed {self.config.seed}"

    def build(self) -> nn.Module:
        """The initial network of this run."""
        return build(self.variant, self.config, self.info.classes, self.info.image_size, self.norms)

    @property
    def key(self) -> str:
        """The name of the run's files: readable, and different for different settings."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=8).hexdigest()
        readable = re.sub(r"[^\w.-]+", "-", self.variant.name).strip("-")[:100]
        return f"{readable}-seed{self.config.seed}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {
            "variant": asdict(self.variant),
            "config": self.config.to_dict(),
            "info": self.info.to_dict(),
            "device": self.device,
            "norms": self.norms,
            "keep_weights": self.keep_weights,
            "settings": self.settings,
            "trial_share": self.trial_share,
            "only_time": self.only_time,
        }

    @classmethod
    def from_dict(cls, job: dict[str, Any]) -> Job:
        """From such a line."""
        return cls(
            **{
                **job,
                "variant": Variant(**job["variant"]),
                "config": TrainConfig.from_dict(job["config"]),
                "info": ModelInfo.from_dict(job["info"]),
            }
        )
