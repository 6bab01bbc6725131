"""Multiply-accumulates from the operations that really ran, not from a table of layer types; parameters."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# ------------------------------------------------------------------------------------------- multiply-accumulates
# Formulas beyond those of FlopCounterMode. It gives them shapes in place of tensors, and counts two operations to a
# multiply-accumulate.


def _elementwise_products(_: Any, other: Any, *__: Any, out_shape: Any = None, **___: Any) -> int:
    # a constant factor can be folded away
    return 0 if isinstance(other, int | float | complex) else 2 * torch.Size(out_shape).numel()


def _added_products(*_: Any, out_shape: Any = None, **__: Any) -> int:
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
        aten.addcmul: _added_products,
        aten.addcmul_: _added_products,
        aten.addr: _added_products,
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
    return (counter.get_total_flops() - _gates_of_recurrences(net, counter)) // 2, dict(
        sorted(uncounted.items())
    )


def _gates_of_recurrences(net: nn.Module, counter: FlopCounterMode) -> int:
    """Elementwise products inside recurrent layers, which show only where no kernel computes the whole layer."""
    counts, found = counter.get_flop_counts(), 0
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            operators = counts.get(".".join(filter(None, (type(net).__name__, name))), {})
            found += sum(operators.get(operator, 0) for operator in (torch.ops.aten.mul, torch.ops.aten.mul_))
    return found


def count_macs(net: nn.Module, example: Tensor) -> int:
    """Count the multiply-accumulates of one forward pass, from the operations that run.

    Counted: convolutions (deformable ones too) and matrix and vector products (those of attention and of recurrent
    layers included, whatever form they take), and one for each value of an elementwise product (a gate times its
    feature map). Not counted, since they multiply nothing or can be folded away: additions, constant factors, pooling,
    interpolation, normalisation, activations, softmax; nor the gates inside a recurrent layer, which its kernels hide.
    `uncounted_operators` lists what may have multiplied and is not known here.
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
