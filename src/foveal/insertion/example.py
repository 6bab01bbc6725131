"""Running a network on an example that leaves no trace: which input it takes, and its state kept as it was."""

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion.hooks import require_module

CONTAINERS = (list, dict, OrderedDict, set, deque)
"""Types of attributes whose content a forward pass may change: queues, caches, counters by name."""


def example_inputs(net: nn.Module, example: Any = None) -> list[tuple[tuple, dict]]:
    """Positional and keyword arguments of one forward pass; several where more than one guess may be needed.

    ``example`` is a tensor, a tuple of arguments, or a dictionary of keyword arguments. Without it: the input
    size of ``net.default_cfg`` or ``pretrained_cfg`` (timm's, and ours), otherwise 224 x 224, for as many
    channels as the first convolution takes (or, where pixels are rearranged before it, as configured).
    """
    if isinstance(example, Mapping):
        return [((), dict(example))]
    if isinstance(example, (tuple, list)):
        return [(tuple(example), {})]
    if isinstance(example, Tensor):
        return [((example,), {})]
    if example is not None:
        raise FovealError(f"example must be a tensor, a tuple or a dictionary, got {type(example).__name__}")
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    config = getattr(net, "default_cfg", None) or getattr(net, "pretrained_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if first is not None and size and len(size) == first.weight.ndim - 1:
        configured, *spatial = size
    elif isinstance(first, nn.Conv2d):
        configured, *spatial = first.in_channels, 224, 224
    else:
        found = "none" if first is None else type(first).__name__
        raise FovealError(
            f"without example= or an input size in net.default_cfg the first convolution must be an "
            f"nn.Conv2d, got {found}; pass example=a tensor the network takes"
        )
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randn((1, channels, *spatial), generator=generator, device="cpu")
        for channels in dict.fromkeys((first.in_channels, configured))
    ]
    return [((image.to(first.weight.device, first.weight.dtype),), {}) for image in images]


def run(net: nn.Module, args: tuple, kwargs: dict, *, rule: str, hint: str = "") -> None:
    """Run the network; a failure becomes one line that opens with ``rule`` and says which input was tried."""
    try:
        net(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in((args, kwargs)))
        reason = (str(error).splitlines() or [""])[0]
        raise FovealError(f"{rule}, got {type(error).__name__} on input {shapes}: {reason}{hint}") from error


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings, lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_in(value)


@contextmanager
def preserve_state(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, autocast or compiled code inside; afterwards the network is as it was.

    Training flags, buffers, random state and the plain attributes of every module (counters, queues, caches) are
    put back.
    """
    # The flag itself is set, as eval() may be overridden and train() would thaw what a user froze.
    training = [(module, module.training) for module in net.modules()]
    restores = [_snapshot(module) for module in net.modules()]
    devices = {p.device.index for p in net.parameters() if p.device.type == "cuda"}
    try:
        for module, _ in training:
            module.training = False
        kinds = {p.device.type for p in net.parameters()} & {"cpu", "cuda"}
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([d for d in devices if d is not None]))
            stack.enter_context(torch.no_grad())
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            if compiled_parts(net):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for module, was in training:
            module.training = was
        for restore in restores:
            restore()


def compiled_parts(net: nn.Module) -> list[str]:
    """Names of the modules that torch.compile wraps or that were compiled in place; ``""`` is the network."""
    require_module(net)
    return [
        name
        for name, module in net.named_modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]


def _snapshot(module: nn.Module) -> Any:
    """A function that puts the module's buffers and plain attributes back."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    buffers = {} if scripted else dict(module._buffers)
    values = [(b, b.clone()) for b in module.buffers(recurse=False) if not b.is_meta and not _is_lazy(b)]
    if scripted:
        return lambda: _restore_values(values)
    torchs = vars(nn.Module()).keys()
    attributes = {name: value for name, value in vars(module).items() if name not in torchs}
    contents = {n: copy.copy(value) for n, value in attributes.items() if type(value) in CONTAINERS}
    values += [(t, t.clone()) for t in attributes.values() if isinstance(t, Tensor) and not t.is_meta]

    def restore() -> None:
        module._buffers.update(buffers)
        for name in [n for n in vars(module) if n not in torchs and n not in attributes]:
            del vars(module)[name]
        vars(module).update(attributes)
        for name, content in contents.items():
            held: Any = attributes[name]
            if isinstance(held, (list, deque)):
                held.clear()
                held.extend(content)
            else:
                held.clear()
                held.update(content)
        _restore_values(values)

    return restore


def _restore_values(values: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.shape == value.shape and not torch.equal(tensor, value):
                tensor.copy_(value)


def _is_lazy(tensor: Tensor) -> bool:
    return nn.parameter.is_lazy(tensor)
