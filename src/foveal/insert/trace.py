"""One forward pass of a network, watched: which module returned which feature map, and where maps are merged.

Nothing here knows a network family. Two watchers run together: hooks on every module note what it was given and
what it returned, and a ``TorchFunctionMode`` follows every tensor derived from the input through functions, so
that an addition written in a module's own ``forward`` is seen, and the longer of its two operands is known.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

RECORD = "foveal_insertion"
"""Attribute of an inserted block that holds what was asked for; its presence is what makes a block inserted."""

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
WEIGHTED = {f"conv{n}d" for n in (1, 2, 3)} | {f"conv_transpose{n}d" for n in (1, 2, 3)}
WEIGHTED |= {"linear", "bilinear", "multi_head_attention_forward", "scaled_dot_product_attention"}

Mark = tuple[int, int]
"""A value of a tensor: its serial number in the trace and its version, which every in-place change raises."""


@dataclass
class Fact:
    """What is known of a tensor that depends on the network's input."""

    serial: int
    depth: int
    """Convolutions and linear layers on the longest path from the input."""
    merges: frozenset[int]
    """Merges (by index) that its value depends on."""


@dataclass(eq=False)
class Call:
    """One call of one module."""

    name: str
    module: nn.Module
    caller: "Call | None"
    given: tuple[Mark, ...]
    returned: Mark | None = None
    """None when it did not return one tensor that depends on the input."""
    shape: torch.Size | None = None
    """Shape of the returned tensor, with the batch."""
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @property
    def passes_through(self) -> bool:
        """Whether it returned the very tensor it was given, unchanged (Identity; drop path in eval mode)."""
        return self.returned in self.given

    @property
    def is_feature_map(self) -> bool:
        """Whether it returned one floating tensor (b, c, *spatial) with one to three spatial dimensions."""
        return (
            self.shape is not None
            and 3 <= len(self.shape) <= 5
            and self.dtype is not None
            and self.dtype.is_floating_point
        )


@dataclass(frozen=True)
class Operand:
    mark: Mark
    depth: int
    merges: frozenset[int]


@dataclass(frozen=True)
class Merge:
    """Feature maps added (``kind="add"``) or concatenated (``"cat"``) in the own forward of ``call.module``."""

    index: int
    kind: str
    call: Call
    operands: tuple[Operand, ...]


@dataclass
class Trace:
    """Calls in the order they ended and merges in the order they happened."""

    calls: list[Call] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    root: Call | None = None


class _Follow(TorchFunctionMode):
    """Follows tensors that depend on the input; holds none of them alive."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace
        self.facts = WeakIdKeyDictionary()
        self.stack: list[Call] = []
        self.hidden = 0  # inside an inserted block nothing is recorded, only followed
        self.serials = 0

    def know(self, tensor: Tensor, depth: int, merges: frozenset[int]) -> Fact:
        fact = self.facts.get(tensor)
        if fact is None:
            self.serials += 1
            fact = self.facts[tensor] = Fact(self.serials, depth, merges)
        else:  # changed in place
            fact.depth, fact.merges = depth, merges
        return fact

    def mark(self, tensor: Tensor) -> Mark | None:
        fact = self.facts.get(tensor)
        return None if fact is None else (fact.serial, tensor._version)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute: .shape, .T, .grad_fn
            return self._derive(func(*args, **kwargs), list(_tensors((args, kwargs))), name)
        inputs = list(_tensors((args, kwargs)))
        merge = self._merge(name, inputs)  # before the call, which may change an operand in place
        return self._derive(func(*args, **kwargs), inputs, name, merge)

    def _derive(self, out: Any, inputs: list[Tensor], name: str, merge: frozenset[int] = frozenset()) -> Any:
        facts = [fact for t in inputs if (fact := self.facts.get(t)) is not None]
        if facts:
            depth = max(fact.depth for fact in facts) + (name in WEIGHTED)
            merges = merge.union(*(fact.merges for fact in facts))
            for tensor in _tensors(out):
                self.know(tensor, depth, merges)
        return out

    def _merge(self, name: str, inputs: list[Tensor]) -> frozenset[int]:
        """Record an addition or a concatenation of feature maps; its index, or nothing."""
        if name not in ADDITIONS | CONCATENATIONS or self.hidden or not self.stack:
            return frozenset()
        if not all(t in self.facts and t.ndim >= 3 for t in inputs):
            return frozenset()
        kind = "add" if name in ADDITIONS else "cat"
        if kind == "add" and (len(inputs) != 2 or inputs[0].shape != inputs[1].shape):
            return frozenset()
        operands = []
        for tensor in inputs:
            fact = self.facts[tensor]
            operands.append(Operand((fact.serial, tensor._version), fact.depth, fact.merges))
        merge = Merge(len(self.trace.merges), kind, self.stack[-1], tuple(operands))
        self.trace.merges.append(merge)
        return frozenset({merge.index})

    def enter(self, name: str, module: nn.Module, given: Any) -> None:
        if hasattr(module, RECORD):
            self.hidden += 1
        if self.hidden:
            return
        marks = tuple(m for t in _tensors(given) if (m := self.mark(t)) is not None)
        self.stack.append(Call(name, module, self.stack[-1] if self.stack else None, marks))

    def leave(self, module: nn.Module, given: Any, output: Any) -> None:
        if hasattr(module, RECORD):
            self.hidden -= 1
            return
        if self.hidden:
            return
        call = self.stack.pop()
        if isinstance(output, Tensor):
            if (
                output not in self.facts
            ):  # made where functions cannot be followed, such as a scripted function
                self._derive(output, list(_tensors(given)), "linear")
            call.returned = self.mark(output)
            if call.returned is not None:
                call.shape, call.dtype, call.device = output.shape, output.dtype, output.device
        self.trace.calls.append(call)
        if call.caller is None:
            self.trace.root = call


def trace(net: nn.Module, example: Any = None, *, asker: str = "trace") -> Trace:
    """Run ``net`` once on ``example`` and return what happened. The network is left as it was.

    The pass is in eval mode and without gradients; training flags, random state and parameters are restored.

    Raises:
        ValueError: if the forward pass fails, or no example is given and none can be derived.
    """
    watched = Trace()
    follow = _Follow(watched)
    args, kwargs = example_input(net, example, asker=asker)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(net))
        for name, module in net.named_modules():

            def enter(module, args, kwargs, name=name):
                follow.enter(name, module, (args, kwargs))

            def leave(module, args, kwargs, output):
                follow.leave(module, (args, kwargs), output)

            handles = (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            )
            for handle in handles:
                stack.callback(handle.remove)
        stack.enter_context(follow)
        for tensor in _tensors((args, kwargs)):
            follow.know(tensor, 0, frozenset())
        run(net, args, kwargs, asker=asker)
    return watched


def run(net: nn.Module, args: tuple, kwargs: dict, *, asker: str) -> None:
    """Run the network; a failure becomes one line that says which input was tried."""
    try:
        net(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors((args, kwargs)))
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{asker}: a forward pass of {type(net).__name__} must succeed on the example, "
            f"got {type(error).__name__} on input {shapes}: {reason}; pass example=a tensor the network takes"
        ) from error


def example_input(net: nn.Module, example: Any = None, *, asker: str) -> tuple[tuple, dict]:
    """Positional and keyword arguments of one forward pass.

    ``example`` is a tensor, a tuple of arguments, or a dictionary of keyword arguments. Without it: the input
    size of ``net.default_cfg`` or ``pretrained_cfg`` (timm), otherwise 224 x 224, for as many channels as the
    first convolution takes.
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if isinstance(example, Tensor):
        return (example,), {}
    if example is not None:
        raise ValueError(
            f"{asker}: example must be a tensor, a tuple or a dictionary, got {type(example).__name__}"
        )
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    config = getattr(net, "default_cfg", None) or getattr(net, "pretrained_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if first is None or not isinstance(first, nn.Conv2d):
        found = "none" if first is None else type(first).__name__
        raise ValueError(
            f"{asker}: without example= the first convolution must be an nn.Conv2d, got {found}; "
            "pass example=a tensor the network takes"
        )
    spatial = tuple(size)[-2:] if size else (224, 224)
    weight = first.weight
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, first.in_channels, *spatial), generator=generator)
    return (image.to(weight.device, weight.dtype),), {}


@contextmanager
def undisturbed(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients or autocast inside; training flags and random state as before afterwards."""
    # The flag itself is set, as eval() may be overridden and train() would thaw what a user froze.
    training = [(module, module.training) for module in net.modules()]
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
            yield
    finally:
        for module, was in training:
            module.training = was


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)
