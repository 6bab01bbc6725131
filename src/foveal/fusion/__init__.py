"""A network for inference only: the same outputs, with fewer passes over its feature maps.

BatchNorm goes into the convolution before it. In a residual block that ends in a gate, the gate's product, the
addition of the shortcut and the ReLU become one multiply-add pass and one clip in place, so that the product itself
costs nothing over a plain residual block; and SE's squeeze is taken before the last 1x1 convolution, since the mean
of a 1x1 convolution is the 1x1 convolution of the mean: in a bottleneck, a quarter of the values to read. That
convolution of the mean and SE's first layer, two linear maps in a row, become one.
"""

import copy
import random
import sys
from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from foveal.errors import FovealError
from foveal.fusion.fold import Tracer, fold_norms, is_norm
from foveal.fusion.gates import GatedResidual, join_gates
from foveal.insertion.example import example_inputs, preserve_state, tensors_in
from foveal.insertion.trace import refuse_scripted

__all__ = ["GatedResidual", "fuse"]

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference that rounding may make, of the largest output; 5 % for half types."""


def fuse(net: nn.Module, example: Any = None) -> nn.Module:
    """A faster copy of ``net`` for inference; ``net`` itself stays as it is.

    The copy runs once on an example beside ``net``. Where their outputs differ by more than rounding, everything is
    left as it was, and the report says so.

    Args:
        net: a convolutional network. Of one that ``torch.fx`` cannot trace as a whole, such as a detector, those parts
            are fused that it can trace and that take one input, such as the backbone. SE and CBAM are recognised as
            foveal's own blocks, inserted or built in, and as timm's ``SEModule``.
        example: a tensor, tuple or dictionary of inputs, as in `foveal.insert`; by default one image of the
            network's own size.

    Returns:
        A copy in eval mode, its parameters without gradients, its outputs equal up to rounding. What was not
        recognised is as it was; ``.report`` is a list of lines that say what was done and what was left, and
        ``.paths`` says, for modules that have another path now, which one they had in ``net``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fused = fuse(net)
        >>> fused.report
        ['folded 1 into 0']
        >>> x = torch.randn(1, 3, 9, 9)
        >>> torch.allclose(fused(x), net(x), atol=1e-6)
        True
    """
    refuse_scripted(net, "fuse it")
    try:
        fused = copy.deepcopy(net).eval().requires_grad_(False)
    except RuntimeError as error:
        reason = str(error).partition(".  ")[0]
        raise FovealError(
            f"a network must be one that copy.deepcopy takes, got {type(net).__name__}: {reason}"
        ) from error
    whole = _traced(fused)
    parts = {"": whole} if isinstance(whole, fx.GraphModule) else dict(_traced_parts(fused))
    if not parts:
        return _left(net, str(whole))
    report, paths = [], {}
    for path, part in parts.items():
        lines, moved = [], {}
        fold_norms(part, lines, moved)
        join_gates(part, lines, moved)
        part.delete_all_unused_submodules()
        part.recompile()
        if not path:
            fused, report, paths = part, lines, moved
            continue
        fused.set_submodule(path, part)
        report += [f"{path}: {line}" for line in lines]
        paths |= {f"{path}.{now}": f"{path}.{then}" for now, then in moved.items()}
    fused.report, fused.paths = report, paths  # pyright: ignore
    fused.eval()
    difference = _difference(net, fused, example)
    if isinstance(difference, str):
        report.append(difference)
    elif difference > 1:
        return _left(net, f"the fused outputs differ, by {difference:.3g} times what rounding may")
    return fused


def _traced(net: nn.Module) -> fx.GraphModule | str:
    """A copy of the network as a graph, or why it has none: a network may do anything in forward."""
    # in eval mode: a graph of torchvision's feature extractors copies itself in training mode
    work = copy.deepcopy(net).eval()
    before = _drawn_and_kept(work)
    try:
        graph = Tracer(work).trace(work)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return f"torch.fx cannot trace {type(net).__name__}: {reason}"
    if not _same(before, _drawn_and_kept(work)):
        return f"{type(net).__name__} draws random numbers or changes its buffers in forward"
    module = fx.GraphModule(work, graph, type(net).__name__)
    for hooks in HOOKS:  # tracing begins inside the network, so its own hooks are not in the graph
        getattr(module, hooks).update(getattr(work, hooks))
    return module


def _traced_parts(net: nn.Module, path: str = "") -> Iterator[tuple[str, fx.GraphModule]]:
    """The largest modules below one without a graph that have one, hold a norm and take one input; with their paths."""
    for name, child in net.named_children():
        where = f"{path}.{name}" if path else name
        if not any(is_norm(module) for module in child.modules()) or is_norm(child):
            continue
        watched = any(getattr(child, hooks) for hooks in HOOKS)
        # what else a call may give is not known here, and a graph would hold it for ever
        part = _traced(child) if len(signature(child.forward).parameters) == 1 and not watched else ""
        if isinstance(part, fx.GraphModule):
            yield where, part
        else:
            yield from _traced_parts(child, where)


def _left(net: nn.Module, reason: str) -> nn.Module:
    copied = copy.deepcopy(net).eval().requires_grad_(False)
    copied.report, copied.paths = [f"left everything: {reason}"], {}  # pyright: ignore
    return copied


def _drawn_and_kept(net: nn.Module) -> list[Any]:
    """What tells whether a pass drew random numbers or changed a buffer: a graph would hold one draw for ever."""
    numpy: Any = sys.modules.get("numpy")
    drawn = [torch.get_rng_state(), random.getstate()]
    if numpy is not None:
        drawn.append(torch.from_numpy(numpy.random.get_state()[1].astype("int64")))
    return [*drawn, *(b.clone() for b in net.buffers() if not b.is_meta)]


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        torch.equal(one, two) if isinstance(one, Tensor) else one == two
        for one, two in zip(before, after, strict=True)
    )


def _difference(net: nn.Module, fused: nn.Module, example: Any) -> float | str:
    """The largest difference of outputs over what rounding may make, or why they were not compared."""
    try:
        candidates = example_inputs(net, example)
    except FovealError as error:
        if example is not None:
            raise
        return f"not checked on an example: {error}"
    reason = ""
    for args, kwargs in candidates:
        if any(t.is_meta for t in [*tensors_in((args, kwargs)), *net.parameters()]):
            return "not checked on an example: the network is on the meta device"
        try:
            wanted = _outputs(net, args, kwargs)
        except Exception as error:  # of the network itself, on an example that was a guess
            if example is not None:
                raise FovealError(f"the network must run on the example, got {error}") from error
            reason = str(error).strip().partition("\n")[0]
            continue
        found = _outputs(fused, args, kwargs)
        if [t.shape for t in wanted] != [t.shape for t in found]:
            return float("inf")
        return max((_over_rounding(one, two) for one, two in zip(wanted, found, strict=True)), default=0.0)
    return f"not checked on an example: the network does not run on a guessed one ({reason}); pass example="


def _outputs(net: nn.Module, args: tuple, kwargs: dict) -> list[Tensor]:
    """What the network returns for a copy of the inputs, from the same random state each time."""
    given: Any = copy.deepcopy((args, kwargs))
    with preserve_state(net):
        torch.manual_seed(0)
        output = net(*given[0], **given[1])
    # a mapping, or a data class of Hugging Face's, which has the same method
    values = list(output.values()) if not isinstance(output, Tensor) and hasattr(output, "values") else output
    return list(tensors_in(values))


def _over_rounding(wanted: Tensor, found: Tensor) -> float:
    if wanted.dtype != found.dtype:
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(wanted, found) else float("inf")
    scale = wanted[wanted.isfinite()].abs().double()
    allowed = TOLERANCES.get(wanted.dtype, 0.05) * (float(scale.max()) if scale.numel() else 1.0) + 1e-30
    differences = (found.double() - wanted.double()).abs()
    differences = differences[~((found == wanted) | (found.isnan() & wanted.isnan()))]
    largest = float(differences.max()) if differences.numel() else 0.0
    return largest / allowed if largest == largest else float("inf")
