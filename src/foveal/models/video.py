"""Video networks of the Non-local paper: a 2-D ResNet inflated over time, with Non-local blocks.

C2D computes frame by frame and only pools over time; I3D also convolves over time. Input (b, 3, t, h, w).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion import insert
from foveal.models.cifar_resnet import CifarResNet

KINDS = ("c2d", "i3d")
SMALL_SITES: dict[int, list[str]] = {0: [], 1: ["layer2"], 2: ["layer2", "layer3"]}
VARIANTS = ("paper", "released")
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
INFLATED = {
    "paper": (slice(0, None, 2),) * 4,
    "released": (slice(0, None), slice(0, None, 2), slice(0, None, 2), slice(1, None, 2)),
}
"""Residual blocks, by stage, whose first convolution goes over 3 frames in an I3D."""


def inflate(conv: nn.Conv2d, time: int, time_stride: int = 1) -> nn.Conv3d:
    """A 3-D convolution that answers a still clip as ``conv`` answers its frame.

    Every one of the ``time`` planes of the kernel is the 2-D kernel divided by ``time`` (Carreira & Zisserman 2017,
    section 2.4.1), so weights learned on images carry over; at the clip's ends zero padding shows.

    Args:
        conv: the 2-D convolution; its weights are copied.
        time: odd length of the kernel over time.
        time_stride: stride over time.
    """
    if time < 1 or time % 2 == 0:
        raise FovealError(f"time must be odd and at least 1, got {time}")
    inflated = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        _with_time(time, conv.kernel_size),
        stride=_with_time(time_stride, conv.stride),
        padding=_with_time(time // 2, conv.padding),
        dilation=_with_time(1, conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        inflated.weight.copy_(conv.weight[:, :, None] / time)
        if conv.bias is not None and inflated.bias is not None:
            inflated.bias.copy_(conv.bias)
    return inflated


def _with_time(time: int, size: Any) -> tuple[int, int, int]:
    height, width = size
    return time, height, width


def _over_time(
    module: nn.Module,
    path: str,
    times: dict[str, int],
    released: bool,
    stem_stride: int = 1,
    pool_padding: int = 1,
) -> None:
    """Replace every 2-D layer below ``module`` by its 3-D form, in place."""
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        if isinstance(child, nn.Conv2d):
            stride = (stem_stride if released else 2) if where == "conv1" else 1
            setattr(module, name, inflate(child, times.get(where, 1), time_stride=stride))
        elif isinstance(child, nn.BatchNorm2d):
            batch_norm = nn.BatchNorm3d(child.num_features, child.eps, child.momentum)
            batch_norm.load_state_dict(child.state_dict())
            setattr(module, name, batch_norm)
        elif isinstance(child, nn.MaxPool2d):
            pool = (
                nn.MaxPool3d((1, 3, 3), stride=(stem_stride, 2, 2), padding=(0, pool_padding, pool_padding))
                if released
                else nn.MaxPool3d(3, stride=2, padding=1)
            )
            setattr(module, name, pool)
        elif isinstance(child, nn.AdaptiveAvgPool2d):
            setattr(module, name, nn.AdaptiveAvgPool3d(1))
        else:
            _over_time(child, where, times, released, stem_stride, pool_padding)


class VideoResNet(nn.Module):
    """ResNet-50 or ResNet-101 over clips, C2D or I3D, of the Non-local paper.

    Args:
        kind: ``"c2d"``: no convolution over time; ``"i3d"``: a first convolution of 5 frames and, in every second
            residual block, a first 1x1 convolution of 3 frames.
        depth: 50 or 101.
        variant: ``"paper"``: table 1, where the first convolution and the first pooling halve the frames, and every
            second block of each stage is inflated. ``"released"``: as the released code has it for 8 frames, and
            mmaction2 and PySlowFast after it: inflated are all blocks of res2, blocks 0, 2, ... of res3 and res4 and
            1 of res5; the first pooling is 1x3x3, no stride over time comes before the second pooling, and
            that is 2x1x1 without padding, so that a clip has at least 2 frames. Weights of that form fit by shape.
        num_classes: outputs; with 0 the 2048 pooled features.
        blocks: Non-local blocks: 0, 1 (res4), 5 (res3 and res4, every other residual block) or 10 (every one), see
            `nonlocal_sites`; or the residual blocks behind which they are, such as ``["layer2.1", "layer3.5"]``.
        over: ``"spacetime"``, ``"space"`` or ``"time"``: what the Non-local blocks attend over.
        stem_stride: with ``variant="released"`` the stride over time of the first convolution and of the first pooling
            each: 1 for clips of 8 frames, 2 for 32, as mmaction2's I3D has it.
        pool_padding: with ``variant="released"`` the padding of height and width in the first pooling: 1, or 0 as
            mmaction2's C2D has it.
        pool_frames: with ``variant="released"`` how many frames the second pooling joins: 2, or 1 for none, as
            PySlowFast's C2D_NOPOOL and I3D_NOPOOL have it.
        pretrained: start from torchvision's ImageNet weights (needs a network connection).
        in_chans: channels of a frame; 3 with ``pretrained``.
        **options: options of `NonLocal`.

    ``forward``: clips (b, in_chans, t, h, w), t from 1, h and w from 32 -> (b, num_classes).

    Source: Wang et al., Non-local Neural Networks, table 1 and section 4.2 (C2D; I3D with 3x1x1 kernels).

    Example:
        >>> import torch
        >>> net = VideoResNet("c2d", num_classes=4, blocks=1).eval()
        >>> net(torch.randn(1, 3, 8, 32, 32)).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        kind: str = "c2d",
        depth: int = 50,
        *,
        variant: str = "paper",
        num_classes: int = 400,
        blocks: int | Sequence[str] = 5,
        over: str = "spacetime",
        stem_stride: int = 1,
        pool_padding: int = 1,
        pool_frames: int = 2,
        pretrained: bool = False,
        in_chans: int = 3,
        **options,
    ):
        super().__init__()
        if kind not in KINDS:
            raise FovealError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if variant not in VARIANTS:
            raise FovealError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if stem_stride not in (1, 2) or (stem_stride == 2 and variant != "released"):
            raise FovealError(f"stem_stride must be 1, or 2 with variant='released', got {stem_stride!r}")
        if pool_padding not in (0, 1) or (pool_padding == 0 and variant != "released"):
            raise FovealError(f"pool_padding must be 1, or 0 with variant='released', got {pool_padding!r}")
        if pool_frames not in (1, 2) or (pool_frames == 1 and variant != "released"):
            raise FovealError(f"pool_frames must be 2, or 1 with variant='released', got {pool_frames!r}")
        if depth not in STAGES:
            raise FovealError(f"depth must be one of {', '.join(map(str, STAGES))}, got {depth!r}")
        if options and not blocks:
            raise FovealError(f"blocks=0 takes no options of a block, got {', '.join(options)}")
        from torchvision.models import get_model

        net: Any = get_model(f"resnet{depth}", weights="IMAGENET1K_V1" if pretrained else None)
        if in_chans != 3:
            if pretrained:
                raise FovealError(f"pretrained weights need in_chans=3, got {in_chans}")
            net.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        times = {}
        if kind == "i3d":
            times = {"conv1": 5}
            for stage, (count, inflated) in enumerate(
                zip(STAGES[depth], INFLATED[variant], strict=True), start=1
            ):
                times |= {f"layer{stage}.{block}.conv1": 3 for block in range(count)[inflated]}
        released = variant == "released"
        _over_time(net, "", times, released, stem_stride, pool_padding)
        pool = (
            nn.MaxPool3d((2, 1, 1), stride=(2, 1, 1))
            if released
            else nn.MaxPool3d((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
        )
        if pool_frames == 2:
            net.layer1 = nn.Sequential(*net.layer1, pool)
        classify: Any = nn.Linear(net.fc.in_features, num_classes) if num_classes else nn.Identity()
        net.fc = classify
        self.net, self.num_classes, self.pool_frames = net, num_classes, pool_frames
        # of torchvision's weights
        self.default_cfg = {
            "input_size": (in_chans, 32, 224, 224),
            "interpolation": "bilinear",
            "crop_pct": 0.875,
        }
        clip = torch.zeros(1, in_chans, 8, 32, 32)
        chosen = blocks if not isinstance(blocks, int) else nonlocal_sites(depth, blocks) if blocks else []
        for pattern in _together(chosen):
            insert(net, "nonlocal", at=pattern, start="paper", example=clip, dims=3, over=over, **options)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        return self.net(x)


class SmallVideoResNet(nn.Module):
    """`CifarResNet` over clips of few pixels, C2D or I3D, with Non-local blocks after its stages.

    Nothing has a stride over time; the mean over all frames and positions comes before the classifier. A C2D
    therefore gives a clip and its reverse the same answer, with Non-local blocks or without.

    Args:
        kind: ``"c2d"``: frames by themselves; ``"i3d"``: the first convolution, and the first one of every second
            residual block of a stage, go over 3 frames.
        depth: ``6 n + 2``.
        num_classes: outputs; with 0 the 64 pooled features.
        blocks: Non-local blocks: 0, 1 (after stage 2) or 2 (after stages 2 and 3).
        over: ``"time"``, ``"space"`` or ``"spacetime"``: what they attend over.
        in_chans: channels of a frame.
        **options: options of `NonLocal`.

    ``forward``: clips (b, in_chans, t, h, w), t from 1, h and w from about 8 -> (b, num_classes).

    Source: our own, made of He et al. 2016, section 4.2, as Wang et al. make theirs of ResNet-50.

    Example:
        >>> net = SmallVideoResNet("c2d", num_classes=4).eval()
        >>> clip = torch.randn(1, 3, 6, 28, 28)
        >>> torch.allclose(net(clip), net(clip.flip(2)), atol=1e-5)
        True
    """

    def __init__(
        self,
        kind: str = "c2d",
        depth: int = 8,
        *,
        num_classes: int = 10,
        blocks: int = 1,
        over: str = "time",
        in_chans: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise FovealError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if blocks not in SMALL_SITES:
            raise FovealError(f"blocks must be one of {', '.join(map(str, SMALL_SITES))}, got {blocks!r}")
        if options and not blocks:
            raise FovealError(f"blocks=0 takes no options of a block, got {', '.join(options)}")
        self.net, self.num_classes = CifarResNet(depth, num_classes, in_chans), num_classes
        self.net.pooled = (2, 3, 4)
        times: dict[str, int] = {}
        if kind == "i3d":
            times = {"conv1": 3}
            for stage in (1, 2, 3):
                times |= {f"layer{stage}.{block}.conv1": 3 for block in range(0, (depth - 2) // 6, 2)}
        _over_time(self.net, "", times, released=True)
        self.default_cfg = {"input_size": (in_chans, 6, 28, 28)}
        clip = torch.zeros(1, in_chans, 2, 16, 16)
        for site in SMALL_SITES[blocks]:
            insert(self.net, "nonlocal", at=site, start="paper", example=clip, dims=3, over=over, **options)
        # convolutions of a single frame take 30 to 45 % less time so on a CPU, whatever the order of the clips
        self.net.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        return self.net(x)


def _together(sites: Sequence[str]) -> list[str]:
    """Patterns for sites that differ in their last digit alone: an insertion runs the network twice, however many."""
    last: dict[str, list[str]] = {}
    for site in sites:
        numbered = site[-1:].isdigit()
        last.setdefault(site[:-1] if numbered else site, []).append(site[-1] if numbered else "")
    return [f"{start}[{''.join(ends)}]" if any(ends) else start for start, ends in last.items()]


def nonlocal_sites(depth: int, blocks: int) -> list[str]:
    """Where the paper puts 1, 5 or 10 Non-local blocks into ResNet-50 or ResNet-101.

    1: before the last residual block of res4. 5: three in res4, two in res3, evenly spaced as in the published code.
    10: after every residual block of res3 and res4 of ResNet-50; for ResNet-101, where the paper does not say, after
    every block of res3 and six evenly spaced ones of res4.

    Source: Wang et al., Non-local Neural Networks, section 4.2 ("Going deeper with non-local blocks").
    """
    res4 = {50: 6, 101: 23}.get(depth)
    if res4 is None or blocks not in (1, 5, 10):
        raise FovealError(
            f"depth must be 50 or 101 and blocks 1, 5 or 10, got depth={depth}, blocks={blocks}"
        )
    if blocks == 1:
        return [f"layer3.{res4 - 2}"]
    if blocks == 5:
        every = {50: 2, 101: 7}[depth]
        return ["layer2.1", "layer2.3", *(f"layer3.{i * every - 1}" for i in (1, 2, 3))]
    every = res4 // 6
    return [f"layer2.{i}" for i in range(4)] + [f"layer3.{(i + 1) * every - 1}" for i in range(6)]
