"""Sites: places in a network where a block can go, found in one traced forward pass.

The rules, none of which names a network family:

* A module is a **residual block** if its own ``forward`` adds two feature maps of one shape, one of which has
  passed through more convolutions or linear layers: that operand is the branch, the other the shortcut.
* ``"residual"``: the outermost module the block calls that made the branch. A module that handed on what it was
  given (drop path, ``Identity``) made nothing; it is the site only if no module made the branch, and then the
  block is applied to what it is given.
* ``"block"``: the output of every residual block and of every module of the same class (EfficientNet's blocks
  without a shortcut). In a network without residual blocks: of every innermost module that concatenates feature
  maps (DenseNet's layers, Inception, Fire); failing these, of every convolution with what follows it at the same
  shape (normalisation, activation).
* Stages: the containers that hold the blocks, in order of execution, counted from 1; where one container holds
  them all, runs of blocks with one spatial size.
* ``"stage"``: what the container returns, or where that is what its last block returned, that block.
* Anything else is a path pattern, see `match`.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveal.insert.trace import RECORD, Call, Merge, Trace, trace

KINDS = ("residual", "block", "stage")


@dataclass(frozen=True)
class Site:
    """A place where a block can go.

    Attributes:
        name: path of the module whose output the block takes.
        stage: number of its stage from 1, or None for a site found by a path pattern.
        kind: ``"residual"``, ``"block"``, ``"stage"`` or ``"module"``.
        channels: width of the feature map; 0 where the site is unusable.
        shape: shape of the feature map without the batch, (c, *spatial).
        reason: why no block can go here, or None.
        before: the block takes what the module is given, not what it returns (they are equal in eval mode; in
            training the module drops paths, and the block must see them undropped).
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
        at: ``"residual"``, ``"block"``, ``"stage"`` or a path pattern (see `insert`).
        stages: numbers of the stages to keep, from 1; for the three named kinds only.
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
    return found(net, at, stages=stages, example=example, asker="sites")[0]


def found(
    net: nn.Module, at: str, *, stages: Iterable[int] | None, example: Any, asker: str
) -> tuple[list[Site], dict[str, Call]]:
    """`sites`, and by name the traced call of each usable one."""
    if at not in KINDS:
        if stages is not None:
            raise ValueError(
                f"{asker}: stages selects among {', '.join(KINDS)}, got stages with the pattern {at!r}"
            )
        names = _matching(net, at, asker)
    watched = trace(net, example, asker=asker)
    if at in KINDS:
        candidates = _Finder(watched, type(net).__name__, asker).kind(at)
    else:
        by_name = {call.name: call for call in watched.calls}
        candidates = [(name, by_name.get(name), None, None) for name in names]
        candidates.sort(key=lambda c: watched.calls.index(c[1]) if c[1] is not None else len(watched.calls))
    times = Counter(call.name for call in watched.calls)
    listed = []
    for name, call, stage, reason in candidates:
        reason = reason or _unusable(call, times[name])
        shape = tuple(call.shape[1:]) if call is not None and call.shape is not None else ()
        channels = shape[0] if shape and reason is None else 0
        before = call is not None and call.passes_through and reason is None
        kind = at if at in KINDS else "module"
        listed.append(Site(name, stage, kind, channels, shape, reason, before))
    if stages is not None:
        listed = _of_stages(listed, stages, asker)
    calls = {call.name: call for call in watched.calls}
    return listed, {site.name: calls[site.name] for site in listed if site.reason is None}


def _unusable(call: Call | None, times: int) -> str | None:
    if call is None:
        return "forward never calls it"
    if times > 1:
        return f"forward calls it {times} times, and one block cannot serve {times} places"
    if not call.is_feature_map:
        shape = "no single tensor" if call.shape is None else f"shape {tuple(call.shape)}"
        return f"its output must be one feature map (b, c, *spatial), got {shape}"
    return None


def _of_stages(listed: list[Site], stages: Iterable[int], asker: str) -> list[Site]:
    wanted = [stages] if isinstance(stages, int) else list(stages)
    present = sorted({site.stage for site in listed if site.stage is not None})
    if not wanted or not set(wanted) <= set(present):
        raise ValueError(f"{asker}: stages must be among {present}, got {tuple(wanted)}")
    return [site for site in listed if site.stage in wanted]


# --------------------------------------------------------------------------------------------------- patterns


def match(pattern: str) -> Callable[[str], object]:
    """A predicate on whole module paths: ``*`` and ``?`` stay within one name between dots, ``**`` does not.

    Example:
        >>> from foveal.insert.find import match
        >>> matches = match("features.1[0-9]")
        >>> [name for name in ("features.1", "features.10", "features.10.conv") if matches(name)]
        ['features.10']
    """
    parts = re.findall(r"\*\*|\*|\?|\[!?[^\]]+\]|.", pattern)
    known = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    expression = "".join(
        known.get(part) or (part.replace("[!", "[^") if len(part) > 1 else re.escape(part)) for part in parts
    )
    return re.compile(expression).fullmatch


def _matching(net: nn.Module, pattern: str, asker: str) -> list[str]:
    names = [name for name, _ in own_modules(net) if name]
    matches = match(pattern)
    matched = [name for name in names if matches(name)]
    if not matched:
        close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:3]
        raise ValueError(
            f"{asker}: at must be {', '.join(map(repr, KINDS))} or a pattern that matches a module of "
            f"{type(net).__name__}, got {pattern!r}; there are, for example, {', '.join(close)}"
        )
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

Candidate = tuple[str, Call | None, int | None, str | None]  # name, call, stage, reason


class _Finder:
    """Applies the rules of this file to one trace."""

    def __init__(self, watched: Trace, net_name: str, asker: str):
        self.trace = watched
        self.net_name = net_name
        self.asker = asker
        self.order = {call: i for i, call in enumerate(watched.calls)}
        self.additions = self._residual_additions()

    def kind(self, at: str) -> list[Candidate]:
        if at == "residual":
            return self.residual()
        return self.block() if at == "block" else self.stage()

    def residual(self) -> list[Candidate]:
        if not self.additions:
            raise ValueError(
                f"{self.asker}: at='residual' needs a network that adds feature maps, got {self.net_name} "
                "without any such addition; use at='block', at='stage' or a path pattern"
            )
        branches = [(merge, self._maker(merge)) for merge in self.additions]
        stages = self._stages([merge.call for merge in self.additions])
        candidates: list[Candidate] = []
        for (merge, maker), stage in zip(branches, stages, strict=True):
            if maker is None:
                reason = "no module returns the branch as it is added: its forward computes it with functions"
                candidates.append((merge.call.name, None, stage, reason))
            else:
                candidates.append((maker.name, maker, stage, None))
        return candidates

    def block(self) -> list[Candidate]:
        blocks = self._blocks()
        return [
            (call.name, call, stage, None) for call, stage in zip(blocks, self._stages(blocks), strict=True)
        ]

    def stage(self) -> list[Candidate]:
        blocks = self._blocks()
        last = dict(zip(self._stages(blocks), blocks, strict=True))
        candidates: list[Candidate] = []
        for stage, call in last.items():
            container = self._container_call(call)
            if container is not None and container.is_feature_map and container.returned != call.returned:
                call = container
            candidates.append((call.name, call, stage, None))
        return candidates

    def _residual_additions(self) -> list[Merge]:
        """Additions of a longer and a shorter path, without those inside the branch of a later one."""
        adds = [
            m for m in self.trace.merges if m.kind == "add" and m.operands[0].depth != m.operands[1].depth
        ]
        inner = set()
        for merge in adds:
            shortcut, branch = sorted(merge.operands, key=lambda o: o.depth)
            inner |= {
                index
                for index in branch.merges - shortcut.merges
                if self.trace.merges[index].call is merge.call  # the parts of one forward: Res2Net's scales
            }
        return [merge for merge in adds if merge.index not in inner]

    def _maker(self, merge: Merge) -> Call | None:
        """The outermost module the block calls that made the branch, or else one that handed it on."""
        branch = max(merge.operands, key=lambda o: o.depth).mark
        handed = [c for c in self.trace.calls if c.caller is merge.call and c.returned == branch]
        made = [c for c in handed if not c.passes_through]
        return (made or handed or [None])[-1 if made else 0]

    def _blocks(self) -> list[Call]:
        calls = [call for call in self.trace.calls if call is not self.trace.root and call.is_feature_map]
        adding = {type(merge.call.module) for merge in self.additions if merge.call is not self.trace.root}
        blocks = [call for call in calls if type(call.module) in adding]
        if not blocks:
            joining = {m.call for m in self.trace.merges if m.kind == "cat" and m.call is not self.trace.root}
            outer = {caller for call in joining for caller in _callers(call)}
            innermost = {type(call.module) for call in joining - outer}
            blocks = [call for call in calls if type(call.module) in innermost]
        return blocks or self._units(calls)

    def _units(self, calls: list[Call]) -> list[Call]:
        """Each convolution, moved on to the last module that follows it at the same shape."""
        convolutions = (nn.modules.conv._ConvNd,)
        units = []
        leaves = [c for c in calls if not any(True for _ in c.module.children()) and not c.passes_through]
        for start in leaves:
            if not isinstance(start.module, convolutions):
                continue
            unit = start
            for call in leaves[leaves.index(start) + 1 :]:
                follows = len(call.given) == 1 and call.given[0] == unit.returned and call.shape == unit.shape
                if follows and not isinstance(call.module, convolutions):
                    unit = call
            units.append(unit)
        if not units:
            raise ValueError(
                f"{self.asker}: at='block' and at='stage' need convolutions, got {self.net_name} without any; "
                "use a path pattern"
            )
        return units

    def _stages(self, calls: list[Call]) -> list[int]:
        """Stage of each block: its container, or where one container holds all, its run of one spatial size."""
        containers = [call.name.rpartition(".")[0] for call in calls]
        keys: list[Any] = containers
        if len(set(containers)) == 1:
            keys, run = [], 0
            for i, call in enumerate(calls):
                size = call.shape[2:] if call.shape is not None else None
                before = calls[i - 1].shape if i else None
                run += before is not None and before[2:] != size
                keys.append(run)
        numbers = {key: i + 1 for i, key in enumerate(dict.fromkeys(keys))}
        return [numbers[key] for key in keys]

    def _container_call(self, call: Call) -> Call | None:
        path = call.name.rpartition(".")[0]
        return next((c for c in self.trace.calls if c.name == path and c is not self.trace.root), None)


def _callers(call: Call) -> Iterable[Call]:
    while call.caller is not None:
        call = call.caller
        yield call
