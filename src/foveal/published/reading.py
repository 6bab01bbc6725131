"""Open a file of somebody else's weights without running anything in it."""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.checkpoint import listed
from foveal.errors import FovealError
from foveal.files import utf8_path

WRAPPERS = (
    "state_dict", "model", "model_state_dict", "model_state", "net", "module", "weights", "params", "checkpoint",
)  # fmt: skip
EMA_WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema",
)  # fmt: skip
EMA_PREFIXES = ("ema_model.", "model_ema.", "ema.")
PREFIXES = (
    "module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.", "online_model.", "net.", "network.", "backbone.",
    "encoder_q.",
)  # fmt: skip
NO_WEIGHTS = (
    r"n_averaged|queue(_ptr)?|initted|step|decay|num_updates"
    r"|(criterion|loss\w*|metrics?|(train|val|valid|test)_\w+)\..+"
)
"""Names that training leaves beside a network's: of averages, of MoCo, of losses and metrics in a Lightning module."""


class Arguments:
    """What stands for an ``argparse.Namespace``, which training scripts keep beside the weights."""


class StateDict(dict[str, Tensor]):
    """Tensors by name, and in ``notes`` what was chosen or left out on the way to them."""

    def __init__(self, tensors: Mapping[str, Tensor], notes: list[str]):
        super().__init__(tensors)
        self.notes = notes


def read(path: str | os.PathLike[str], ema: bool | None = None) -> StateDict:
    """The state dict in a safetensors file or PyTorch checkpoint, without its wrappers and shared prefixes.

    Args:
        path: the file.
        ema: whether to take the averaged weights; must be stated where the file holds both.

    Checkpoints are read with ``weights_only=True`` (the arguments of a training script, an ``argparse.Namespace``, are
    passed over) and, in the format of PyTorch 1.6 and later, mapped instead of
    copied into memory.

    Raises:
        ValueError: no such file format, a broken file, a checkpoint that would have to run code, or one without
            tensors.
        FileNotFoundError: no such file.

    Example:
        >>> import torch
        >>> torch.save({"epoch": 3, "state_dict": {"module.fc.bias": torch.zeros(2)}}, "in.pth")
        >>> read("in.pth")
        {'fc.bias': tensor([0., 0.])}
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if not start:
        raise FovealError(f"the file must hold weights, got an empty file: {path}")
    if start[8:] == b"{":
        content = _safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        content = _checkpoint(path, zipped=start.startswith(b"PK"))
    else:
        raise FovealError(f"the file must be safetensors or a PyTorch checkpoint, got neither in {path}")
    try:
        return unwrap_state_dict(content, ema)
    except ValueError as error:
        raise FovealError(f"{error}, in {path}") from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with utf8_path(path) as name:
            return load_file(name)
    except SafetensorError as error:
        raise FovealError(f"the file must be whole, got {error} in {path}") from None


def _checkpoint(path: Path, zipped: bool) -> Any:
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                # mapped storages are read where they lie, and a compressed one could be of any size
                stored = all(one.compress_type == zipfile.ZIP_STORED for one in archive.infolist())
        except zipfile.BadZipFile as error:
            raise FovealError(f"the file must be whole, got {error} in {path}") from None
        if not stored:
            raise FovealError(f"a checkpoint must be stored uncompressed, got a compressed zip in {path}")
    try:
        # the reader warns of pickles that are not PyTorch's
        with (
            utf8_path(path) as name,
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([(Arguments, "argparse.Namespace")]),
        ):
            return torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError:
        raise
    except Exception as error:  # a hostile or broken pickle may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        needed = re.search(r"(?:Unsupported global: )?GLOBAL ([\w.]+)", text)
        if needed or "Unsupported" in text or "TorchScript" in text:
            holds = f"{needed[1]} in it" if needed else "code in it"
            raise FovealError(
                f"a checkpoint must hold tensors and plain values alone, got {holds}, which could run "
                f"code and is not opened: {path}; where you trust its origin, load it once with "
                "torch.load(path, weights_only=False) and torch.save its state dict alone"
            ) from None
        raise FovealError(f"the file must be a whole checkpoint, got {text[:160]} in {path}") from None


def unwrap_state_dict(content: Any, ema: bool | None = None) -> StateDict:
    """The tensors by name: out of ``state_dict`` or ``model``, also nested, without prefixes that all names share.

    Raises:
        FovealError: no tensors there, something else among them, or raw and averaged weights and ``ema`` unstated.
    """
    if isinstance(content, StateDict) and ema is None:
        return content
    notes: list[str] = []
    averaged, seen = None, set()
    while isinstance(content, Mapping):
        if id(content) in seen:
            raise FovealError("a checkpoint must end in a state dict, got a dictionary that holds itself")
        seen.add(id(content))
        raw = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        means = [key for key in EMA_WRAPPERS if isinstance(content.get(key), Mapping)]
        if raw and means and ema is None:
            raise FovealError(
                f"ema must be stated, as there are raw weights ({raw[0]}) and averaged ones ({means[0]}); pass "
                "ema=True or ema=False, on the command line --ema true or --ema false"
            )
        if means and (ema or not raw):
            if ema is False:
                raise FovealError(
                    f"there must be raw weights with ema=False, got averaged ones ({means[0]}) alone"
                )
            averaged = means[0]
            notes.append(f"averaged weights ({averaged})")
            content = content[averaged]
        elif raw:
            if means:
                notes.append(f"raw weights ({raw[0]}), not the averaged ones ({means[0]})")
            elif len(raw) > 1:
                notes.append(f"the weights under {raw[0]}, not those under {', '.join(raw[1:])}")
            content = content[raw[0]]
        else:
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        keys = listed(map(str, content)) or "none" if isinstance(content, Mapping) else None
        held = f"the keys {keys}" if keys else type(content).__name__
        raise FovealError(
            f"there must be a state dict, at the top or under {', '.join(WRAPPERS)}, got {held}"
        )
    state = {str(name): value for name, value in content.items()}
    foreign = [f"{k} ({type(v).__name__})" for k, v in state.items() if not _dense(v)]
    if foreign:
        raise FovealError(f"a state dict must hold dense tensors alone, got {listed(foreign)}")
    if averaged is None:
        state, averaged = _raw_or_averaged(state, ema, notes)
    if ema and averaged is None:
        raise FovealError(
            f"there must be averaged weights with ema=True, under {', '.join(EMA_WRAPPERS)}, got none"
        )
    while prefix := _shared_prefix(state):
        left = [name for name in state if not name.startswith(prefix)]
        if left:
            notes.append(f"left out {len(left)} that are no weights of a network: {listed(left)}")
        state = {name.removeprefix(prefix): value for name, value in state.items() if name not in left}
    return StateDict(state, notes)


def _raw_or_averaged(
    state: dict[str, Tensor], ema: bool | None, notes: list[str]
) -> tuple[dict[str, Tensor], str | None]:
    """The half of a state dict that was asked for, where it holds a network twice: ``model.`` and ``ema_model.``.

    Returns:
        The tensors, and the prefix of the averaged ones where these were taken.
    """
    prefix = next((one for one in EMA_PREFIXES if any(name.startswith(one) for name in state)), None)
    if prefix is None:
        return state, None
    raw = {name: value for name, value in state.items() if not name.startswith(prefix)}
    if not any(not re.fullmatch(NO_WEIGHTS, name) for name in raw):
        raw = {}
    if raw and ema is None:
        raise FovealError(
            f"ema must be stated, as there are raw weights ({next(iter(raw))}) and averaged ones ({prefix}); pass "
            "ema=True or ema=False, on the command line --ema true or --ema false"
        )
    if ema or not raw:
        if ema is False:
            raise FovealError(f"there must be raw weights with ema=False, got averaged ones ({prefix}) alone")
        notes.append(f"averaged weights ({prefix})")
        return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}, prefix
    notes.append(f"raw weights ({next(iter(raw))}), not the averaged ones ({prefix})")
    return raw, None


def _shared_prefix(state: Mapping[str, Tensor]) -> str | None:
    """The known prefix of all names, those aside that are no weights of a network."""
    names = [name for name in state if not re.fullmatch(NO_WEIGHTS, name)]
    return next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None)


def _dense(value: Any) -> bool:
    """A tensor that holds as many values as it says: one with strides of 0 could claim any size."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.is_meta or value.numel() * value.element_size() <= value.untyped_storage().nbytes()
