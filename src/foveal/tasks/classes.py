"""Classes are matched by name, never by number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.errors import FovealError


def class_indices(theirs: Sequence[str], ours: Sequence[str]) -> Tensor:
    """Where each class of a data set stands among the network's.

    Raises:
        FovealError: the data have a class that the network does not know.

    Example:
        >>> class_indices(["dog"], ["cat", "dog"]).tolist()
        [1]
    """
    if list(theirs) == list(ours):
        return torch.arange(len(ours))
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise FovealError(
            f"the data's classes must be among the {len(ours)} of the weights, got {', '.join(unknown[:5])}{more}"
        )
    return torch.tensor([ours.index(name) for name in theirs])
