"""One image through a network, with everything its attention sites received."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.look.recording import Recordings
from foveal.look.watching import watch


@torch.no_grad()
def predict_recorded(
    predictor: Predictor, view: UInt8[Tensor, "3 h w"], max_bytes: int = 2**28
) -> tuple[Any, Recordings]:
    """The network's answer for one view, and the recording of every attention site.

    Args:
        view: as `Predictor.view` gives it.
        max_bytes: most that the recording may hold.

    Raises:
        FovealError: the network has no attention site, and its task shows no attention of its own; or its answer is
            not finite.
    """
    required = not hasattr(predictor.task, "answer_sites")
    with watch(predictor.net, weights=predictor.name, max_bytes=max_bytes, required=required) as seen:
        prepared = predictor.prepare(view)[None].to(predictor.device)
        size = (view.shape[-2], view.shape[-1])
        (answer,) = predictor.task.predict(predictor.net, prepared, [size], predictor.info)
    if not all(math.isfinite(share) for _, share in answer.labels):
        raise FovealError(
            f"the network must answer with finite numbers, got nan or infinite ones from {predictor.name}; "
            "its weights are damaged or too large"
        )
    return answer, seen
