"""What a network is: unwrapped, by the name and arguments that rebuild it, and where its modules differ from those."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion.hooks import require_module
from foveal.insertion.locate import own_modules
from foveal.models import create_model

EMA_WRAPPERS = ("ModelEma", "ModelEmaV2", "ModelEmaV3", "_FabricModule")
"""Class names of wrappers of timm and Lightning, which need not be imported for this."""
SHOWN = 100


def unwrapped(net: Any) -> nn.Module:
    """The network inside wrappers that rename it.

    Those are DataParallel, DistributedDataParallel, torch.compile, torch's AveragedModel, timm's ModelEma and
    Lightning Fabric's; what averages weights gives the averaged ones.
    """
    wrappers = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    while True:
        if hasattr(net, "_orig_mod"):
            net = net._orig_mod
        elif isinstance(net, wrappers) or type(net).__name__ in EMA_WRAPPERS:
            # timm's first ModelEma is no module, and calls what it holds `ema`
            net = net.module if isinstance(net, nn.Module) else net.ema
        else:
            require_module(net)
            return net


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """The network's state dict.

    Raises:
        FovealError: it holds something else than tensors, as that of quantised layers does.
    """
    state = net.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise FovealError(f"the state dict must hold tensors only, got {type(value).__name__} as {name}")
    return state


def describe(net: nn.Module) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    """The model's name and arguments, and the modules in which it differs from what they rebuild.

    A number of classes that was changed since (``reset_classifier``, another ``fc``) is found and recorded.

    Returns:
        ``{"name", "kwargs"}`` or None for a network not made by `create_model`; then one entry for each module
        that prints otherwise, with ``module``, ``saved`` and ``built``, inserted blocks and dropout left out.
    """
    recorded = getattr(net, "foveal_model", None)
    if recorded is None:
        return None, []
    name, kwargs = recorded["name"], recorded["kwargs"]
    own = dict(_lines(net))
    results = []
    for number in dict.fromkeys([kwargs.get("num_classes"), *_numbers_of_classes(net)]):
        tried = kwargs if number == kwargs.get("num_classes") else {**kwargs, "num_classes": number}
        try:
            changed = _difference(own, _built(json.dumps([name, tried])))
        except FovealError as error:
            changed = [{"module": "", "saved": type(net).__name__, "built": f"nothing ({error})"}]
        results.append(({"name": name, "kwargs": tried}, changed))
        if not changed:
            break
    return min(results, key=lambda result: len(result[1]))


def changes(net: nn.Module, changed: list[dict[str, str]]) -> list[str]:
    """Those of the changed modules of a file that ``net`` has not, in words."""
    own = dict(_lines(net))
    return [
        f"{one['module'] or 'the network'}: {one['saved']} in the file, {own.get(one['module'], 'nothing')} here"
        for one in changed
        if _harmless(own.get(one["module"], "nothing")) != _harmless(one["saved"])
    ]


def _numbers_of_classes(net: nn.Module) -> Iterator[int]:
    number = getattr(net, "num_classes", None)
    if isinstance(number, int):
        yield number
    if callable(classifier := getattr(net, "get_classifier", None)):
        try:
            last = classifier()
        except Exception:  # a classifier that was taken off by hand
            return
        for attribute in ("out_features", "out_channels"):
            if isinstance(number := getattr(last, attribute, None), int):
                yield number


def _lines(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Class and options of each module, without those of inserted blocks."""
    for name, module in own_modules(net):
        yield name, f"{type(module).__name__}({module.extra_repr()})"


@functools.lru_cache(maxsize=8)
def _built(model: str) -> dict[str, str]:
    """The lines of the network that a name and arguments, as JSON, rebuild."""
    name, kwargs = json.loads(model)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return dict(_lines(create_model(name, **kwargs)))


def _difference(own: dict[str, str], built: dict[str, str]) -> list[dict[str, str]]:
    changed = [
        {"module": name, "saved": own.get(name, "nothing"), "built": built.get(name, "nothing")}
        for name in {**own, **built}
        if _harmless(own.get(name, "nothing")) != _harmless(built.get(name, "nothing"))
    ]
    return changed[:SHOWN]


def _harmless(line: str) -> str:
    """The line without what changes no output in eval mode: dropout, momentum, in place, statistics shared in DDP."""
    if line == "nothing" or re.match(r"\w*(Drop|Identity|StochasticDepth)\w*\(", line):
        return "Identity"
    line = re.sub(r"^(Sync)?BatchNorm(\d?d)?(?=[A(])", "BatchNorm", line)
    line = re.sub(r"^(BatchNormAct)(\d?d)?", r"\1", line)
    return re.sub(r"(, )?(momentum|inplace)=[^,)]*", "", line)
