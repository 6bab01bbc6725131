"""Tracing a network into a graph that keeps blocks whole, and folding BatchNorm into the convolution before it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from foveal.insertion import inserted
from foveal.insertion.hooks import RECORD, hook_key, remove_hook

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
# of timm, by name, so that timm need not be imported; each is a BatchNorm followed by `drop` and `act`
NORM_AND_ACTIVATION = {"BatchNormAct2d", "BatchNormAct3d"}
# torchvision's and the detectors': the same sum with statistics that nothing trains
FROZEN_NORM = {"FrozenBatchNorm2d", "FrozenNorm"}
TIMM_SE_PARTS = ("fc1", "act", "fc2", "gate", "bn", "add_maxpool")


def only_input(node: fx.Node) -> fx.Node | None:
    """The node that a call takes as its one argument, by position or keyword; None where there are others."""
    given = [*node.args, *node.kwargs.values()]
    return given[0] if len(given) == 1 and isinstance(given[0], fx.Node) else None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, frozen or not."""
    return isinstance(module, _BatchNorm) or type(module).__name__ in FROZEN_NORM


def is_timm_se(module: nn.Module) -> bool:
    """Whether a module is timm's present SE; timm's legacy networks have another class of the same name."""
    cls = type(module)
    named = cls.__module__.startswith("timm.") and cls.__name__ == "SEModule"
    return named and all(hasattr(module, part) for part in TIMM_SE_PARTS)


class Tracer(fx.Tracer):
    """Keeps blocks whole, and modules that a hook watches; blocks that a hook applies become calls of their own."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.hooked: dict[nn.Module, list[nn.Module]] = {}
        self.own_hooks: Counter[nn.Module] = Counter()
        for one in inserted(root):
            site = root.get_submodule(one.site)
            key = hook_key(site, getattr(one.module, RECORD))
            self.own_hooks[site] += key is not None
        for one in inserted(root):
            site = root.get_submodule(one.site)
            key = hook_key(site, getattr(one.module, RECORD))
            if key is not None and not one.before and self.is_leaf_module(site, one.site):
                remove_hook(site, key)
                self.own_hooks[site] -= 1
                self.hooked.setdefault(site, []).append(one.module)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("foveal.nn") or hasattr(m, RECORD)
        named = type(m).__name__ in NORM_AND_ACTIVATION or is_norm(m) or is_timm_se(m)
        # a hook is to see tensors whenever the network runs, not what stands for them in one trace
        watched = len(m._forward_hooks) + len(m._forward_pre_hooks) > self.own_hooks.get(m, 0)
        return ours or named or watched or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        for block in self.hooked.get(m, []):
            output = super().call_module(block, block.forward, (output,), {})
        return output


def fold_norms(net: fx.GraphModule, report: list[str], paths: dict[str, str]) -> None:
    """Fold every BatchNorm that may be; ``report`` gets a line for each, folded or left, ``paths`` what has moved."""
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: Counter[Any] = Counter(
        modules[node.target] for node in net.graph.nodes if node.op == "call_module"
    )
    for node in list(net.graph.nodes):
        norm: Any = modules.get(node.target) if node.op == "call_module" else None
        if norm is None or not is_norm(norm) or hasattr(norm, RECORD):
            continue
        before = only_input(node)
        if before is None:
            report.append(f"left {node.target}: it is called with more than its input")
            continue
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        reason = _not_foldable(convolution, norm)
        if reason is None and (len(before.users) > 1 or calls[convolution] > 1 or calls[norm] > 1):
            reason = "the convolution or the BatchNorm is used more than once"
        if reason is not None:
            report.append(f"left {node.target}: {reason}")
            continue
        assert isinstance(convolution, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        net.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
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
        above = modules.get(node.target.rpartition(".")[0]) if node.op == "call_module" else None
        if above is not None and is_norm(above):
            name = node.target.replace(".", "_")
            net.add_submodule(name, modules[node.target])
            paths[name], node.target = node.target, name


def _not_foldable(convolution: nn.Module | None, norm: Any) -> str | None:
    if type(convolution) not in CONVOLUTIONS:  # a subclass may change its weight in forward
        return "its input is not a plain convolution"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not plain and type(norm).__name__ not in NORM_AND_ACTIVATION | FROZEN_NORM:
        return f"{type(norm).__name__} is not a plain BatchNorm"
    assert convolution is not None
    if any((m._forward_hooks or m._forward_pre_hooks) for m in (convolution, norm)):
        return "a hook watches it"
    return None
