"""Whole video networks of mmaction2 (I3D) and PySlowFast (C2D, I3D), with or without Non-local blocks: ResNet-50."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from foveal.errors import FovealError
from foveal.models import create_model
from foveal.models.video import VideoResNet
from foveal.published.blocks import AMBIGUOUS_SIMILARITIES
from foveal.published.classifiers import depth
from foveal.published.keymap import STATE, Format, Rule, Shapes

OURS = r"net\.layer(?P<stage>\d)\.(?P<block>\d+)"


def _built(
    shapes: Shapes, options: dict[str, Any], stem: str, last: str, blocks: int, **block: Any
) -> tuple[nn.Module, str]:
    """The network of a file, and in words which it is.

    Args:
        stem: name of the first convolution's weight; ``last`` of the classifier's.
        blocks: how many Non-local blocks the file has.
        block: their options.
    """
    kernel = shapes.get(stem, ())
    if len(kernel) != 5 or kernel[2] not in (1, 5):
        raise FovealError(f"the first convolution must go over 1 or 5 frames, got the shape {kernel}")
    kind = "i3d" if kernel[2] == 5 else "c2d"
    stride = options.get("stem_stride", 1)
    net = create_model(
        f"nonlocal_{kind}_resnet50",
        variant="released",
        num_classes=shapes.size(last, 0, 400),
        in_chans=kernel[1],
        blocks=blocks,
        stem_stride=stride,
        **(block if blocks else {}),
    )
    similarity = f", {blocks} Non-local blocks, {block['pairwise']}" if blocks else ""
    return net, f"{kind.upper()} as released, strides over time of {stride} in the stem{similarity}"


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
    if len(shapes.get("backbone.conv1.conv.weight", ())) == 4:
        raise FovealError(
            "the network must be an I3D, got a C2D of mmaction2, whose first pooling has no padding, unlike any here"
        )
    _require_50(shapes, r"backbone\.layer([1-4])\.(\d+)\.", "backbone.layer1.0.conv3.conv.")
    blocks = len(
        [name for name in shapes if re.fullmatch(r".*\.non_local_block\.conv_out\.conv\.weight", name)]
    )
    block: dict[str, Any] = {}
    if blocks:
        gaussian = not shapes.any(r".*\.non_local_block\.theta\.")
        pooled = shapes.any(r".*\.non_local_block\.g\.0\.")
        block = {
            "pairwise": _similarity(options, "gaussian" if gaussian else None),
            "subsample": "after" if pooled else "none",
            "scaled": options.get("scaled", False),
        }
    # its I3D halve the frames twice before the first stage
    stated = {"stem_stride": 2, **options}
    return _built(shapes, stated, "backbone.conv1.conv.weight", "cls_head.fc_cls.weight", blocks, **block)


def _mmaction_rules(net: nn.Module) -> tuple[Rule, ...]:
    there = r"backbone.layer\g<stage>.\g<block>"
    pooled = ".0" if _subsample(net) != "none" else ""
    return (
        Rule(r"net\.conv1\.weight", "backbone.conv1.conv.weight"),
        Rule(rf"net\.bn1\.{STATE}", r"backbone.conv1.bn.\1"),
        Rule(rf"{OURS}\.conv(\d)\.weight", rf"{there}.conv\3.conv.weight"),
        Rule(rf"{OURS}\.bn(\d)\.{STATE}", rf"{there}.conv\3.bn.\4"),
        Rule(rf"{OURS}\.downsample\.0\.weight", rf"{there}.downsample.conv.weight"),
        Rule(rf"{OURS}\.downsample\.1\.{STATE}", rf"{there}.downsample.bn.\3"),
        Rule(rf"{OURS}\.nonlocal_\.theta\.(\w+)", rf"{there}.non_local_block.theta.conv.\3"),
        Rule(rf"{OURS}\.nonlocal_\.(phi|g)\.(\w+)", rf"{there}.non_local_block.\3{pooled}.conv.\4"),
        Rule(rf"{OURS}\.nonlocal_\.out\.(\w+)", rf"{there}.non_local_block.conv_out.conv.\3"),
        Rule(rf"{OURS}\.nonlocal_\.norm\.{STATE}", rf"{there}.non_local_block.conv_out.bn.\3"),
        Rule(r"net\.fc\.(\w+)", r"cls_head.fc_cls.\1"),
    )


# ----------------------------------------------------------------------------------------------------------- PySlowFast


def _slowfast(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    _require_50(shapes, r"s([2-5])\.pathway0_res(\d+)\.", "s2.pathway0_res0.branch2.c.")
    blocks = len(
        [name for name in shapes if re.fullmatch(r".*\.pathway0_nonlocal\d+\.conv_out\.weight", name)]
    )
    block: dict[str, Any] = {}
    if blocks:
        pairwise = _similarity(options, None)
        # keys are pooled before their convolutions, and the last one has a bias before its norm
        block = {"pairwise": pairwise, "subsample": "before", "out_bias": True}
        block["scaled"] = pairwise == "embedded_gaussian"
    return _built(shapes, options, "s1.pathway0_stem.conv.weight", "head.projection.weight", blocks, **block)


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


def _require_50(shapes: Shapes, stages: str, third: str) -> None:
    found = depth(shapes, stages, re.escape(third))
    if found != 50:
        raise FovealError(f"video networks must be of ResNet-50, got ResNet-{found}")


def _subsample(net: nn.Module) -> str:
    if not isinstance(net, VideoResNet):
        return "none"
    return next((one.subsample for one in net.modules() if hasattr(one, "subsample")), "none")  # pyright: ignore[reportReturnType]


FORMATS = (
    Format(
        name="mmaction2-i3d",
        signature=(r"backbone\.layer1\.0\.conv1\.conv\.", r"backbone\.conv1\.conv\.", r"cls_head\.fc_cls\."),
        build=_mmaction,
        rules=_mmaction_rules,
        ambiguous_options=("pairwise", "scaled", "stem_stride"),
    ),
    Format(
        name="pyslowfast",
        signature=(r"s1\.pathway0_stem\.", r"s2\.pathway0_res0\.branch2\.", r"head\.projection\."),
        build=_slowfast,
        rules=_slowfast_rules,
        ambiguous_options=("pairwise",),
    ),
)
