"""Whole video networks of mmaction2 and PySlowFast: C2D and I3D of ResNet-50 and -101, with Non-local or without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from foveal.errors import FovealError
from foveal.models import create_model
from foveal.models.video import STAGES, VideoResNet, nonlocal_sites
from foveal.published.blocks import AMBIGUOUS_SIMILARITIES
from foveal.published.classifiers import depth
from foveal.published.keymap import STATE, Format, Rule, Shape, Shapes

OURS = r"net\.layer(?P<stage>\d)\.(?P<block>\d+)"


def _built(
    shapes: Shapes,
    depth: int,
    options: dict[str, Any],
    stem: str,
    last: str,
    sites: Sequence[str],
    **block: Any,
) -> tuple[nn.Module, str]:
    """The network of a file, and in words which it is.

    Args:
        depth: of the ResNet.
        stem: name of the first convolution's weight; ``last`` of the classifier's.
        sites: the residual blocks, by our paths, behind which the file has Non-local blocks.
        block: their options.
    """
    kernel = shapes.get(stem, ())
    frames = kernel[2] if len(kernel) == 5 else 1
    if len(kernel) not in (4, 5) or frames not in (1, 5):
        raise FovealError(f"the first convolution must go over 1 or 5 frames, got the shape {kernel}")
    kind = "i3d" if frames == 5 else "c2d"
    usual: dict[int, list[str]] = {0: [], **{count: nonlocal_sites(depth, count) for count in (1, 5, 10)}}
    stride = options.get("stem_stride", 1)
    net = create_model(
        f"nonlocal_{kind}_resnet{depth}",
        variant="released",
        num_classes=shapes.size(last, 0, 400),
        in_chans=kernel[1],
        blocks=next((count for count, known in usual.items() if known == sites), sites),
        stem_stride=stride,
        pool_padding=options.get("pool_padding", 1),
        pool_frames=options.get("pool_frames", 2),
        **(block if sites else {}),
    )
    similarity = f", {len(sites)} Non-local blocks, {block['pairwise']}" if sites else ""
    pools = "" if options.get("pool_frames", 2) == 2 else "_NOPOOL"
    return net, f"{kind.upper()}{pools} as released, strides over time of {stride} in the stem{similarity}"


def _sites(shapes: Shapes, pattern: str, first: int) -> list[str]:
    """The residual blocks behind which there are Non-local ones, in order.

    Args:
        pattern: captures stage and block; ``first`` is the number of the first stage there.
    """
    found = {m.groups() for name in shapes if (m := re.fullmatch(pattern, name))}
    return [
        f"layer{stage}.{block}"
        for stage, block in sorted((int(stage) - first + 1, int(block)) for stage, block in found)
    ]


def _similarity(options: dict[str, Any], told: str | None) -> str:
    pairwise = options.get("pairwise", told)
    allowed = AMBIGUOUS_SIMILARITIES if told is None else (told,)
    if pairwise not in allowed:
        raise FovealError(
            f"pairwise must be stated as {' or '.join(map(repr, allowed))}, for their files look the same, got "
            f"{pairwise!r}"
        )
    return pairwise


# ------------------------------------------------------------------------------------------------------------ mmaction2


def _mmaction(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    number = _depth(shapes, r"backbone\.layer([1-4])\.(\d+)\.", "backbone.layer1.0.conv3.conv.")
    sites = _sites(shapes, r"backbone\.layer(\d)\.(\d+)\.non_local_block\.conv_out\.conv\.weight", 1)
    stem, last = "backbone.conv1.conv.weight", "cls_head.fc_cls.weight"
    if len(shapes.get(stem, ())) == 4:
        if options.get("pool_padding") != 0:
            raise FovealError(
                "pool_padding must be stated as 0, which says that this is a C2D of mmaction2: a TSN, which pools no "
                f"frames and is not read, has the same names; got {options.get('pool_padding')!r}"
            )
        return _built(shapes, number, options, stem, last, sites)
    block: dict[str, Any] = {}
    if sites:
        gaussian = not shapes.any(r".*\.non_local_block\.theta\.")
        pooled = shapes.any(r".*\.non_local_block\.g\.0\.")
        block = {
            "pairwise": _similarity(options, "gaussian" if gaussian else None),
            "subsample": "after" if pooled else "none",
            "scaled": options.get("scaled", False),
        }
    # its I3D halve the frames twice before the first stage
    stated = {"stem_stride": 2, **options}
    return _built(shapes, number, stated, stem, last, sites, **block)


def _without_time(shape: Shape) -> Shape:
    """Of a convolution over one frame that of a convolution of images."""
    return shape[:2] + shape[3:]


def _mmaction_rules(net: nn.Module) -> tuple[Rule, ...]:
    # a C2D folds frames into the batch
    frames_in_batch = isinstance(net, VideoResNet) and net.net.maxpool.padding == (0, 0, 0)
    shape = _without_time if frames_in_batch else tuple
    there = r"backbone.layer\g<stage>.\g<block>"
    pooled = ".0" if _subsample(net) != "none" else ""
    return (
        Rule(r"net\.conv1\.weight", "backbone.conv1.conv.weight", shape),
        Rule(rf"net\.bn1\.{STATE}", r"backbone.conv1.bn.\1"),
        Rule(rf"{OURS}\.conv(\d)\.weight", rf"{there}.conv\3.conv.weight", shape),
        Rule(rf"{OURS}\.bn(\d)\.{STATE}", rf"{there}.conv\3.bn.\4"),
        Rule(rf"{OURS}\.downsample\.0\.weight", rf"{there}.downsample.conv.weight", shape),
        Rule(rf"{OURS}\.downsample\.1\.{STATE}", rf"{there}.downsample.bn.\3"),
        Rule(rf"{OURS}\.nonlocal_\.theta\.(\w+)", rf"{there}.non_local_block.theta.conv.\3"),
        Rule(rf"{OURS}\.nonlocal_\.(phi|g)\.(\w+)", rf"{there}.non_local_block.\3{pooled}.conv.\4"),
        Rule(rf"{OURS}\.nonlocal_\.out\.(\w+)", rf"{there}.non_local_block.conv_out.conv.\3"),
        Rule(rf"{OURS}\.nonlocal_\.norm\.{STATE}", rf"{there}.non_local_block.conv_out.bn.\3"),
        Rule(r"net\.fc\.(\w+)", r"cls_head.fc_cls.\1"),
    )


# ----------------------------------------------------------------------------------------------------------- PySlowFast


def _slowfast(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    if options.get("pool_frames") not in (1, 2):
        raise FovealError(
            "pool_frames must be stated as 2 for a C2D or I3D, or as 1 for a C2D_NOPOOL or I3D_NOPOOL, which pool no "
            f"frames and whose files look the same; got {options.get('pool_frames')!r}"
        )
    number = _depth(shapes, r"s([2-5])\.pathway0_res(\d+)\.", "s2.pathway0_res0.branch2.c.")
    sites = _sites(shapes, r"s(\d)\.pathway0_nonlocal(\d+)\.conv_out\.weight", 2)
    block: dict[str, Any] = {}
    if sites:
        pairwise = _similarity(options, None)
        # keys are pooled before their convolutions, and the last one has a bias before its norm
        block = {"pairwise": pairwise, "subsample": "before", "out_bias": True}
        block["scaled"] = pairwise == "embedded_gaussian"
    stem, last = "s1.pathway0_stem.conv.weight", "head.projection.weight"
    return _built(shapes, number, options, stem, last, sites, **block)


def _slowfast_rules(net: nn.Module) -> tuple[Rule, ...]:
    rules: list[Rule] = [
        Rule(r"net\.conv1\.weight", "s1.pathway0_stem.conv.weight"),
        Rule(rf"net\.bn1\.{STATE}", r"s1.pathway0_stem.bn.\1"),
        Rule(r"net\.fc\.(\w+)", r"head.projection.\1"),
    ]
    for stage in (1, 2, 3, 4):
        ours, there = rf"net\.layer{stage}\.(\d+)", rf"s{stage + 1}.pathway0_res\1"
        for number, letter in ((1, "a"), (2, "b"), (3, "c")):
            rules += [
                Rule(rf"{ours}\.conv{number}\.weight", rf"{there}.branch2.{letter}.weight"),
                Rule(rf"{ours}\.bn{number}\.{STATE}", rf"{there}.branch2.{letter}_bn.\2"),
            ]
        block = rf"s{stage + 1}.pathway0_nonlocal\1"
        rules += [
            Rule(rf"{ours}\.downsample\.0\.weight", rf"{there}.branch1.weight"),
            Rule(rf"{ours}\.downsample\.1\.{STATE}", rf"{there}.branch1_bn.\2"),
            Rule(rf"{ours}\.nonlocal_\.(theta|phi|g|out)\.(\w+)", rf"{block}.conv_\2.\3"),
            Rule(rf"{ours}\.nonlocal_\.norm\.{STATE}", rf"{block}.bn.\2"),
        ]
    return tuple(rules)


def _depth(shapes: Shapes, stages: str, third: str) -> int:
    found = depth(shapes, stages, re.escape(third))
    if found not in STAGES:
        raise FovealError(f"video networks must be of ResNet-50 or ResNet-101, got ResNet-{found}")
    return found


def _subsample(net: nn.Module) -> str:
    if not isinstance(net, VideoResNet):
        return "none"
    return next((one.subsample for one in net.modules() if hasattr(one, "subsample")), "none")  # pyright: ignore[reportReturnType]


FORMATS = (
    Format(
        name="mmaction2",
        signature=(r"backbone\.layer1\.0\.conv1\.conv\.", r"backbone\.conv1\.conv\.", r"cls_head\.fc_cls\."),
        build=_mmaction,
        rules=_mmaction_rules,
        ambiguous_options=("pairwise", "scaled", "stem_stride", "pool_padding"),
    ),
    Format(
        name="pyslowfast",
        signature=(r"s1\.pathway0_stem\.", r"s2\.pathway0_res0\.branch2\.", r"head\.projection\."),
        build=_slowfast,
        rules=_slowfast_rules,
        ambiguous_options=("pairwise", "pool_frames"),
    ),
)
