"""Joining a gate with the addition of the shortcut and the ReLU after it, and taking SE's squeeze early."""

import operator
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from foveal.fusion.fold import CONVOLUTIONS, is_timm_se, only_input
from foveal.insertion.hooks import RECORD
from foveal.nn import CBAM, SqueezeExcite
from foveal.ops import gate, gated_residual, whole_gate
from foveal.ops.prepared_calls import PreparedCalls

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
IN_PLACE = {operator.iadd, "add_"}
TIMM_GATES = {"Sigmoid": "sigmoid", "Hardsigmoid": "hard_sigmoid", "HardSigmoid": "hard_sigmoid"}
"""The names of PyTorch's and timm's classes of the activations that the one operator knows."""
RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}


def _joinable(block: nn.Module) -> bool:
    if block._forward_hooks or block._forward_pre_hooks:
        return False
    if is_timm_se(block):
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
        self.calls = PreparedCalls()
        self.fc1 = self.fc2 = None
        if not isinstance(block, CBAM):
            self.fc1 = _linear(block.fc1, c if self.squeezes_early else None)
            self.fc2 = _linear(block.fc2, None)
        self.layers = [layer for layer in (self.fc1, self.fc2) if layer is not None] or list(block.modules())
        """The modules with the gate's weights, which may be replaced there, as ``to`` does."""

    def forward(self, u: Tensor, shortcut: Tensor) -> Tensor:
        x = u if self.convolution is None else self.convolution(u)
        if torch.is_grad_enabled() and (u.requires_grad or shortcut.requires_grad):
            # saliency maps: autograd needs what is overwritten below
            y = self.block(x) + shortcut
            return F.relu(y) if self.relu else y
        # nobody else holds what a convolution returned
        fresh = self.convolution is not None
        seen = self._where_convolved(u) if self.squeezes_early else x
        if fresh and self._at_once_(x, seen, shortcut):
            return x
        if isinstance(self.block, CBAM):
            x, weights = self._spatially_gated(x)
            fresh = True
        else:
            weights = self._channel_gate(seen)
        weights = weights.to(x.dtype)
        fits = x.shape == shortcut.shape and x.dtype == shortcut.dtype
        if fresh and fits and not torch.compiler.is_compiling():
            y = torch.addcmul(shortcut, x, weights, out=x)
            return y.relu_() if self.relu else y
        y = torch.addcmul(shortcut, x, weights)
        return F.relu(y) if self.relu else y

    def _at_once_(self, x: Tensor, seen: Tensor, shortcut: Tensor) -> bool:
        """Compute gate, addition and ReLU by one operator into ``x``; false, and ``x`` untouched, if it cannot."""
        if torch.compiler.is_compiling() or (self.fc1 is not None and len(x) > 1):
            return False  # the layers of several images are quicker as one product
        weights = [
            weight
            for layer in self.layers
            for place in (layer._parameters, layer._buffers)  # quicker than attributes
            for name, weight in place.items()
            if weight is not None and name != "num_batches_tracked"
        ]
        maps = {"x": x, "shortcut": shortcut, "seen": seen}
        if gated_residual.nobody_watches(x, shortcut) and self.calls.run(maps, {"y": x}, weights):
            return True
        channel, spatial = self._halves()
        # the map alone is asked about: with the addition and the ReLU, SE's product is worth a call
        if channel is None or whole_gate.why_not_native(x) is not None or type(shortcut) is not Tensor:
            return False
        alike = gated_residual.laid_out_alike
        if shortcut.shape != x.shape or not (alike(shortcut, x) and alike(seen, x)):
            return False
        call = gated_residual.add_residual_(x, shortcut, channel, spatial, self.relu, seen)
        self.calls.keep(call, maps, weights)
        return True

    def _halves(self) -> tuple[whole_gate.ChannelHalf | None, whole_gate.SpatialHalf | None]:
        """What the one operator needs; no channel half if it knows no such gate."""
        block, fc1, fc2 = self.block, self.fc1, self.fc2
        if isinstance(block, CBAM):
            gates: Any = block
            spatial = gates.spatial.spatial_half(1)
            return (None if spatial is None else gates.channel.channel_half()), spatial
        assert fc1 is not None
        assert fc2 is not None
        if isinstance(block, SqueezeExcite):
            activation, gain = block.activation, block.gate_gain
        elif type(block.act) is nn.ReLU and type(block.gate).__name__ in TIMM_GATES:
            activation, gain = TIMM_GATES[type(block.gate).__name__], 1.0
        else:
            return None, None
        return whole_gate.ChannelHalf(
            fc1.weight, fc1.bias, fc2.weight, fc2.bias, "mean", activation, gain
        ), None

    def _where_convolved(self, u: Tensor) -> Tensor:
        """The positions of ``u`` that a 1x1 convolution with a stride reads."""
        stride: Any = self.convolution.stride  # type: ignore[union-attr]
        strided = any(step > 1 for step in stride)
        return u[(..., *(slice(None, None, step) for step in stride))] if strided else u

    def _spatially_gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map after CBAM's channel gate, and the spatial gate."""
        block: Any = self.block
        shared = gate.GateInput(x)
        channel = block.channel.excite(shared.squeeze(["mean", "max"]))
        statistics, _ = shared.spatial_statistics(channel)
        return shared.channel_scaled(channel), block.spatial.attend(statistics)

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


def join_gates(net: fx.GraphModule, report: list[str], paths: dict[str, str]) -> None:
    """Replace each recognised gate and what follows it by a `GatedResidual`; ``report`` gets a line for each."""
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
            is_timm_se(block) or hasattr(block, RECORD) or isinstance(block, SqueezeExcite | CBAM)
        ):
            continue
        if not _joinable(block):
            report.append(f"left {node.target}: {type(block).__name__} in this form is not joined")
            continue
        users = list(node.users)
        addition = users[0] if len(users) == 1 and users[0].target in ADDITIONS else None
        source = only_input(node)
        if addition is None or len(addition.args) != 2 or addition.kwargs or source is None:
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
        convolution = modules.get(str(source.target)) if source.op == "call_module" else None
        alone = len(source.users) == 1 and calls[convolution] == 1 and len(source.all_input_nodes) == 1
        # the convolution moves down to the addition: nothing on the way may touch what it reads
        read = only_input(source) if convolution is not None else None
        if type(convolution) not in CONVOLUTIONS or not alone or read is None or len(read.users) > 1:
            convolution = None
        joined = GatedResidual(block, convolution, relu is not None)
        end = relu or addition
        name = f"{node.target.replace('.', '_')}_residual"
        net.add_submodule(name, joined)
        paths[name] = paths[f"{name}.block"] = paths.get(str(node.target), str(node.target))
        if convolution is not None:
            paths[f"{name}.convolution"] = str(source.target)
        with net.graph.inserting_before(end):
            start = read if convolution is not None else source
            fused = net.graph.call_module(name, (start, shortcut))
        end.replace_all_uses_with(fused)
        done = ["joined " + str(node.target) + " with the addition" + (" and ReLU after it" if relu else "")]
        if joined.squeezes_early:
            done.append(f"took its squeeze before {source.target}")
        report.append("; ".join(done))
        for old in [relu, addition, node] + ([source] if convolution is not None else []):
            if old is not None:
                net.graph.erase_node(old)
