"""What a network costs: time, peak memory, multiply-accumulates, parameters.

Every figure here states what it counts. Times are medians of interleaved rounds, so that a machine that slows
down half-way slows every candidate; memory is read at the allocator; multiply-accumulates come from the
operations that really ran, not from a table of layer types.
"""

import json
import os
import random
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from foveal.errors import FovealError


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median over rounds, the quartiles around it, and the sample of each round."""

    time_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    samples_ms: tuple[float, ...] = field(default=(), repr=False)

    def over(self, other: "Timing") -> float:
        """How many times as long as ``other`` of the same rounds this takes.

        The median of one ratio a round: a machine that is slow for some rounds is slow for both calls in them.

        Example:
            >>> Timing(2.0, 2.0, 3.0, 3, (2.0, 2.0, 9.0)).over(Timing(1.0, 1.0, 4.0, 3, (1.0, 1.0, 4.5)))
            2.0
        """
        return statistics.median(a / b for a, b in zip(self.samples_ms, other.samples_ms, strict=True))

    def minus(self, other: "Timing") -> float:
        """Milliseconds longer than ``other`` of the same rounds: the median of one difference a round."""
        return statistics.median(a - b for a, b in zip(self.samples_ms, other.samples_ms, strict=True))


def measure_time(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 30,
    minimum_ms: float = 2.0,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Time several calls fairly: one sample of each in every round, in an order drawn anew each round.

    A sample repeats its call until it lasts ``minimum_ms``, so the clock's own cost does not show. Where CUDA
    is in use the device is waited for before and after each sample.

    Args:
        functions: name -> call without arguments.
        repeats: rounds, at least 1.
        minimum_ms: shortest sample, in milliseconds.
        warmup: calls of each function before the first round, at least 1.

    Returns:
        name -> :class:`Timing`, in the order given.

    Raises:
        ValueError: no functions, or ``repeats`` or ``warmup`` below 1.

    Example:
        >>> x = torch.randn(64, 64)
        >>> times = measure_time({"one": lambda: x @ x, "five": lambda: x @ x @ x @ x @ x @ x}, repeats=5)
        >>> {name: timing.repeats for name, timing in times.items()}
        {'one': 5, 'five': 5}
    """
    if not functions:
        raise FovealError("functions must name at least one call, got none")
    if repeats < 1 or warmup < 1:
        raise FovealError(f"repeats and warmup must be at least 1, got {repeats} and {warmup}")
    calls: dict[str, int] = {}
    for name, function in functions.items():
        for _ in range(warmup):
            function()
        calls[name] = 1
        while _sample_ms(function, calls[name]) * calls[name] < minimum_ms:
            calls[name] *= 2
    samples: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            samples[name].append(_sample_ms(functions[name], calls[name]))
    timings = {}
    for name, values in samples.items():
        low, middle, high = statistics.quantiles(values, n=4) if repeats > 1 else values * 3
        timings[name] = Timing(middle, low, high, repeats, tuple(values))
    return timings


def _sample_ms(function: Callable[[], Any], calls: int) -> float:
    _synchronize()
    start = perf_counter()
    for _ in range(calls):
        function()
    _synchronize()
    return (perf_counter() - start) * 1000 / calls


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(function: Callable[[], Any], *, device: torch.device | str = "cpu") -> int:
    """The most memory a call holds at one time, in bytes, beyond what was held before it.

    On CUDA this is ``torch.cuda.max_memory_allocated``. On the CPU it is the highest running sum of every
    allocation and release PyTorch's allocator reports while the call runs, exact to the byte; memory that
    other libraries take for themselves (a convolution library's scratch space) is not in it. The result of
    the call counts. Call the function once beforehand where its first run caches something.

    Args:
        function: call without arguments.
        device: where the call allocates.

    Returns:
        Bytes, 0 or more.

    Example:
        >>> peak_bytes(lambda: torch.ones(1000).neg().abs())  # two of 4000 bytes at a time
        8000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise FovealError(f"device must be cpu or cuda, got {device}")
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with _without_profiler_messages():
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                result = function()
            profile.export_chrome_trace(str(trace))
        del result
        events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    held = peak = 0
    for change in changes:
        held += change["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextmanager
def _without_profiler_messages() -> Iterator[None]:
    """Silence file descriptor 2: PyTorch's profiler writes its own start and stop there, and takes no no."""
    sys.stderr.flush()
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


# ------------------------------------------------------------------------------------------- multiply-accumulates
# Formulas beyond those of FlopCounterMode. It gives them shapes in place of tensors, and counts two operations to a
# multiply-accumulate.


def _elementwise_products(*_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * torch.Size(out_shape).numel()


def _inner_products(left: Any, right: Any, *_: Any, **__: Any) -> int:
    # dot, vdot (n), (n); mv (n, m), (m)
    return 2 * torch.Size(left).numel()


def _added_matrix_vector(_: Any, matrix: Any, vector: Any, *__: Any, **___: Any) -> int:
    return 2 * torch.Size(matrix).numel()


def _attention_products(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # (b, heads, n, d), (b, heads, m, d), (b, heads, m, e)
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def _bilinear_products(left: Any, weight: Any, right: Any, *_: Any, **__: Any) -> int:
    # (n, i), (o, i, j), (n, j): left times weight, and the result times right
    return 2 * left[0] * (torch.Size(weight).numel() + weight[0] * weight[2])


def _recurrent_layer(x: Any, input_weight: Any, state_weight: Any, *_: Any, **__: Any) -> int:
    # one layer in one direction over x (time, b, i) or, packed, (steps, i)
    return (
        2 * torch.Size(x[:-1]).numel() * (torch.Size(input_weight).numel() + torch.Size(state_weight).numel())
    )


def _recurrent_layers(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    # every layer and direction at once; biases have one dimension
    return 2 * torch.Size(x[:-1]).numel() * sum(torch.Size(w).numel() for w in weights if len(w) == 2)


def _deformable_convolution(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # weight (o, i / groups, kh, kw), out (b, o, h, w); the interpolation of its input is not counted
    return 2 * out_shape[0] * torch.Size(weight).numel() * torch.Size(out_shape[2:]).numel()


def _formulas() -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {
        aten.mul: _elementwise_products,
        aten.mul_: _elementwise_products,
        aten.addcmul: _elementwise_products,
        aten.addcmul_: _elementwise_products,
        aten.addr: _elementwise_products,
        aten.dot: _inner_products,
        aten.vdot: _inner_products,
        aten.mv: _inner_products,
        aten.addmv: _added_matrix_vector,
        aten._trilinear: _bilinear_products,
        # the kernels of attention and LSTM on a CPU, which FlopCounterMode leaves out
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_products,
        aten.mkldnn_rnn_layer: _recurrent_layer,
        aten._cudnn_rnn: _recurrent_layers,
    }
    # there only once torchvision is imported, as it is where a network holds one
    if (deformable := getattr(torch.ops.torchvision, "deform_conv2d", None)) is not None:
        formulas[deformable] = _deformable_convolution
    return formulas


# PyTorch's operators beside views and pointwise functions that multiply no two values of a network, or only to
# average, to normalise or to interpolate
_NO_PRODUCTS = re.compile(
    # making and moving values
    r"(new_)?(empty|zeros|ones|full)(_like|_strided)?|arange|linspace|eye|scalar_tensor|fill|zero|rand\w*|bernoulli|normal"
    r"|uniform|lift_fresh\w*|_?copy\w*|_to_copy|clone|cat|stack|repeat\w*|tile|roll|flip|rot90|constant_pad_nd"
    r"|(reflection|replication)_pad\dd|im2col|col2im|pixel_(un)?shuffle|(_unsafe_)?index\w*|gather|scatter|select_\w+"
    r"|slice_\w+|take|masked_(select|scatter|fill)|nonzero|embedding|_local_scalar_dense|as_strided|transpose|resize"
    r"|_unsafe_view|_reshape_\w+|unsafe_split\w*|split_copy|unbind_copy|tri[lu]|sort|topk|arg\w+|unique\w*|searchsorted"
    # sums, averages, maxima
    r"|sum|mean|var(_mean)?|std(_mean)?|amax|amin|aminmax|max|min|median|mode|any|all|cumsum|cummax|logsumexp|logcumsumexp"
    r"|linalg_vector_norm|norm|count_nonzero|(_?adaptive_|mkldnn_|fractional_)?(avg|max)_pool\dd\w*"
    # normalisation, softmax, activations, dropout
    r"|(_native|native|cudnn|miopen|_)?_?(batch|layer|group|rms)_norm\w*|(_fused_)?rms_norm|_(log_|safe_)?softmax|hardswish"
    r"|rrelu_with_noise|glu|log_sigmoid_forward|native_dropout"
    # interpolation
    r"|_?upsample_\w+|grid_sampler_\dd\w*"
)


def _multiplies_nothing(operator: Any) -> bool:
    if operator.namespace in ("prim", "prims"):
        return True
    if operator.namespace != "aten":
        return False
    name = operator.overloadpacket.__name__
    if operator.is_view or torch.Tag.pointwise in operator.tags:
        return True
    return any(_NO_PRODUCTS.fullmatch(spelled) for spelled in (name, name.rstrip("_")))


class _Operators(TorchDispatchMode):
    """The operators that ran, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def _run_counted(net: nn.Module, example: Tensor) -> tuple[int, dict[str, int]]:
    """Return the multiply-accumulates of a forward pass and the operators that were not counted."""
    counter, operators = FlopCounterMode(display=False, custom_mapping=_formulas()), _Operators()
    # what torch.jit.freeze returns has no mode
    modes = [(module, module.training) for module in net.modules() if hasattr(module, "training")]
    # the fused path of nn.MultiheadAttention is one opaque operation that would count as nothing
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if modes:
            net.eval()
        # the outer mode sees what the counter has taken apart
        with torch.no_grad(), operators, counter:
            net(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
    uncounted: Counter[str] = Counter()
    for operator, calls in operators.calls.items():
        if operator.overloadpacket not in counter.flop_registry and not _multiplies_nothing(operator):
            uncounted[f"{operator.namespace}::{operator.overloadpacket.__name__}"] += calls
    return counter.get_total_flops() // 2, dict(sorted(uncounted.items()))


def count_macs(net: nn.Module, example: Tensor) -> int:
    """Count the multiply-accumulates of one forward pass, from the operations that run.

    Counted: convolutions (deformable ones too) and matrix and vector products (those of attention and of recurrent
    layers included, whatever form they take), and one for each value of an elementwise product (a gate times its
    feature map). Not counted, since they multiply nothing or can be folded away: additions, pooling, interpolation,
    normalisation, activations, softmax. `uncounted_operators` lists what may have multiplied and is not known here.
    A low count does not mean fast: what is not counted can take most of the time.

    Args:
        net: the network; it is counted in eval mode and left in the mode it is in.
        example: (b, c, *spatial) input on the network's device; the count is for the whole batch.

    Returns:
        Multiply-accumulates (a fused multiply-add is 1, not 2).

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 32, 32)) == 3 * 8 * 9 * 32 * 32
        True
    """
    return _run_counted(net, example)[0]


def uncounted_operators(net: nn.Module, example: Tensor) -> dict[str, int]:
    """List the operators of one forward pass whose multiplications `count_macs` does not know.

    An operator is listed unless it is counted or known to multiply nothing: Fourier transforms, say, and operators of
    other libraries. Where the list is not empty, the count is a lower bound.

    Args:
        net: the network; it runs in eval mode and is left in the mode it is in.
        example: (b, c, *spatial) input on the network's device.

    Returns:
        Calls by operator, ``"namespace::name"``, in alphabetical order.

    Example:
        >>> uncounted_operators(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 32, 32))
        {}
    """
    return _run_counted(net, example)[1]


def count_parameters(net: nn.Module) -> int:
    """Number of values in the network's parameters, shared ones counted once; buffers are not parameters.

    Example:
        >>> count_parameters(nn.Conv2d(3, 8, 3, bias=True))
        224
    """
    return sum(parameter.numel() for parameter in net.parameters())
