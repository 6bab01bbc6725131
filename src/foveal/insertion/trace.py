"""One forward pass of a network, watched: which module returned which feature map, and where maps are merged.

Nothing here knows a network family. Two watchers run together: hooks on every module note what it was given and
what it returned, and a ``TorchFunctionMode`` follows every tensor derived from the input through functions, so
that an addition written in a module's own ``forward`` is seen, and the longer of its two operands is known.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from foveal.errors import FovealError

RECORD = "foveal_insertion"
"""Attribute of an inserted block that holds what was asked for; its presence is what makes a block inserted."""

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
WEIGHTED = {f"conv{n}d" for n in (1, 2, 3)} | {f"conv_transpose{n}d" for n in (1, 2, 3)}
WEIGHTED |= {"linear", "bilinear", "multi_head_attention_forward", "scaled_dot_product_attention"}
SCALINGS = {"mul", "mul_", "multiply", "div", "div_", "true_divide"}
CHANNELS_SECOND = WEIGHTED - {"linear", "bilinear"} | {"batch_norm", "group_norm", "instance_norm"}
CHANNELS_LAST = {"linear", "bilinear", "layer_norm", "rms_norm"}
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}
RESHAPES = {"reshape", "view", "flatten", "unflatten", "_unsafe_view"}

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
    sources: frozenset[int]
    """Arguments (by number) of calls that it depends on."""
    axis: int | None
    """The dimension that holds channels, as far as the functions on the way tell."""


@dataclass(eq=False)
class Call:
    """One call of one module."""

    name: str
    module: nn.Module
    caller: "Call | None"
    given: tuple[Mark, ...]
    arguments: frozenset[int]
    """Numbers of its arguments, one each."""
    returned: Mark | None = None
    """None when it did not return one tensor that depends on the input."""
    shape: torch.Size | None = None
    """Shape of the returned tensor, with the batch."""
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    axis: int | None = None

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
    sources: frozenset[int]


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
    scaled: dict[Mark, Mark] = field(default_factory=dict)
    """From a value to the one it is a multiple of, by a factor that does not depend on the input."""
    example: tuple[tuple, dict] = ((), {})
    """Arguments the network was run on."""


class _Follow(TorchFunctionMode):
    """Follows tensors that depend on the input; holds none of them alive."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace
        self.facts = WeakIdKeyDictionary()
        self.stack: list[Call] = []
        self.hidden = 0  # inside an inserted block nothing is recorded, only followed
        self.numbers = itertools.count()

    def know(self, tensor: Tensor, **facts: Any) -> None:
        if tensor in self.facts:  # changed in place
            self.facts[tensor] = replace(self.facts[tensor], **facts)
        else:
            self.facts[tensor] = Fact(next(self.numbers), **facts)

    def mark(self, tensor: Tensor) -> Mark | None:
        fact = self.facts.get(tensor)
        return None if fact is None else (fact.serial, tensor._version)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        inputs = list(_tensors((args, kwargs)))
        # before the call, which may change an operand in place
        merge = self._merge(name, inputs)
        marks = [mark for t in inputs if (mark := self.mark(t)) is not None]
        shapes = [tuple(t.shape) for t in inputs if t in self.facts]
        out = func(*args, **kwargs)
        self._derive(out, inputs, name, merge, args)
        if name in SCALINGS and len(marks) == 1 and isinstance(out, Tensor) and tuple(out.shape) == shapes[0]:
            scaled = self.mark(out)
            assert scaled is not None
            self.trace.scaled[scaled] = marks[0]
        return out

    def _derive(
        self, out: Any, inputs: list[Tensor], name: str, merge: frozenset[int] = frozenset(), args: tuple = ()
    ) -> None:
        known = [(t, self.facts[t]) for t in inputs if t in self.facts]
        if not known:
            return
        facts = [fact for _, fact in known]
        depth = max(fact.depth for fact in facts) + (name in WEIGHTED)
        merges = merge.union(*(fact.merges for fact in facts))
        sources = frozenset().union(*(fact.sources for fact in facts))
        for tensor in _tensors(out):
            axis = _channel_axis(name, tensor, known, args)
            self.know(tensor, depth=depth, merges=merges, sources=sources, axis=axis)

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
            operands.append(Operand((fact.serial, tensor._version), fact.depth, fact.merges, fact.sources))
        merge = Merge(len(self.trace.merges), kind, self.stack[-1], tuple(operands))
        self.trace.merges.append(merge)
        return frozenset({merge.index})

    def enter(self, name: str, module: nn.Module, given: Any) -> None:
        if hasattr(module, RECORD):
            self.hidden += 1
        if self.hidden:
            return
        tensors = [t for t in _tensors(given) if t in self.facts]
        numbers = []
        for tensor in tensors:
            numbers.append(next(self.numbers))
            fact = self.facts[tensor]
            self.facts[tensor] = replace(fact, sources=fact.sources | {numbers[-1]})
        marks = tuple((self.facts[t].serial, t._version) for t in tensors)
        caller = self.stack[-1] if self.stack else None
        self.stack.append(Call(name, module, caller, marks, frozenset(numbers)))

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
                self._derive(output, list(_tensors(given)), "scripted")
            call.returned = self.mark(output)
            if call.returned is not None:
                call.shape, call.dtype, call.device = output.shape, output.dtype, output.device
                call.axis = self.facts[output].axis
        self.trace.calls.append(call)


def _channel_axis(name: str, out: Tensor, known: list[tuple[Tensor, Fact]], args: tuple) -> int | None:
    """The dimension of ``out`` that holds channels, or None where that cannot be told."""
    if name in CHANNELS_SECOND or "pool" in name:
        return 1
    if name in CHANNELS_LAST:
        return out.ndim - 1
    # an operand of the result's own shape tells more than a gate that is spread over it
    told = [(t, fact.axis) for t, fact in known if fact.axis is not None]
    told.sort(key=lambda pair: pair[0].shape != out.shape)
    if not told:
        return None
    tensor, axis = told[0]
    if name in MOVES:  # done again on a shape whose entries are the dimensions' numbers
        moved = torch.empty(tuple(range(1, tensor.ndim + 1)), device="meta")
        return list(getattr(moved, name)(*args[1:]).shape).index(axis + 1)
    if name in RESHAPES:
        channels = tensor.shape[axis]
        if axis == tensor.ndim - 1 and out.ndim and out.shape[-1] == channels:
            return out.ndim - 1
        return 1 if axis == 1 and out.ndim > 1 and out.shape[1] == channels else None
    return axis if out.ndim == tensor.ndim else None


def trace(net: nn.Module, example: Any = None) -> Trace:
    """Run ``net`` once on ``example`` and return what happened. The network is left as it was.

    The pass is in eval mode and without gradients; training flags, random state and parameters are restored.

    Raises:
        ValueError: if the forward pass fails, or no example is given and none can be derived.
    """
    tried = example_inputs(net, example)
    for i, (args, kwargs) in enumerate(tried):
        try:
            return _trace(net, args, kwargs)
        except ValueError:
            if i == len(tried) - 1:
                raise
    raise AssertionError


def _trace(net: nn.Module, args: tuple, kwargs: dict) -> Trace:
    watched = Trace(example=(args, kwargs))
    follow = _Follow(watched)
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
            follow.know(tensor, depth=0, merges=frozenset(), sources=frozenset(), axis=1)
        rule = f"a forward pass of {type(net).__name__} must succeed on the example"
        run(net, args, kwargs, rule=rule, hint="; pass example=a tensor the network takes")
    return watched


def run(net: nn.Module, args: tuple, kwargs: dict, *, rule: str, hint: str = "") -> None:
    """Run the network; a failure becomes one line that opens with ``rule`` and says which input was tried."""
    try:
        net(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors((args, kwargs)))
        reason = (str(error).splitlines() or [""])[0]
        raise FovealError(f"{rule}, got {type(error).__name__} on input {shapes}: {reason}{hint}") from error


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
