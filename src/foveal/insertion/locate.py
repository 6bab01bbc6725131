"""Sites: places in a network where a block can go, found in one traced forward pass.

The rules, none of which names a network family:

* A module is a **residual block** if its own ``forward`` adds two feature maps of one shape that come from the
  same input of the module, and one has passed through more convolutions or linear layers: that operand is the
  branch, the other the shortcut.
* ``"residual"``: the outermost module the block calls that made the branch (before a factor the branch may be
  scaled by). A module that handed on what it was given (drop path, ``Identity``) made nothing; it is the site
  only if no module made the branch, and then the block is applied to what it is given.
* ``"block"``: the output of every residual block and of every module of the same class (EfficientNet's blocks
  without a shortcut). In a network without residual blocks: of every innermost module that concatenates feature
  maps (DenseNet's layers, Inception, Fire); failing these, of every convolution with what follows it at the same
  shape (normalisation, activation).
* ``"pre"``: what the branch is given, but not the shortcut: the input of the first module the block calls on what it
  was given itself. ``"shortcut"``: the module that made the shortcut, where it is not the block's input itself.
* Stages: the containers that hold the blocks, in order of execution, counted from 1; where one container holds
  them all, and for convolutions, runs of one spatial size.
* ``"stage"``: what the container returns, or where that is what its last block returned, that block.
* Where the network's own ``forward`` adds (one written in a single class, or rewritten by ``torch.fx``), no module
  is a block: only ``"residual"`` has sites, and its stages are runs of one spatial size.
* Of a network that calls a part of it ``backbone``, as those for segmentation and detection do, the three named
  kinds are looked for in that part alone.
* Anything else is a path pattern, see `match`.
"""

import difflib
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion.hooks import RECORD
from foveal.insertion.patterns import match
from foveal.insertion.trace import Merge, ModuleCall, Trace, trace

KINDS = ("residual", "block", "stage", "pre", "shortcut")


@dataclass(frozen=True)
class Site:
    """A place where a block can go.

    Attributes:
        name: path of the module whose output the block takes.
        stage: number of its stage from 1, or None for a site found by a path pattern.
        kind: ``"residual"``, ``"block"``, ``"stage"``, ``"pre"``, ``"shortcut"`` or ``"module"``.
        channels: width of the feature map; 0 where the site is unusable.
        shape: shape of the feature map without the batch, (c, *spatial).
        reason: why no block can go here, or None.
        before: the block takes what the module is given, not what it returns: at ``"pre"``, and where the module drops
            paths in training, which the block must see undropped.
    """

    name: str
    stage: int | None
    kind: str
    channels: int
    shape: tuple[int, ...]
    reason: str | None = None
    before: bool = False


def sites(
    net: nn.Module, at: str = "residual", *, stages: Iterable[int] | None = None, example: Any = None
) -> list[Site]:
    """The places in ``net`` where `insert` with the same ``at`` would put a block, and those where it cannot.

    Args:
        net: any convolutional network; it is left unchanged.
        at: ``"residual"``, ``"block"``, ``"stage"``, ``"pre"``, ``"shortcut"`` or a path pattern (see `insert`).
        stages: numbers of the stages to keep, from 1; for the named kinds only.
        example: a tensor, tuple or dictionary of inputs; by default one image of the network's own size.

    Returns:
        Sites in order of execution. Those with a ``reason`` are unusable.

    Raises:
        ValueError: nothing is found, a stage does not exist, or the forward pass fails.

    Example:
        >>> import foveal
        >>> net = foveal.create_model("cifar_resnet8", num_classes=10)
        >>> for site in foveal.sites(net):
        ...     print(site.name, site.stage, site.shape)
        layer1.0.bn2 1 (16, 32, 32)
        layer2.0.bn2 2 (32, 16, 16)
        layer3.0.bn2 3 (64, 8, 8)
    """
    return find_sites(net, at, stages=stages, example=example)[0]


def find_sites(
    net: nn.Module, at: str, *, stages: Iterable[int] | None, example: Any
) -> tuple[list[Site], Trace]:
    """`sites`, and the trace they were found in. Of a compiled network, those of the network that was compiled."""
    net = getattr(net, "_orig_mod", net)
    if at not in KINDS:
        _matching(net, at, stages)  # a mistake in the pattern is said before a pass is run
    result = trace(net, example)
    return sites_in(result, net, at, stages), result


def sites_in(trace: Trace, net: nn.Module, at: str, stages: Iterable[int] | None) -> list[Site]:
    """The sites that one traced pass shows."""
    if at in KINDS:
        candidates = _Finder(trace, net).kind(at)
    else:
        by_name = {call.name: call for call in trace.calls}
        candidates = [(name, by_name.get(name), None, None) for name in _matching(net, at, stages)]
        candidates.sort(key=lambda c: trace.calls.index(c[1]) if c[1] is not None else len(trace.calls))
    times = Counter(call.name for call in trace.calls)
    modules = dict(net.named_modules())
    listed = []
    for name, call, stage, reason in candidates:
        reason = reason or _scripted(name, modules) or _unusable(call, times[name])
        seen = None if call is None else call.input_shape if at == "pre" else call.shape
        shape = tuple(seen[1:]) if seen is not None else ()
        channels = shape[0] if shape and reason is None else 0
        before = call is not None and call.is_identity and reason is None and call.inputs[0] == call.output
        before = before or at == "pre"
        kind = at if at in KINDS else "module"
        listed.append(Site(name, stage, kind, channels, shape, reason, before))
    return listed if stages is None else _of_stages(listed, stages)


def require_usable(listed: list[Site], net: nn.Module, at: str) -> list[Site]:
    """The sites, once each; refused as a whole when one of them cannot take a block."""
    unusable = [site for site in listed if site.reason is not None]
    if unusable:
        shown = "; ".join(f"{site.name}: {site.reason}" for site in unusable[:3])
        more = f"; and {len(unusable) - 3} more" if len(unusable) > 3 else ""
        raise FovealError(
            f"every site of at={at!r} must be able to take a block, got {len(unusable)} of {len(listed)} "
            f"in {type(net).__name__} that cannot: {shown}{more}"
        )
    return list({site.name: site for site in listed}.values())


def _scripted(name: str, modules: dict[str, nn.Module]) -> str | None:
    parts = name.split(".")
    above = (modules.get(".".join(parts[:i])) for i in range(1, len(parts) + 1))
    if any(isinstance(module, torch.jit.ScriptModule) for module in above):
        return "TorchScript runs it; insert before torch.jit.script"
    return None


def _unusable(call: ModuleCall | None, times: int) -> str | None:
    if call is None:
        return "forward never calls it"
    if times > 1:
        return f"forward calls it {times} times, and one block cannot serve {times} places"
    if not call.is_feature_map:
        shape = "no single tensor" if call.shape is None else f"shape {tuple(call.shape)}"
        return f"its output must be one feature map (b, c, *spatial), got {shape}"
    if call.channel_axis not in (1, None):
        return f"its output must be a feature map (b, c, *spatial), got {tuple(call.shape or ())} with channels last"
    return None


def _of_stages(listed: list[Site], stages: Iterable[int]) -> list[Site]:
    wanted = [stages] if isinstance(stages, int) else list(stages)
    present = sorted({site.stage for site in listed if site.stage is not None})
    if not wanted or not set(wanted) <= set(present):
        raise FovealError(f"stages must be among {present}, got {tuple(wanted)}")
    return [site for site in listed if site.stage in wanted]


def _matching(net: nn.Module, pattern: str, stages: Iterable[int] | None) -> list[str]:
    names = [name for name, _ in own_modules(net) if name]
    matches = match(pattern)
    matched = [name for name in names if matches(name)]
    kinds = ", ".join(map(repr, KINDS))
    if not matched:
        meant = difflib.get_close_matches(pattern, KINDS, n=1)
        close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:3]
        hint = f"did you mean {meant[0]!r}?" if meant else f"there are, for example, {', '.join(close)}"
        raise FovealError(
            f"at must be {kinds} or a pattern that matches a module of {type(net).__name__}, got {pattern!r}; {hint}"
        )
    if stages is not None:
        raise FovealError(f"stages must be left out unless at is one of {kinds}, got the pattern {pattern!r}")
    return matched


def own_modules(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of ``net`` without inserted blocks and what they hold."""
    listed, hidden = [], []
    for name, module in net.named_modules():
        if hasattr(module, RECORD):
            hidden.append(name + ".")
        elif not name.startswith(tuple(hidden)):
            listed.append((name, module))
    return listed


# -------------------------------------------------------------------------------------------------- the rules

Candidate = tuple[str, ModuleCall | None, int | None, str | None]  # name, call, stage, reason


class _Finder:
    """Applies the rules of this file to one trace."""

    def __init__(self, trace: Trace, net: nn.Module):
        self.trace = trace
        self.net_name = type(net).__name__
        self.body = "backbone" if isinstance(getattr(net, "backbone", None), nn.Module) else ""
        self.additions = self._residual_additions()

    def kind(self, at: str) -> list[Candidate]:
        if at in ("residual", "pre", "shortcut") and not self.additions:
            raise FovealError(
                f"at={at!r} needs a network that adds feature maps, got {self.net_name} "
                "without any such addition; use at='block', at='stage' or a path pattern"
            )
        return getattr(self, at)()

    def pre(self) -> list[Candidate]:
        return [
            (call.name, call, stage, None)
            if (call := self._first_of_branch(merge)) is not None
            else (merge.call.name, None, stage, "no module takes what the branch is given")
            for merge, stage in self._staged_additions()
        ]

    def shortcut(self) -> list[Candidate]:
        candidates: list[Candidate] = []
        for merge, stage in self._staged_additions():
            tensor = min(merge.operands, key=lambda o: o.depth).tensor
            made = [c for c in self.trace.calls if c.caller is merge.call and c.output == tensor]
            reason = None if made else "no module makes its shortcut, which is what the block is given"
            candidates.append(
                (made[-1].name if made else merge.call.name, made[-1] if made else None, stage, reason)
            )
        return candidates

    def _staged_additions(self) -> list[tuple[Merge, int | None]]:
        """The residual additions, each with its stage."""
        blocks, containers = self._blocks()
        stages = dict(zip(blocks, _stages(blocks, containers), strict=True))
        return [(merge, stages.get(merge.call)) for merge in self.additions]

    def _first_of_branch(self, merge: Merge) -> ModuleCall | None:
        """The first module that the block calls on what it was given, or on what a block before it made of that."""
        shortcut = min(merge.operands, key=lambda o: o.depth).tensor
        for call in self.trace.calls:
            if call.caller is not merge.call or not call.inputs or call.output == shortcut:
                continue
            blocks = [self.trace.block_outputs.get(child, [None])[0] for child in call.module.children()]
            if call.inputs[0] in (*merge.call.inputs, *blocks):
                return call
        return None

    def residual(self) -> list[Candidate]:
        blocks, containers = self._blocks()
        stages = dict(zip(blocks, _stages(blocks, containers), strict=True))
        producers = [self._producer(merge) for merge in self.additions]
        if not blocks:  # all additions are in the network's own forward
            loose = [producer for producer in producers if producer is not None]
            stages = dict(zip(loose, _stages(loose, containers=False), strict=True))
        candidates: list[Candidate] = []
        for merge, producer in zip(self.additions, producers, strict=True):
            stage = stages.get(merge.call) or (stages.get(producer) if producer else None)
            if producer is None:
                reason = "no module returns the branch as it is added: its forward computes it with functions"
                candidates.append((merge.call.name, None, stage, reason))
            else:
                candidates.append((producer.name, producer, stage, None))
        return candidates

    def block(self) -> list[Candidate]:
        blocks, containers = self._blocks_or_units()
        return [
            (c.name, c, stage, None) for c, stage in zip(blocks, _stages(blocks, containers), strict=True)
        ]

    def stage(self) -> list[Candidate]:
        blocks, containers = self._blocks_or_units()
        last = dict(zip(_stages(blocks, containers), blocks, strict=True))
        several = containers and len({_container(call) for call in blocks}) > 1
        candidates: list[Candidate] = []
        for stage, call in last.items():
            container = next((c for c in self.trace.calls if several and c.name == _container(call)), None)
            if container is not None and container.is_feature_map and container.output != call.output:
                call = container
            candidates.append((call.name, call, stage, None))
        return candidates

    def _residual_additions(self) -> list[Merge]:
        """Additions of a longer and a shorter path, without those inside the branch of a later one."""
        adds = []
        for merge in self.trace.merges:
            one, two = merge.operands[:2] if merge.kind == "add" else (None, None)
            if (
                one
                and two
                and self._inside(merge.call)
                and one.depth != two.depth
                and one.sources & two.sources & merge.call.arguments
            ):
                adds.append(merge)
        inner = set()
        for merge in adds:
            shortcut, branch = sorted(merge.operands, key=lambda o: o.depth)
            inner |= {
                index
                for index in branch.merges - shortcut.merges
                if self.trace.merges[index].call is merge.call  # the parts of one forward: Res2Net's scales
            }
        return [merge for merge in adds if merge.index not in inner]

    def _producer(self, merge: Merge) -> ModuleCall | None:
        """The outermost module the block calls that made the branch, or else one that handed it on."""
        branch = max(merge.operands, key=lambda o: o.depth).tensor
        while True:
            handed = [c for c in self.trace.calls if c.caller is merge.call and c.output == branch]
            made = [c for c in handed if not c.is_identity]
            if handed or branch not in self.trace.scaled:
                return made[-1] if made else handed[0] if handed else None
            branch = self.trace.scaled[branch]

    def _maps(self) -> list[ModuleCall]:
        called = (call for call in self.trace.calls if call.caller is not None and self._inside(call))
        return [call for call in called if call.is_feature_map]

    def _inside(self, call: ModuleCall) -> bool:
        """Whether a call is one of the backbone's, where the network has one."""
        return not self.body or f"{call.name}.".startswith(f"{self.body}.")

    def _blocks(self) -> tuple[list[ModuleCall], bool]:
        adding = {type(merge.call.module) for merge in self.additions if merge.call.caller is not None}
        return [call for call in self._maps() if type(call.module) in adding], True

    def _blocks_or_units(self) -> tuple[list[ModuleCall], bool]:
        """The blocks, and whether their containers make the stages."""
        blocks, containers = self._blocks()
        if self.additions and not blocks:
            raise FovealError(
                "at='block' and at='stage' need modules that hold the residual additions, got "
                f"{self.net_name}, whose own forward adds the feature maps, as networks rewritten by torch.fx "
                "do; use at='residual' or a path pattern"
            )
        if not blocks:
            joining = {
                m.call
                for m in self.trace.merges
                if m.kind == "cat" and m.call.caller is not None and self._inside(m.call)
            }
            outer = {caller for call in joining for caller in _callers(call)}
            innermost = {type(call.module) for call in joining - outer}
            blocks = [call for call in self._maps() if type(call.module) in innermost]
        return (blocks, containers) if blocks else (self._units(), False)

    def _units(self) -> list[ModuleCall]:
        """Each convolution, moved on to the last module that follows it at the same shape."""
        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        leaves = [c for c in self._maps() if _is_leaf(c.module) and not c.is_identity]
        units = []
        for i, call in enumerate(leaves):
            size = call.shape[2:] if call.shape is not None else ()
            if not isinstance(call.module, convolutions) or set(size) == {1}:  # no map: a classifier's
                continue
            unit = call
            for later in leaves[i + 1 :]:
                follows = later.inputs == (unit.output,) and later.shape == unit.shape
                if follows and not isinstance(later.module, convolutions):
                    unit = later
            units.append(unit)
        if not units:
            raise FovealError(
                f"at='block' and at='stage' need convolutions, got {self.net_name} without any; "
                "use a path pattern"
            )
        return units


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module holds no other, inserted blocks aside."""
    return all(hasattr(child, RECORD) for child in module.children())


def _container(call: ModuleCall) -> str:
    return call.name.rpartition(".")[0]


def _callers(call: ModuleCall) -> Iterable[ModuleCall]:
    while call.caller is not None:
        call = call.caller
        yield call


def _stages(calls: list[ModuleCall], containers: bool) -> list[int]:
    """Stage of each call, from 1: its container, or its run of one spatial size."""
    keys: list[Any] = [_container(call) for call in calls]
    if not containers or len(set(keys)) == 1:
        sizes = [call.shape[2:] if call.shape is not None else None for call in calls]
        changes = [0, *(before != size for before, size in itertools.pairwise(sizes))][: len(calls)]
        keys = list(itertools.accumulate(changes))
    numbers = {key: i + 1 for i, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]
