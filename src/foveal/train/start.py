"""A run that begins from weights trained before: what fits the new data is kept, the rest begins anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foveal.checkpoint import load
from foveal.checkpoint.header import Header, read_header
from foveal.checkpoint.rebuild import rebuild_for
from foveal.errors import FovealError
from foveal.hub import pinned
from foveal.insertion.own import own_blocks
from foveal.model_info import ModelInfo
from foveal.train.config import TrainConfig

SHOWN_CLASSES = 5


def with_start(config: TrainConfig) -> TrainConfig:
    """The config with the model and the options of the weights that it begins from, where it begins from any.

    Raises:
        FovealError: the weights are of another task, or the config asks for another network; or it names files of
            blocks and no weights that hold them.
        FileNotFoundError: there is no such file.
    """
    if config.from_weights is None:
        if config.blocks:
            raise FovealError(
                "blocks are the Python files of the weights of --from, which must be given with them, got "
                f"{', '.join(config.blocks)}; a block to insert is named by --insert"
            )
        return config
    header, info = _read(config.from_weights)
    if info.task != config.task:
        raise FovealError(
            f"the weights to begin from must be of task {config.task}, got {config.from_weights} of task {info.task}"
        )
    model = header.description["model"]
    if model is None:
        raise FovealError(
            f"the weights to begin from must name their model, got {config.from_weights}, whose network was not "
            "made by foveal.create_model"
        )
    options = {k: v for k, v in model["kwargs"].items() if k not in ("num_classes", "pretrained")}
    for name, given, own in (
        ("model", config.model, model["name"]),
        ("model_options", config.model_options, options),
    ):
        if given and given != own:
            raise FovealError(
                f"{name} must be that of {config.from_weights}, {own}, or left out, got {given}"
            )
    # a branch of a repository may move while the run lasts
    return replace(
        config, model=model["name"], model_options=options, from_weights=pinned(config.from_weights)
    )


def start_info(config: TrainConfig) -> ModelInfo:
    """What the weights that a config begins from say of themselves: their classes and preprocessing."""
    assert config.from_weights is not None
    return _read(config.from_weights)[1]


def network_from(config: TrainConfig, classes: Sequence[str]) -> nn.Module:
    """The network of the weights that a config begins from, with their blocks, for these classes.

    All weights are kept but those of the layers that have one row a class: of these the rows of classes that
    both know, by name. The other rows are initialised as in a new network, from torch's random state.

    Args:
        config: with ``from_weights``.
        classes: names in the order of the outputs.

    Returns:
        The network, in train mode on the CPU.

    Raises:
        FovealError: the file is none of ours, or is damaged.
    """
    path = config.from_weights
    assert path is not None
    header, info = _read(path)
    blocks = own_blocks(config.blocks)
    old = load(path, blocks=blocks)
    if list(classes) == info.classes:
        return old
    net = rebuild_for(header, len(classes), blocks, path)
    old_state, new_state = old.state_dict(), net.state_dict()
    mixed = {
        name: _rows_by_name(old_state[name], new_state[name], info.classes, classes)
        for name in _tensors_by_class(header, info, path, blocks)
    }
    net.load_state_dict({**old_state, **mixed})
    return net


def start_lines(config: TrainConfig, classes: Sequence[str]) -> list[str]:
    """What a run keeps of the weights that it begins from, and what is new, in words; nothing where it begins anew."""
    path = config.from_weights
    if path is None:
        return []
    header, info = _read(path)
    if list(classes) == info.classes:
        return [f"begins from {path}: all weights and classes are kept"]
    by_class = _tensors_by_class(header, info, path, own_blocks(config.blocks))
    layers = sorted({name.rpartition(".")[0] for name in by_class})
    both = [name for name in classes if name in info.classes]
    new = [name for name in classes if name not in info.classes]
    gone = [name for name in info.classes if name not in classes]
    counts = ", ".join(
        f"{_counted(names)} {what}"
        for names, what in ((both, "kept"), (new, "new"), (gone, "dropped"))
        if names
    )
    kept = f"{len(header.shapes) - len(by_class)} of {len(header.shapes)} tensors are kept"
    return [f"begins from {path}: {kept}; of {', '.join(layers)} {counts}"]


def _tensors_by_class(header: Header, info: ModelInfo, path: str, blocks: dict[str, Any]) -> list[str]:
    """Names of the tensors with a row a class: they would have another shape with one class more."""
    with torch.device("meta"):
        probe = rebuild_for(header, len(info.classes) + 1, blocks, path).state_dict()
    return [name for name, shape in header.shapes.items() if tuple(probe[name].shape) != shape]


def _read(path: str) -> tuple[Header, ModelInfo]:
    header = read_header(path)
    return header, ModelInfo.from_dict(header.description["info"], str(path))


def _rows_by_name(old: Tensor, new: Tensor, old_classes: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The new tensor with the old rows of classes that both know, and of what lies behind the classes."""
    mixed = new.clone()
    behind = len(old) - len(old_classes)
    if behind < 0 or len(new) != len(classes) + behind or old.shape[1:] != new.shape[1:]:
        return mixed
    for row, name in enumerate(classes):
        if name in old_classes:
            mixed[row] = old[old_classes.index(name)]
    if behind:
        mixed[-behind:] = old[-behind:]
    return mixed


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
    return f"{len(names)} class{'es' if len(names) != 1 else ''} ({shown})"
