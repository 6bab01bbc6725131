"""One forward pass of a network, traced: which module returned which feature map, and where maps are merged.

Nothing here knows a network family. Two things work together: hooks on every module note what it was given and
what it returned, and a ``TorchFunctionMode`` tracks every tensor derived from the input through functions, so
that an addition written in a module's own ``forward`` is seen, and the longer of its two operands is known.
"""

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from foveal.errors import FovealError
from foveal.insertion.example import example_inputs, preserve_state, run, tensors_in
from foveal.insertion.hooks import RECORD, require_module

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
WEIGHTED = {f"conv{n}d" for n in (1, 2, 3)} | {f"conv_transpose{n}d" for n in (1, 2, 3)}
WEIGHTED |= {"linear", "bilinear", "multi_head_attention_forward", "scaled_dot_product_attention"}
SCALINGS = {"mul", "mul_", "multiply", "div", "div_", "true_divide"}
CHANNELS_SECOND = WEIGHTED - {"linear", "bilinear"} | {"batch_norm", "group_norm", "instance_norm"}
CHANNELS_LAST = {"linear", "bilinear", "layer_norm", "rms_norm"}
TRANSPOSITIONS = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}
RESHAPES = {"reshape", "view", "flatten", "unflatten", "_unsafe_view"}
SCRIPTED, SCRIPTED_LAYERS = "scripted", "scripted with parameters"
"""Stand for the names of functions inside TorchScript, which cannot be tracked."""

TensorId = tuple[int, int]
"""A value of a tensor: its serial number in the trace and its version, which every in-place change raises."""


@dataclass
class TensorInfo:
    """What is known of a tensor that depends on the network's input."""

    serial: int
    depth: int
    """Convolutions and linear layers on the longest path from the input."""
    merges: frozenset[int]
    """Merges (by index) that its value depends on."""
    sources: frozenset[int]
    """Arguments (by number) of calls that it depends on."""
    channel_axis: int | None
    """The dimension that holds channels, as far as the functions on the way tell."""
    changes: int = 0
    """In-place changes seen here; for tensors of inference mode, which count no versions themselves."""


@dataclass(eq=False)
class ModuleCall:
    """One call of one module."""

    name: str
    module: nn.Module
    caller: "ModuleCall | None"
    inputs: tuple[TensorId, ...]
    arguments: frozenset[int]
    """Numbers of its arguments, one each."""
    input_shape: torch.Size | None = None
    """Shape of the first tensor it was given, with the batch."""
    output: TensorId | None = None
    """None when it did not return one tensor that depends on the input."""
    shape: torch.Size | None = None
    """Shape of the returned tensor, with the batch."""
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    channel_axis: int | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it returned the very tensor it was given, unchanged (Identity; drop path in eval mode)."""
        return self.output in self.inputs

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
    """One operand of a merge."""

    tensor: TensorId
    depth: int
    merges: frozenset[int]
    sources: frozenset[int]


@dataclass(frozen=True)
class Merge:
    """Feature maps added (``kind="add"``) or concatenated (``"cat"``) in the own forward of ``call.module``."""

    index: int
    kind: str
    call: ModuleCall
    operands: tuple[Operand, ...]


@dataclass
class Trace:
    """Calls in the order they ended and merges in the order they happened."""

    calls: list[ModuleCall] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    scaled: dict[TensorId, TensorId] = field(default_factory=dict)
    """From a value to the one it is a multiple of, by a factor that does not depend on the input."""
    block_outputs: dict[nn.Module, list[TensorId | None]] = field(default_factory=dict)
    """What each inserted block returned, one entry a call."""
    example: tuple[tuple, dict] = ((), {})
    """Arguments the network was run on."""


class _TensorTracker(TorchFunctionMode):
    """Tracks tensors that depend on the input; holds none of them alive."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace
        self.infos = WeakIdKeyDictionary()
        self.stack: list[ModuleCall] = []
        # inside an inserted block nothing is recorded, only tracked
        self.blocks_entered = 0
        self.numbers = itertools.count()

    def track(self, tensor: Tensor, **known: Any) -> None:
        info = self.infos.get(tensor)
        if info is None:
            self.infos[tensor] = TensorInfo(next(self.numbers), **known)
        else:  # changed in place
            self.infos[tensor] = replace(info, changes=info.changes + 1, **known)

    def tensor_id(self, tensor: Tensor) -> TensorId | None:
        info = self.infos.get(tensor)
        if info is None:
            return None
        return info.serial, info.changes if tensor.is_inference() else tensor._version

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        inputs = list(tensors_in((args, kwargs)))
        # before the call, which may change an operand in place
        merge = self._merge(name, inputs)
        ids = [one for t in inputs if (one := self.tensor_id(t)) is not None]
        shapes = [tuple(t.shape) for t in inputs if t in self.infos]
        out = func(*args, **kwargs)
        self._derive(out, inputs, name, merge, args)
        if name in SCALINGS and len(ids) == 1 and isinstance(out, Tensor) and tuple(out.shape) == shapes[0]:
            scaled = self.tensor_id(out)
            assert scaled is not None
            self.trace.scaled[scaled] = ids[0]
        return out

    def _derive(
        self, out: Any, inputs: list[Tensor], name: str, merge: frozenset[int] = frozenset(), args: tuple = ()
    ) -> None:
        known = [(t, self.infos[t]) for t in inputs if t in self.infos]
        if not known:
            return
        infos = [info for _, info in known]
        depth = max(info.depth for info in infos) + (name in WEIGHTED or name == SCRIPTED_LAYERS)
        merges = merge.union(*(info.merges for info in infos))
        sources = frozenset().union(*(info.sources for info in infos))
        for tensor in tensors_in(out):
            axis = _channel_axis(name, tensor, known, args)
            self.track(tensor, depth=depth, merges=merges, sources=sources, channel_axis=axis)

    def _merge(self, name: str, inputs: list[Tensor]) -> frozenset[int]:
        """Record an addition or a concatenation of feature maps; its index, or nothing."""
        if name not in ADDITIONS | CONCATENATIONS or self.blocks_entered or not self.stack:
            return frozenset()
        if not all(t in self.infos and t.ndim >= 3 for t in inputs):
            return frozenset()
        kind = "add" if name in ADDITIONS else "cat"
        if kind == "add" and (len(inputs) != 2 or inputs[0].shape != inputs[1].shape):
            return frozenset()
        operands = []
        for tensor in inputs:
            info, one = self.infos[tensor], self.tensor_id(tensor)
            assert one is not None
            operands.append(Operand(one, info.depth, info.merges, info.sources))
        merge = Merge(len(self.trace.merges), kind, self.stack[-1], tuple(operands))
        self.trace.merges.append(merge)
        return frozenset({merge.index})

    def enter_module(self, name: str, module: nn.Module, given: Any) -> None:
        if hasattr(module, RECORD):
            self.blocks_entered += 1
        if self.blocks_entered:
            return
        tensors = [t for t in tensors_in(given) if t in self.infos]
        numbers = []
        for tensor in tensors:
            numbers.append(next(self.numbers))
            info = self.infos[tensor]
            self.infos[tensor] = replace(info, sources=info.sources | {numbers[-1]})
        ids = tuple(one for t in tensors if (one := self.tensor_id(t)) is not None)
        caller = self.stack[-1] if self.stack else None
        shape = tensors[0].shape if tensors else None
        self.stack.append(ModuleCall(name, module, caller, ids, frozenset(numbers), shape))

    def leave_module(self, module: nn.Module, given: Any, output: Any) -> None:
        # made where functions cannot be tracked: in a scripted module or function
        if isinstance(output, Tensor) and output not in self.infos:
            layers = isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters())
            self._derive(output, list(tensors_in(given)), SCRIPTED_LAYERS if layers else SCRIPTED)
        if hasattr(module, RECORD):
            self.blocks_entered -= 1
            returned = self.tensor_id(output) if isinstance(output, Tensor) else None
            self.trace.block_outputs.setdefault(module, []).append(returned)
            return
        if self.blocks_entered:
            return
        call = self.stack.pop()
        if isinstance(output, Tensor):
            call.output = self.tensor_id(output)
            if call.output is not None:
                call.shape, call.dtype, call.device = output.shape, output.dtype, output.device
                call.channel_axis = self.infos[output].channel_axis
        self.trace.calls.append(call)


def _channel_axis(name: str, out: Tensor, known: list[tuple[Tensor, TensorInfo]], args: tuple) -> int | None:
    """The dimension of ``out`` that holds channels, or None where that cannot be told."""
    if name in CHANNELS_SECOND or "pool" in name:
        return 1
    if name in CHANNELS_LAST:
        return out.ndim - 1
    # an operand of the result's own shape tells more than a gate that is spread over it
    told = [(t, info.channel_axis) for t, info in known if info.channel_axis is not None]
    told.sort(key=lambda pair: pair[0].shape != out.shape)
    if not told:
        return None
    tensor, axis = told[0]
    if name in TRANSPOSITIONS:  # done again on a shape whose entries are the dimensions' numbers
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

    The pass is in eval mode and without gradients; see `preserve_state` for what is put back.

    Raises:
        FovealError: the network is scripted or has lazy modules that saw no batch yet, the forward pass fails, or
            no example is given and none can be derived.
    """
    _refuse_untraceable(net)
    candidates = example_inputs(net, example)
    for i, (args, kwargs) in enumerate(candidates):
        try:
            with preserve_state(net):
                return trace_inside(net, args, kwargs)
        except FovealError:
            if i == len(candidates) - 1:
                raise
    raise AssertionError


def trace_inside(net: nn.Module, args: tuple, kwargs: dict) -> Trace:
    """`trace` within `preserve_state`, for callers that look at more in the same pass."""
    result = Trace(example=(args, kwargs))
    tracker = _TensorTracker(result)
    with ExitStack() as stack:
        for name, module in _python_modules(net):

            def enter(module, args, kwargs, name=name):
                tracker.enter_module(name, module, (args, kwargs))

            def leave(module, args, kwargs, output):
                tracker.leave_module(module, (args, kwargs), output)

            # a scripted module refuses hooks by its own methods, but is called as any other
            handles = (
                nn.Module.register_forward_pre_hook(module, enter, with_kwargs=True),
                nn.Module.register_forward_hook(module, leave, with_kwargs=True),
            )
            for handle in handles:
                stack.callback(handle.remove)
        stack.enter_context(tracker)
        for tensor in tensors_in((args, kwargs)):
            tracker.track(tensor, depth=0, merges=frozenset(), sources=frozenset(), channel_axis=1)
        rule = f"a forward pass of {type(net).__name__} must succeed on the example"
        run(net, args, kwargs, rule=rule, hint="; pass example=a tensor the network takes")
    return result


def _python_modules(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module that Python calls: what lies inside a scripted one is called by TorchScript."""
    listed, inside = [], []
    for name, module in net.named_modules():
        if name.startswith(tuple(inside)):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            inside.append(name + ".")
        listed.append((name, module))
    return listed


def refuse_scripted(net: nn.Module, verb: str) -> None:
    """Refuse what is no module, and what TorchScript runs.

    Args:
        verb: what was to be done, for the message.
    """
    require_module(net)
    if isinstance(net, torch.jit.ScriptModule):
        raise FovealError(
            f"a network must be a Python module, got {type(net).__name__}, which TorchScript runs; {verb} before "
            "torch.jit.script or torch.jit.trace"
        )


def _refuse_untraceable(net: nn.Module) -> None:
    refuse_scripted(net, "insert blocks")
    lazy = [
        name
        for name, module in net.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and any(nn.parameter.is_lazy(p) for p in [*module._parameters.values(), *module._buffers.values()])
    ]
    if lazy:
        more = f" and {len(lazy) - 3} more" if len(lazy) > 3 else ""
        raise FovealError(
            "lazy modules must know their sizes, which they take from the first batch; run the network once on a "
            f"real one, got no sizes yet for {', '.join(lazy[:3])}{more}"
        )
