"""One safetensors file: the weights, and in its metadata the model, the insertion plan and what the user adds.

The metadata is JSON under the key ``foveal``: ``format`` (1), ``version`` of the library, ``model`` (``name`` and
``kwargs`` of `foveal.create_model`, or null), ``plan`` (the inserted blocks in order) and ``info``. Nothing in a
file is executed: a pickle is refused unread, names are looked up in fixed tables, and all shapes are compared
with an empty network of the described kind before memory for weights is taken.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal import __version__
from foveal.errors import FovealError
from foveal.files import write_bytes
from foveal.insertion import Insertion, inserted, remove
from foveal.insertion.build import build, resolve
from foveal.insertion.hooks import attach
from foveal.models import READS_FILES, create_model

FORMAT = 1
PLAN_KEYS = ("site", "path", "block", "options", "start", "channels", "dims", "before")


def save(net: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Write the network's weights with its model name and insertion plan to one safetensors file.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Args:
        net: any network; one made by `foveal.create_model` can later be rebuilt from the file alone.
        path: where to write; folders must exist.
        **info: JSON values to keep with the weights, such as ``classes=[...]`` or ``mean=(0.5, 0.5, 0.5)``.

    Raises:
        ValueError: an option of an inserted block or a value of ``info`` is no JSON value.
        OSError: no space, no permission, no such folder; nothing is left behind.

    Example:
        >>> import foveal, tempfile, pathlib
        >>> net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=2), "se", reduction=4)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> foveal.save(net, path, classes=["cat", "dog"])
        >>> foveal.load(path).foveal_info
        {'classes': ['cat', 'dog']}
    """
    from safetensors.torch import save as to_bytes

    net = unwrapped(net)
    plan = [_entry(one) for one in inserted(net)]
    described = {
        "format": FORMAT,
        "version": __version__,
        "model": getattr(net, "foveal_model", None),
        "plan": plan,
        "info": info,
    }
    try:
        text = json.dumps(described, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FovealError(f"model arguments, block options and info must be JSON values: {error}") from error
    # a copy each: safetensors refuses tensors that share memory, and tied weights do
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _state(net).items()
    }
    write_bytes(Path(path), to_bytes(tensors, metadata={"foveal": text}))


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    blocks: Mapping[str, Callable[..., nn.Module]] | None = None,
) -> nn.Module:
    """Read a file written by `save`: rebuild the network, insert its blocks, load every weight strictly.

    Args:
        path: the file.
        net: a network to load into instead, which must have the file's blocks already; it is changed only if
            everything fits. Needed for networks not made by `foveal.create_model`.
        blocks: classes or factories by the name they were inserted by, for blocks that are not foveal's own.

    Returns:
        The network, on the CPU if rebuilt, in train mode as newly built; ``net.foveal_info`` holds the info.

    Raises:
        ValueError: not a file of ours (a pickle is never opened), a plan or weights that do not fit the network
            (with the list of what would be lost), or a block or model that is unknown here.
        FileNotFoundError: no such file.
    """
    described, shapes = _read_header(path)
    if net is None:
        net = _rebuild(described, shapes, dict(blocks or {}), path)
    else:
        _refuse_other_plan(net, described["plan"], path)
    _refuse_other_weights(net, shapes, path)
    from safetensors.torch import load_file

    net.load_state_dict(load_file(path), strict=True)
    net.foveal_info = described["info"]  # type: ignore[assignment]
    return net


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a file written by `save`, without reading weights.

    Returns:
        ``{"format", "version", "model", "plan", "info"}``.

    Raises:
        ValueError: not a file of ours.
        FileNotFoundError: no such file.
    """
    return _read_header(path)[0]


# --------------------------------------------------------------------------------------------------- writing


def unwrapped(net: nn.Module) -> nn.Module:
    """The network itself, of one that DistributedDataParallel or torch.compile wraps and renames."""
    while hasattr(net, "_orig_mod") or isinstance(net, nn.parallel.DistributedDataParallel):
        net = net._orig_mod if hasattr(net, "_orig_mod") else net.module  # type: ignore[assignment]
    return net


def _entry(one: Insertion) -> dict[str, Any]:
    return {key: getattr(one, key) for key in PLAN_KEYS}


def _plain(one: Insertion) -> dict[str, Any]:
    """As it comes back from a file, where a tuple among the options has become a list."""
    return json.loads(json.dumps(_entry(one)))


def _state(net: nn.Module) -> dict[str, torch.Tensor]:
    state = net.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise FovealError(f"the state dict must hold tensors only, got {type(value).__name__} as {name}")
    return state


# --------------------------------------------------------------------------------------------------- reading


def _read_header(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Metadata and shapes; safetensors holds the header to the file's size, and reads no weights here."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:
        start = file.read(9)
    # a header may be as long as a number that looks like a pickle's beginning, but then its brace follows
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{":
        raise FovealError(
            f"expected a safetensors file written by foveal.save, got a pickle in {path}, which can run code "
            "and is not opened; if you trust it, read it with torch.load(path, weights_only=True), load that into "
            "a network and write it with foveal.save"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FovealError(
            f"expected a safetensors file written by foveal.save, got {path}: {error}"
        ) from error
    try:
        described = json.loads(metadata["foveal"])
        well_formed = (
            described["format"] == FORMAT
            and isinstance(described["info"], dict)
            and (described["model"] is None or isinstance(described["model"]["kwargs"], dict))
            and isinstance(described["plan"], list)
            and all(set(entry) == set(PLAN_KEYS) for entry in described["plan"])
        )
    except (KeyError, TypeError, ValueError):
        well_formed, described = False, None
    if not well_formed or described is None:
        found = "metadata of another kind" if "foveal" in metadata else "no foveal metadata"
        raise FovealError(
            f"expected a safetensors file written by foveal.save (format {FORMAT}), got {found} in {path}"
        )
    return described, shapes


def _rebuild(
    described: dict[str, Any], shapes: dict[str, tuple[int, ...]], blocks: dict[str, Any], path: Any
) -> nn.Module:
    model = described["model"]
    if model is None:
        blocks_there = listed(f"{e['block']} at {e['site']}" for e in described["plan"]) or "none"
        raise FovealError(
            f"{path} does not name its model, as it was not made by foveal.create_model; pass net=a network "
            f"with the same blocks inserted ({blocks_there})"
        )
    refused = [key for key in model["kwargs"] if key.startswith(READS_FILES)]
    if refused:
        raise FovealError(
            f"a file may not make the library open other files, got {listed(refused)} in {path}"
        )
    with torch.device("meta"):  # takes no memory, whatever sizes the file asks for
        _refuse_other_weights(_assemble(model, described["plan"], blocks, path), shapes, path)
    return _assemble(model, described["plan"], blocks, path)


def _assemble(
    model: dict[str, Any], plan: list[dict[str, Any]], blocks: dict[str, Any], path: Any
) -> nn.Module:
    net = create_model(model["name"], **model["kwargs"])
    missing = list(plan)
    for one in inserted(net):  # blocks that are part of the named network
        entry = _plain(one)
        if entry in missing:
            missing.remove(entry)
        else:
            remove(net, one.path)
    modules = dict(net.named_modules())
    for entry in missing:
        if entry["site"] not in modules:
            raise FovealError(
                f"{model['name']} must have the site {entry['site']} of the plan in {path}, got none"
            )
        record = {key: entry[key] for key in ("block", "options", "start", "channels", "dims")}
        try:
            name, make, _ = resolve(entry["block"], blocks)
            module = build(
                name, make, entry["channels"], entry["dims"], entry["start"], dict(entry["options"])
            )
            attach(net, entry["site"], module, record, before=entry["before"], path=entry["path"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise FovealError(
                f"the plan in {path} must say how to rebuild {entry['block']!r} at {entry['site']}, "
                f"got: {reason}"
            ) from error
    return net


def _refuse_other_plan(net: nn.Module, plan: list[dict[str, Any]], path: Any) -> None:
    present = [_plain(one) for one in inserted(net)]
    lost = [e for e in plan if e not in present]
    extra = [e for e in present if e not in plan]
    if lost or extra:
        parts = []
        if lost:
            parts.append(f"the network lacks {listed(map(_spelled, lost))}, which would be lost")
        if extra:
            parts.append(f"the file lacks {listed(map(_spelled, extra))}, which would stay untrained")
        raise FovealError(
            f"{path} and the network must have the same inserted blocks, but {'; '.join(parts)}. "
            "Insert the same blocks first, or call foveal.load(path) without a network to rebuild it"
        )


def _refuse_other_weights(net: nn.Module, shapes: dict[str, tuple[int, ...]], path: Any) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    if wrong := misfit(shapes, own):
        raise FovealError(f"{path} must hold exactly the weights of {type(net).__name__}, got {wrong}")


def misfit(file: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Missing, unexpected and mis-shaped names of tensors in a file, or nothing."""
    shaped = [name for name, shape in expected.items() if file.get(name, shape) != shape]
    wrong = {
        "missing": [name for name in expected if name not in file],
        "unexpected": [name for name in file if name not in expected],
        "mis-shaped": [f"{name} ({file[name]} instead of {expected[name]})" for name in shaped],
    }
    return "; ".join(f"{kind}: {listed(names)}" for kind, names in wrong.items() if names)


def _spelled(entry: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in entry["options"].items())
    return f"{entry['block']}({options}) at {entry['site']}"


def listed(names: Iterable[str], shown: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
