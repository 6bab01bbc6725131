"""The parts of a data set that a run needs."""

from __future__ import annotations

from typing import Any

from foveal.data.dataset import few
from foveal.errors import FovealError
from foveal.tasks import Task
from foveal.train.config import TrainConfig
from foveal.train.network import data_options


def open_parts(config: TrainConfig, val: str = "val") -> dict[str, Any]:
    """The parts ``train`` and ``val`` of a config's data.

    Args:
        val: the split that is measured on.

    Raises:
        FovealError: a part cannot be opened or is empty, or the parts have different classes.
    """
    splits = {"train": "train", "val": val}
    data = {
        part: open_split(config.the_task, config.data, split, data_options(config))
        for part, split in splits.items()
    }
    classes = list(data["train"].classes)
    if list(data["val"].classes) != classes:
        differ = sorted(set(classes) ^ set(data["val"].classes))
        got = f"{few(differ)} in one only" if differ else f"{few(classes)} and {few(data['val'].classes)}"
        raise FovealError(f"training and validation data must have the same classes in one order, got {got}")
    trained_on = set(getattr(data["train"], "files", ()))
    if shared := sum(file in trained_on for file in getattr(data["val"], "files", ())):
        data["val"].notes.append(
            f"{shared} of the {len(data['val'])} {data['val'].called} of {val} are trained on, too: its figures say "
            "nothing about others"
        )
    choose = getattr(config.the_task, "choose_parts", None)
    data = data if choose is None else choose(data, config.options)
    for part, images in data.items():
        if len(images) == 0:
            raise FovealError(f"the data must hold at least 1 image for {part}, got 0 in {config.data}")
    return data


def open_split(task: Task, data: str, split: str, options: dict[str, Any]) -> Any:
    """One split of a data set, with options that a person typed.

    Raises:
        FovealError: as the task's ``open``, or the value of an option has the wrong type.
    """
    try:
        return task.open(data, split, options)
    except TypeError as error:
        raise FovealError(f"data_options must fit {data}, got {options}: {error}") from error
