"""Cases of the gates and of `foveal.fuse`: timm's modules, the article's listing, and networks without gates."""

import functools
from collections.abc import Callable, Mapping
from copy import deepcopy as copy_module
from typing import Any

import torch
from torch import Tensor, nn

from foveal.bench import copy
from foveal.bench.case import OURS, Bar, Case, Row
from foveal.fusion import GatedResidual, fuse
from foveal.nn import CBAM, SqueezeExcite

CHANNELS, SIDE = 256, 56
COPIED = 2**26  # bytes, more than caches hold
# Times that the map is read or written. SE: squeeze; product, in and out; backward: both maps for the gradient of the
# gate, then the gradient in and out. CBAM: also the statistics over channels, and the map once more in backward, since
# the gradient of the channel gate has a share that comes through the spatial gate.
PASSES = {("SE", False): 3, ("SE", True): 7, ("CBAM", False): 4, ("CBAM", True): 9}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class ArticleCBAM(nn.Module):
    """The operations of the article's listing: adaptive pools, the two layers run twice, maxima with indices."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.mean, self.peak = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, peak = (self.fc2(self.fc1(pool(x)).relu()) for pool in (self.mean, self.peak))
        x = torch.sigmoid(mean + peak) * x
        statistics = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return torch.sigmoid(self.conv(statistics)) * x


def _against_timm_cbam() -> tuple[nn.Module, nn.Module]:
    from timm.layers.cbam import CbamModule

    theirs, ours = CbamModule(CHANNELS), CBAM(CHANNELS, variant="timm")
    _copy(theirs.channel.fc1, ours.get_submodule("channel.fc1"))
    _copy(theirs.channel.fc2, ours.get_submodule("channel.fc2"))
    _copy(theirs.spatial.conv.conv, ours.get_submodule("spatial.conv"))
    return ours, theirs


def _against_article() -> tuple[nn.Module, nn.Module]:
    theirs, ours = ArticleCBAM(CHANNELS), CBAM(CHANNELS, variant="article")
    for name, own in (("fc1", "channel.fc1"), ("fc2", "channel.fc2"), ("conv", "spatial.conv")):
        _copy(theirs.get_submodule(name), ours.get_submodule(own))
    return ours, theirs


def _against_timm_se() -> tuple[nn.Module, nn.Module]:
    from timm.layers.squeeze_excite import SEModule

    theirs, ours = SEModule(CHANNELS), SqueezeExcite(CHANNELS)
    _copy(theirs.fc1, ours.fc1)
    _copy(theirs.fc2, ours.fc2)
    return ours, theirs


def _copy(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            parameter.copy_(source.get_parameter(name).view_as(parameter))


def _case(
    block: str,
    other: str,
    pair: Callable[[], tuple[nn.Module, nn.Module]],
    batch: int,
    layout: str,
    bar: Bar,
    train: bool,
) -> Case:
    def make() -> Mapping[str, Callable[[], Any]]:
        torch.manual_seed(0)
        ours, theirs = (net.train(train) for net in pair())
        x, dy = (
            torch.randn(batch, CHANNELS, SIDE, SIDE).contiguous(memory_format=LAYOUTS[layout])
            for _ in range(2)
        )

        def call(net: nn.Module) -> Callable[[], Any]:
            if not train:
                return torch.no_grad()(lambda: net(x))
            leaf = x.clone().requires_grad_()

            def step() -> tuple[Tensor, ...]:
                y = net(leaf)
                return y, torch.autograd.grad(y, [leaf, *net.parameters()], dy)[0]

            return step

        return {OURS: call(ours), other: call(theirs)}

    what = "training step" if train else "inference"
    name = f"{block} {what} against {other}, ({batch}, {CHANNELS}, {SIDE}, {SIDE}) {layout}"
    size = batch * CHANNELS * SIDE * SIDE * 4
    return Case(
        name,
        make,
        {other: bar},
        group=f"{block} {what} against {other}",
        passes=PASSES[block, train],
        map_bytes=size,
        # the gradient of a gate is the product of its input and the gradient behind it: the input has to be kept
        must_save=size if train else 0,
    )


CASES = [
    _case(
        block,
        other,
        pair,
        batch,
        layout,
        Bar(faster=trained if train else faster, saved=saved if train else None),
        train,
    )
    for block, other, pair, faster, trained, saved in [
        ("CBAM", "timm", _against_timm_cbam, 2.5, 3.5, 0.5),
        ("CBAM", "article", _against_article, 1.7, 1.5, None),
        ("SE", "timm", _against_timm_se, 1.3, 2.0, 0.5),
    ]
    for train in (False, True)
    for batch in (1, 8)
    for layout in LAYOUTS
]


def _fused_networks() -> list[Row]:
    """Of the time SE adds to a ResNet-50 with folded BatchNorms, the share that is left after `fuse`."""
    import timm

    from foveal.measure import measure_time

    torch.manual_seed(0)
    gated = timm.create_model("seresnet50").eval()
    plain = fuse(timm.create_model("resnet50").eval()).to(memory_format=torch.channels_last)
    fused = fuse(gated).to(memory_format=torch.channels_last)
    for name, module in gated.named_modules():
        if name.endswith(".se"):
            module.register_forward_hook(lambda *_: None)  # watched by a hook, it is left as it is
    folded = fuse(gated).to(memory_format=torch.channels_last)
    joined = [module for module in fused.modules() if isinstance(module, GatedResidual)]
    layers = [layer for module in joined for layer in (module.fc1, module.fc2) if layer is not None]
    weights = sum(parameter.nbytes for layer in layers for parameter in layer.parameters())
    copied = measure_time({"copy": copy(COPIED)})["copy"]  # alone: it would empty the caches of the others
    rows = []
    for batch, repeats, bar in ((1, 301, 0.2), (8, 41, 0.5)):  # a small difference of long times
        x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            error = (fused(x) - folded(x)).abs().max() / folded(x).abs().max()
            if error > 1e-5:
                raise RuntimeError(f"bench: fused and folded seresnet50 differ by {error:.1e}, not timed")
            must_read = weights + _squeezed_bytes(fused, joined, x)
            nets = {"plain": plain, "folded": folded, "fused": fused}
            times = measure_time(
                {name: functools.partial(net, x) for name, net in nets.items()}, repeats=repeats
            )
        added_ms = {name: times[name].minus(times["plain"]) for name in ("folded", "fused")}
        floor_ms = copied.time_ms * must_read / (2 * COPIED)
        detail = {
            "time_ms": {name: round(timing.time_ms, 3) for name, timing in times.items()},
            "added_ms": {name: round(ms, 3) for name, ms in added_ms.items()},
            "floor_ms": round(floor_ms, 3),
        }
        rows.append(
            Row(
                f"fuse(seresnet50), batch {batch}",
                "share left of the time SE adds",
                added_ms["fused"] / added_ms["folded"],
                bar,
                False,
                detail,
                floor_ms / added_ms["folded"],
            )
        )
    return rows


def _squeezed_bytes(fused: nn.Module, joined: list[GatedResidual], x: Tensor) -> int:
    """Bytes of the maps whose means the gates take."""
    sizes: list[int] = []
    hooks = [m.register_forward_pre_hook(lambda _, args: sizes.append(args[0].nbytes)) for m in joined]
    fused(x)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def _cbam_networks() -> list[Row]:
    """A whole ResNet-50 with CBAM in every block, in eval mode: timm's blocks and ours on the same weights."""
    import timm

    from foveal.measure import measure_time

    torch.manual_seed(0)
    theirs = timm.create_model("resnet50", block_args={"attn_layer": "cbam"}).eval()
    ours = copy_module(theirs)
    for name, module in theirs.named_modules():
        if name.endswith(".se"):
            ours.set_submodule(name, _as_ours(module))
    rows = []
    for batch, repeats in ((1, 41), (8, 11)):
        x = torch.randn(batch, 3, 224, 224)
        with torch.no_grad():
            error = (ours(x) - theirs(x)).abs().max() / theirs(x).abs().max()
            if error > 1e-4:
                raise RuntimeError(f"bench: the two cbam_resnet50 differ by {error:.1e}, not timed")
            times = measure_time(
                {name: functools.partial(net, x) for name, net in (("timm", theirs), (OURS, ours))},
                repeats=repeats,
            )
        detail = {"time_ms": {name: round(timing.time_ms, 3) for name, timing in times.items()}}
        ratio = times["timm"].time_ms / times[OURS].time_ms
        rows.append(Row(f"cbam_resnet50, batch {batch}", "times as fast as timm", ratio, 1.0, True, detail))
    return rows


def _as_ours(module: Any) -> CBAM:
    """timm's block as ours, with its weights."""
    channels, hidden = module.channel.fc1.in_channels, module.channel.fc1.out_channels
    block = CBAM(channels, hidden=hidden, variant="timm").eval()
    for ours, own in (("channel.fc1", module.channel.fc1), ("channel.fc2", module.channel.fc2)):
        _copy(own, block.get_submodule(ours))
    _copy(module.spatial.conv.conv, block.get_submodule("spatial.conv"))
    norm = block.get_submodule("spatial.norm")
    norm.load_state_dict(module.spatial.conv.bn.state_dict())
    return block


WHOLES = {"fuse(seresnet50)": _fused_networks, "cbam_resnet50": _cbam_networks}
