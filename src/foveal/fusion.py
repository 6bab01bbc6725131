"""A network for inference only: the same outputs, with fewer passes over its feature maps.

BatchNorm goes into the convolution before it. In a residual block that ends in a gate, the gate's product, the
addition of the shortcut and the ReLU become one multiply-add pass and one clip in place, so that the product itself
costs nothing over a plain residual block; and SE's squeeze is taken before the last 1x1 convolution, since the mean
of a 1x1 convolution is the 1x1 convolution of the mean: in a bottleneck, a quarter of the values to read. That
convolution of the mean and SE's first layer, two linear maps in a row, become one.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foveal.insertion import inserted
from foveal.insertion.hooks import RECORD, hook_key, remove_hook
from foveal.nn import CBAM, SqueezeExcite
from foveal.ops import gate, reference

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
# of timm, by name, so that timm need not be imported; each is a BatchNorm followed by `drop` and `act`
NORM_AND_ACTIVATION = {"BatchNormAct2d", "BatchNormAct3d"}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
IN_PLACE = {operator.iadd, "add_"}
RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}


def fuse(net: nn.Module) -> nn.Module:
    """A faster copy of ``net`` for inference; ``net`` itself stays as it is.

    Args:
        net: a convolutional network that ``torch.fx`` can trace. SE and CBAM are recognised as foveal's own blocks,
            inserted or built in, and as timm's ``SEModule``.

    Returns:
        A copy in eval mode, its parameters without gradients, its outputs equal up to rounding. What was not
        recognised is as it was; ``.report`` is a list of lines that say what was done and what was left.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fused = fuse(net)
        >>> fused.report
        ['folded 1 into 0']
        >>> x = torch.randn(1, 3, 9, 9)
        >>> torch.allclose(fused(x), net(x), atol=1e-6)
        True
    """
    work = copy.deepcopy(net).eval().requires_grad_(False)
    report: list[str] = []
    try:
        tracer = _Tracer(work)
        graph = tracer.trace(work)
    except Exception as error:
        # a network may do anything in forward; one that cannot be traced is left as it is, and told so
        fused = copy.deepcopy(net).eval().requires_grad_(False)
        reason = str(error).strip().partition("\n")[0]
        fused.report = [f"left everything: torch.fx cannot trace {type(net).__name__}: {reason}"]  # pyright: ignore
        return fused
    module = fx.GraphModule(work, graph, type(net).__name__)
    _fold_norms(module, report)
    _join_gates(module, report)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    module.report = report  # pyright: ignore
    return module.eval()


class _Tracer(fx.Tracer):
    """Keeps blocks whole, and shows the ones that hooks apply as calls of their own."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.hooked: dict[nn.Module, list[nn.Module]] = {}
        for one in inserted(root):
            site = root.get_submodule(one.site)
            key = hook_key(site, getattr(one.module, RECORD))
            if key is not None and not one.before and self.is_leaf_module(site, one.site):
                remove_hook(site, key)
                self.hooked.setdefault(site, []).append(one.module)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("foveal.nn") or hasattr(m, RECORD)
        named = type(m).__name__ in NORM_AND_ACTIVATION or _is_timm_se(m)
        return ours or named or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        for block in self.hooked.get(m, []):
            output = super().call_module(block, block.forward, (output,), {})
        return output


# ------------------------------------------------------------------------------------------------------- BatchNorm


def _fold_norms(net: fx.GraphModule, report: list[str]) -> None:
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: Counter[Any] = Counter(
        modules[node.target] for node in net.graph.nodes if node.op == "call_module"
    )
    for node in list(net.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm) or hasattr(norm, RECORD):
            continue
        before = node.args[0]
        convolution = modules.get(before.target) if before.op == "call_module" else None
        reason = _not_foldable(convolution, norm)
        if reason is None and (len(before.users) > 1 or calls[convolution] > 1 or calls[norm] > 1):
            reason = "the convolution or the BatchNorm is used more than once"
        if reason is not None:
            report.append(f"left {node.target}: {reason}")
            continue
        assert isinstance(convolution, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        net.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
        rest = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if m is not None]
        rest = [m for m in rest if not isinstance(m, nn.Identity)]
        output = before
        for index, module in enumerate(rest):
            name = f"{node.target.replace('.', '_')}_after_{index}"
            net.add_submodule(name, module)
            with net.graph.inserting_after(output):
                output = net.graph.call_module(name, (output,))
        node.replace_all_uses_with(output)
        net.graph.erase_node(node)
        report.append(f"folded {node.target} into {before.target}")
    # a block that hung below a BatchNorm must not keep the folded BatchNorm alive
    for node in net.graph.nodes:
        if node.op == "call_module" and isinstance(modules.get(node.target.rpartition(".")[0]), _BatchNorm):
            name = node.target.replace(".", "_")
            net.add_submodule(name, modules[node.target])
            node.target = name


def _not_foldable(convolution: nn.Module | None, norm: _BatchNorm) -> str | None:
    if type(convolution) not in CONVOLUTIONS:  # a subclass may change its weight in forward
        return "its input is not a plain convolution"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not plain and type(norm).__name__ not in NORM_AND_ACTIVATION:
        return f"{type(norm).__name__} is not a plain BatchNorm"
    assert convolution is not None
    if any((m._forward_hooks or m._forward_pre_hooks) for m in (convolution, norm)):
        return "a hook watches it"
    return None


# ----------------------------------------------------------------------------------------------------------- gates


def _is_timm_se(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.") and type(module).__name__ == "SEModule"


def _joinable(block: nn.Module) -> bool:
    if block._forward_hooks or block._forward_pre_hooks:
        return False
    if _is_timm_se(block):
        return not block.add_maxpool and isinstance(block.bn, nn.Identity)
    mean_only = type(block) is SqueezeExcite and block.squeeze == "mean"
    return mean_only or (type(block) is CBAM and block.arrangement == "channel-spatial")


class GatedResidual(nn.Module):
    """``relu(block(convolution(u)) + shortcut)``; without a convolution ``u`` is the block's own input."""

    def __init__(self, block: nn.Module, convolution: nn.Module | None, relu: bool) -> None:
        super().__init__()
        self.block, self.convolution, self.relu = block, convolution, relu
        c = convolution
        self.squeezes_early = (
            not isinstance(block, CBAM)
            and isinstance(c, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and all(k == 1 for k in c.kernel_size)
            and all(p == 0 for p in c.padding)
            and c.groups == 1
            and c.in_channels < c.out_channels
        )
        """Whether SE's mean is taken before the convolution, where there are fewer values."""
        self.fc1 = self.fc2 = None
        if not isinstance(block, CBAM):
            self.fc1 = _linear(block.fc1, c if self.squeezes_early else None)
            self.fc2 = _linear(block.fc2, None)

    def forward(self, u: Tensor, shortcut: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (u.requires_grad or shortcut.requires_grad):
            # saliency maps: autograd needs what is overwritten below
            y = self.block(self._convolved(u)) + shortcut
            return F.relu(y) if self.relu else y
        if isinstance(self.block, CBAM):
            x, weights = self._spatially_gated(self._convolved(u))
        elif self.squeezes_early:
            weights = self._channel_gate(self._where_convolved(u))  # before u leaves the cache
            x = self._convolved(u)
        else:
            x = self._convolved(u)
            weights = self._channel_gate(x)
        weights = weights.to(x.dtype)
        # nobody else holds what a convolution or CBAM's first product returned
        fresh = self.convolution is not None or isinstance(self.block, CBAM)
        fits = x.shape == shortcut.shape and x.dtype == shortcut.dtype
        if fresh and fits and not torch.compiler.is_compiling():
            y = torch.addcmul(shortcut, x, weights, out=x)
            return y.relu_() if self.relu else y
        y = torch.addcmul(shortcut, x, weights)
        return F.relu(y) if self.relu else y

    def _convolved(self, u: Tensor) -> Tensor:
        return u if self.convolution is None else self.convolution(u)

    def _where_convolved(self, u: Tensor) -> Tensor:
        """The positions of ``u`` that a 1x1 convolution with a stride reads."""
        stride: Any = self.convolution.stride  # type: ignore[union-attr]
        strided = any(step > 1 for step in stride)
        return u[(..., *(slice(None, None, step) for step in stride))] if strided else u

    def _spatially_gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map after CBAM's channel gate, and the spatial gate."""
        block: Any = self.block
        x, squeezed = gate.squeeze_through(x, ["mean", "max"])
        channel = block.channel.excite(squeezed)
        x, statistics, gated = gate.gated_statistics(x, channel)
        return reference.channel_scale(x, channel) if gated is None else gated, block.spatial.attend(
            statistics
        )

    def _channel_gate(self, seen: Tensor) -> Tensor:
        """SE's gate, shaped to multiply a map."""
        block: Any = self.block
        fc1, fc2 = self.fc1, self.fc2
        assert fc1 is not None
        assert fc2 is not None
        hidden = F.linear(gate.squeeze(seen), fc1.weight, fc1.bias)
        if isinstance(block, SqueezeExcite):
            weights = block.activate(F.linear(hidden.relu_(), fc2.weight, fc2.bias))
        else:  # timm
            weights = block.gate(F.linear(block.act(hidden), fc2.weight, fc2.bias))
        return weights[(..., *[None] * (seen.ndim - 2))]


def _linear(fc1: Any, convolution: Any) -> nn.Linear:
    """SE's first layer; with a 1x1 convolution, both as one layer, whose weights are far fewer to read."""
    weight, bias = fc1.weight.flatten(1).double(), fc1.bias
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias.double()
    if convolution is not None:
        if convolution.bias is not None:
            bias = bias + weight @ convolution.bias.double()
        weight = weight @ convolution.weight.flatten(1).double()
    joined = nn.Linear(weight.shape[1], weight.shape[0], device="meta").requires_grad_(False)
    joined.weight = nn.Parameter(weight.to(fc1.weight.dtype), requires_grad=False)
    joined.bias = nn.Parameter(bias.to(fc1.weight.dtype), requires_grad=False)
    return joined


def _join_gates(net: fx.GraphModule, report: list[str]) -> None:
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: Counter[Any] = Counter(
        modules[node.target] for node in net.graph.nodes if node.op == "call_module"
    )

    def is_relu(node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(modules[str(node.target)]) is nn.ReLU
        return node.op in ("call_function", "call_method") and node.target in RELUS

    for node in list(net.graph.nodes):
        block = modules.get(node.target) if node.op == "call_module" else None
        if block is None or not (
            _is_timm_se(block) or hasattr(block, RECORD) or isinstance(block, SqueezeExcite | CBAM)
        ):
            continue
        if not _joinable(block):
            report.append(f"left {node.target}: {type(block).__name__} in this form is not joined")
            continue
        users = list(node.users)
        addition = users[0] if len(users) == 1 and users[0].target in ADDITIONS else None
        if addition is None or len(addition.args) != 2 or addition.kwargs or node.args[0] is node:
            report.append(f"left {node.target}: no addition of a shortcut follows it alone")
            continue
        first, second = addition.args
        shortcut = second if first is node else first
        if (
            not isinstance(shortcut, fx.Node)
            or shortcut is node
            or (first is not node and addition.target in IN_PLACE)
        ):
            report.append(f"left {node.target}: the addition after it changes the shortcut in place")
            continue
        following = list(addition.users)
        relu = following[0] if len(following) == 1 and is_relu(following[0]) else None
        source = node.args[0]
        convolution = modules.get(source.target) if source.op == "call_module" else None
        alone = len(source.users) == 1 and calls[convolution] == 1 and len(source.all_input_nodes) == 1
        # the convolution moves down to the addition: nothing on the way may touch what it reads
        if type(convolution) not in CONVOLUTIONS or not alone or len(source.all_input_nodes[0].users) > 1:
            convolution = None
        joined = GatedResidual(block, convolution, relu is not None)
        end = relu or addition
        name = f"{node.target.replace('.', '_')}_residual"
        net.add_submodule(name, joined)
        with net.graph.inserting_before(end):
            start = source.args[0] if convolution is not None else source
            fused = net.graph.call_module(name, (start, shortcut))
        end.replace_all_uses_with(fused)
        done = ["joined " + str(node.target) + " with the addition" + (" and ReLU after it" if relu else "")]
        if joined.squeezes_early:
            done.append(f"took its squeeze before {source.target}")
        report.append("; ".join(done))
        for old in [relu, addition, node] + ([source] if convolution is not None else []):
            if old is not None:
                net.graph.erase_node(old)
