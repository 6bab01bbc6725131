"""Where the object of an image is known to be: from its mask, or from its box."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor


def object_mask(batch: Mapping[str, Tensor]) -> Bool[Tensor, "b H W"] | None:
    """The objects of a batch as masks: ``mask`` where there is one, else the inside of ``box_xyxy``, else None.

    Example:
        >>> batch = {"image": torch.zeros(1, 3, 2, 2), "box_xyxy": torch.tensor([[0.0, 0.0, 1.0, 2.0]])}
        >>> object_mask(batch).tolist()
        [[[True, False], [True, False]]]
    """
    if "mask" in batch:
        return batch["mask"] != 0
    if "box_xyxy" not in batch:
        return None
    height, width = batch["image"].shape[2:]
    x1, y1, x2, y2 = batch["box_xyxy"][:, :, None, None].unbind(1)
    y = torch.arange(height, device=x1.device)[None, :, None] + 0.5
    x = torch.arange(width, device=x1.device)[None, None, :] + 0.5
    return (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
