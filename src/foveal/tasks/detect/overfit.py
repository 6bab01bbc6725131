"""A few images to train and to evaluate on, to see whether everything can be learned at all."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class FirstItems(Dataset):
    """The first items of a data set that have an object, and all else of it.

    Args:
        data: the data set.
        count: how many items, at most all there are.
    """

    augment = False

    def __init__(self, data: Any, count: int) -> None:
        self.data = data
        self.indices = [i for i in range(min(len(data), 16 * count)) if len(data[i]["labels"])][:count]
        self.classes = data.classes
        self.fingerprint = f"{getattr(data, 'fingerprint', None)} {self.indices}"
        self.notes = [
            *getattr(data, "notes", []),
            f"overfit: trained and evaluated on {len(self.indices)} images alone",
        ]
        self.left_out: dict[str, str] = getattr(data, "left_out", {})
        self.category_ids = getattr(data, "category_ids", None)

    @property
    def skipped(self) -> dict[str, str]:
        return self.data.skipped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[self.indices[index]]
