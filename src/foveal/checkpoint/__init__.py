"""One safetensors file: the weights, and in its metadata the model, the insertion plan and what the user adds.

The metadata is JSON under the key ``foveal``: ``format`` (1), ``version`` of the library, ``model`` (``name`` and
``kwargs`` of `foveal.create_model`, or null), ``plan`` (the inserted blocks in order), ``changed`` (modules that were
replaced after `create_model`) and ``info``. Nothing in a file is executed: a pickle is refused unread, names are
looked up in fixed tables, and all shapes are compared with an empty network of the described kind before memory for
weights is taken.
"""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveal import __version__
from foveal.checkpoint.header import FORMAT, Header, kind_of, listed, read_header, state_dict_mismatch
from foveal.checkpoint.rebuild import entry, rebuild, refuse_other_plan, refuse_other_weights
from foveal.checkpoint.structure import changes, describe, state_of, unwrapped
from foveal.errors import FovealError
from foveal.files import utf8_path, write_bytes
from foveal.insertion import inserted, own_blocks
from foveal.insertion.own import BlockSource

__all__ = ["BlockSource", "listed", "load", "read_info", "save", "state_dict_mismatch", "unwrapped"]


def save(net: nn.Module, path: str | os.PathLike[str], **info: Any) -> None:
    """Write the network's weights with its model name and insertion plan to one safetensors file.

    The file appears whole or not at all: it is written beside its place and then renamed. What
    ``reset_classifier`` changed is recorded; where another module was replaced since `foveal.create_model`, the file
    says so, and `load` asks for a network that was changed in the same way.

    Args:
        net: any network; one made by `foveal.create_model` can later be rebuilt from the file alone. Wrappers are
            taken off (DataParallel, DistributedDataParallel, torch.compile, AveragedModel, timm's ModelEma).
        path: where to write; folders must exist.
        **info: JSON values to keep with the weights, such as ``classes=[...]`` or ``mean=(0.5, 0.5, 0.5)``. Those of
            a network that was loaded may no longer be true of it, and are kept where they are given again:
            ``**net.foveal_info``.

    Raises:
        FovealError: an option of an inserted block or a value of ``info`` is no JSON value.
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
    plan = [entry(one) for one in inserted(net)]
    description = {"format": FORMAT, "version": __version__, "plan": plan, "info": info}
    try:
        description["model"], description["changed"] = describe(net)
        text = json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FovealError(f"model arguments, block options and info must be JSON values: {error}") from error
    # a copy each: safetensors refuses tensors that share memory, and tied weights do
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state_of(net).items()
    }
    write_bytes(Path(path), to_bytes(tensors, metadata={"foveal": text}))


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    blocks: BlockSource | None = None,
) -> nn.Module:
    """Read a file written by `save`: rebuild the network, insert its blocks, load every weight strictly.

    Args:
        path: the file, or a repository that holds one: ``"hf-hub:user/name"`` or ``"hf-hub:user/name@revision"`` of the
            Hugging Face hub, or ``"local-dir:folder"``.
        net: a network to load into instead, which must have the file's blocks already and keeps its own dtypes; it
            is changed only if everything fits. Needed for networks not made by `foveal.create_model`, or changed
            since.
        blocks: for blocks that are not foveal's own: classes or factories by the name they were inserted by, or the
            Python file (or files) that defines them, which is run. A weights file names no file, and runs none.

    Returns:
        The network, on the CPU and in the file's dtypes if rebuilt, in train mode as newly built;
        ``net.foveal_info`` holds the info.

    Raises:
        FovealError: not a file of ours (a pickle is never opened), a plan or weights that do not fit the network
            (with the list of what would be lost), a block or model that is unknown here, or weights that are no
            finite numbers.
        FileNotFoundError: no such file.
        ConnectionError: the hub does not answer, and its file is not in the cache.
    """
    header = read_header(path)
    description = header.description
    rebuilt = net is None
    target = rebuild(header, own_blocks(blocks), path) if net is None else unwrapped(net)
    if not rebuilt:
        refuse_other_plan(target, description["plan"], path)
        refuse_other_weights(target, header, path)
        _refuse_other_modules(target, description, path)
    _refuse_other_kinds(target, header, path)
    from safetensors.torch import load_file

    with utf8_path(header.file) as name:
        state = load_file(name)
    broken = [n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    broken = [name for name in broken if name in dict(target.named_parameters())]
    if broken:
        raise FovealError(f"weights must be finite numbers, got others in {listed(broken)} of {path}")
    if rebuilt:
        _take_dtypes(target, state)
    target.load_state_dict(state, strict=True)
    for one in (target, net):
        if one is not None:
            one.foveal_info = description["info"]  # type: ignore[assignment]
    return target if net is None else net


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a file written by `save`, without reading weights.

    Returns:
        ``{"format", "version", "model", "plan", "changed", "info"}``.

    Raises:
        FovealError: not a file of ours.
        FileNotFoundError: no such file.
    """
    return read_header(path).description


def _refuse_other_modules(net: nn.Module, description: dict[str, Any], path: Any) -> None:
    """Raise where modules print otherwise than those the weights come from, though all shapes fit."""
    wrong = changes(net, description["changed"])
    model, own_changes = describe(net)
    if model is not None and model == description["model"]:
        named = {one["module"] for one in description["changed"]}
        wrong += [
            f"{one['module']}: {one['built']} in the file, {one['saved']} here"
            for one in own_changes
            if one["module"] not in named
        ]
    if wrong:
        raise FovealError(
            f"{path} and the network must have the same modules, though their weights fit, got {listed(wrong, 3)}"
        )


def _refuse_other_kinds(net: nn.Module, header: Header, path: Any) -> None:
    """Raise where a whole number, a truth value or a complex number would become a real one, or the reverse."""
    wrong = [
        f"{name} ({header.kinds[name]} instead of {kind_of(tensor.dtype)})"
        for name, tensor in net.state_dict().items()
        if header.kinds[name] != kind_of(tensor.dtype)
    ]
    if wrong:
        raise FovealError(f"{path} must hold numbers of the network's kind, got {listed(wrong)}")


def _take_dtypes(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every parameter and buffer the dtype it has in the file."""
    floating = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(floating) == 1:  # buffers outside the state dict, too
        net.to(floating.pop())
    modules = dict(net.named_modules())
    for name, tensor in state.items():
        holder, _, leaf = name.rpartition(".")
        module = modules[holder]
        parameter, buffer = module._parameters.get(leaf), module._buffers.get(leaf)
        if parameter is not None and parameter.dtype != tensor.dtype:
            parameter.data = parameter.data.to(tensor.dtype)
        elif buffer is not None and buffer.dtype != tensor.dtype:
            module._buffers[leaf] = buffer.to(tensor.dtype)
