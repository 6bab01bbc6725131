"""Published DANets: the authors' code, mmsegmentation and pytorchcv."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from foveal.models import create_model
from foveal.published.classifiers import depth, pytorchcv_trunk, sizes
from foveal.published.keymap import STATE, Format, Rule, Shape, Shapes

AMBIGUOUS_OPTIONS = ("multi_grid", "output_stride", "dropout", "align_corners")
STEMS = {32: "c", 64: "s"}
"""timm's letter for a stem of three 3x3 convolutions, by the width of the first."""


def _scalar(shape: Shape) -> Shape:
    return ()


def _head(
    conv: Callable[[str, int], str], names: dict[str, str], gamma: Callable[[Shape], Shape]
) -> tuple[Rule, ...]:
    """The head's rules: ``conv(place, part)`` names the part 0 (convolution) or 1 (norm) of a place."""
    places = {r"position\.0": "position_in", r"position\.2": "position_out"}
    places |= {r"channel\.0": "channel_in", r"channel\.2": "channel_out"}
    rules = []
    for ours, place in places.items():
        rules += [
            Rule(rf"{ours}\.0\.weight", conv(names[place], 0) + ".weight"),
            Rule(rf"{ours}\.1\.{STATE}", conv(names[place], 1) + r".\1"),
        ]
    return (
        *rules,
        Rule(r"position\.1\.(query|key|value)\.(\w+)", names["project"]),
        Rule(r"position\.1\.gamma", names["position_gamma"], gamma),
        Rule(r"channel\.1\.gamma", names["channel_gamma"], gamma),
        Rule(r"classify\.1\.(\w+)", names["classify"] + r".\1"),
        Rule(r"classify_position\.1\.(\w+)", names["classify_position"] + r".\1"),
        Rule(r"classify_channel\.1\.(\w+)", names["classify_channel"] + r".\1"),
    )


def _same(shape: Shape) -> Shape:
    return shape


def _net(
    number: int, stem: str, shapes: Shapes, first: str, wide: str, last: str, options: dict[str, Any]
) -> tuple[nn.Module, str]:
    """A DANet; ``first``, ``wide`` and ``last`` name the first convolution, one of the head's and the classifier."""
    width = shapes.size(f"{wide}.weight", 0, 512)
    kept = sizes(shapes, first, last, classes=19) | ({} if width == 512 else {"width": width})
    return create_model(f"danet_resnet{number}{stem}", **kept, **options), _says(options)


def _says(options: dict[str, Any]) -> str:
    grid = options.get("multi_grid")
    dilation = "no multi-grid" if grid is None else "multi-grid " + " ".join(map(str, grid))
    aligned = "" if options.get("align_corners") else "not "
    return (
        "keys of an eighth of the width, channel softmax of the code (maximum minus energy), "
        f"{dilation}, corners {aligned}aligned"
    )


# ------------------------------------------------------------------------------------------------ the authors' code


def _official(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    options = {"multi_grid": (1, 2, 4), "align_corners": True, **options}
    number = depth(shapes, r"pretrained\.layer(\d)\.(\d+)\.", r"pretrained\.layer1\.0\.conv3\.")
    deep = shapes.any(r"pretrained\.conv1\.\d")
    first = "pretrained.conv1.0" if deep else "pretrained.conv1"
    stem = STEMS.get(shapes.size(f"{first}.weight", 0, 64), "s") if deep else ""
    return _net(number, stem, shapes, first, "head.conv5a.0", "head.conv8.1", options)


OFFICIAL = Format(
    name="danet-official",
    signature=(r"head\.conv5[ac]\.", r"head\.s[ac]\.", r"pretrained\."),
    build=_official,
    rules=(
        Rule(r"backbone\.(.*)", r"pretrained.\1"),
        *_head(
            lambda place, part: f"head.{place}.{part}",
            {
                "position_in": "conv5a",
                "position_out": "conv51",
                "channel_in": "conv5c",
                "channel_out": "conv52",
                "project": r"head.sa.\1_conv.\2",
                "position_gamma": "head.sa.gamma",
                "channel_gamma": "head.sc.gamma",
                "classify": "head.conv8.1",
                "classify_position": "head.conv6.1",
                "classify_channel": "head.conv7.1",
            },
            _same,
        ),
    ),
    ambiguous_options=AMBIGUOUS_OPTIONS,
    ignored_names=r"pretrained\.fc\.|auxlayer\.",
)

# -------------------------------------------------------------------------------------------------- mmsegmentation


def _mmseg(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    options = {"align_corners": False, **options}
    number = depth(shapes, r"backbone\.layer(\d)\.(\d+)\.", r"backbone\.layer1\.0\.conv3\.")
    deep = shapes.any(r"backbone\.stem\.")
    first = "backbone.stem.0" if deep else "backbone.conv1"
    stem = STEMS.get(shapes.size(f"{first}.weight", 0, 32), "c") if deep else ""
    if shapes.any(r"auxiliary_head\."):
        options["auxiliary"] = True
    return _net(number, stem, shapes, first, "decode_head.pam_in_conv.conv", "decode_head.conv_seg", options)


_MMSEG_HEAD = (
    *_head(
        lambda place, part: f"decode_head.{place}.{('conv', 'bn')[part]}",
        {
            "position_in": "pam_in_conv",
            "position_out": "pam_out_conv",
            "channel_in": "cam_in_conv",
            "channel_out": "cam_out_conv",
            "project": r"decode_head.pam.\1_project.\2",
            "position_gamma": "decode_head.pam.gamma.scale",
            "channel_gamma": "decode_head.cam.gamma.scale",
            "classify": "decode_head.conv_seg",
            "classify_position": "decode_head.pam_conv_seg",
            "classify_channel": "decode_head.cam_conv_seg",
        },
        _scalar,
    ),
    Rule(r"classify_auxiliary\.0\.0\.weight", "auxiliary_head.convs.0.conv.weight"),
    Rule(rf"classify_auxiliary\.0\.1\.{STATE}", r"auxiliary_head.convs.0.bn.\1"),
    Rule(r"classify_auxiliary\.1\.1\.(\w+)", r"auxiliary_head.conv_seg.\1"),
)


def _mmseg_rules(net: nn.Module) -> tuple[Rule, ...]:
    """A stem of three convolutions holds the norm that lies beside it here."""
    if "backbone.conv1.0.weight" not in net.state_dict():
        return _MMSEG_HEAD
    return (
        Rule(r"backbone\.conv1\.(\d)\.(\w+)", r"backbone.stem.\1.\2"),
        Rule(rf"backbone\.bn1\.{STATE}", r"backbone.stem.7.\1"),
        *_MMSEG_HEAD,
    )


MMSEG = Format(
    name="mmseg-danet",
    signature=(r"decode_head\.(pam|cam)_in_conv\.", r"decode_head\.(pam|cam)\.", r"backbone\."),
    build=_mmseg,
    rules=_mmseg_rules,
    ambiguous_options=AMBIGUOUS_OPTIONS,
)

# ------------------------------------------------------------------------------------------------------- pytorchcv

_STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))


def _pytorchcv(name: str, init: str, stage: str) -> Format:
    """``init`` and ``stage`` are what the backbone's parts are called: numbers, as it is cut off a longer Sequential,
    and where an older PyTorch cut it, words.
    """

    def build(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
        options = {"align_corners": True, **options}
        stages = rf"backbone\.{stage}([1-4])\.unit(\d+)\."
        number = depth(shapes, stages, rf"backbone\.{stage}1\.unit1\.body\.conv3\.")
        first = f"backbone.{init}.conv1.conv"
        return _net(number, "s", shapes, first, "head.branch_pa.conv1.conv", "head.conv", options)

    unit = r"backbone\.layer(?P<stage>\d)\.(?P<unit>\d+)"
    rules = [*pytorchcv_trunk(unit, rf"backbone.{stage}\g<stage>.unit#")]
    for part, (conv, norm) in enumerate(_STEM, start=1):
        rules += [
            Rule(rf"backbone\.{re.escape(conv)}\.weight", rf"backbone.{init}.conv{part}.conv.weight"),
            Rule(rf"backbone\.{re.escape(norm)}\.{STATE}", rf"backbone.{init}.conv{part}.bn.\1"),
        ]
    return Format(
        name=name,
        signature=(r"head\.branch_(pa|ca)\.", rf"backbone\.{init}\.", rf"backbone\.{stage}1\."),
        build=build,
        rules=(*rules, *_PYTORCHCV_HEAD),
        ambiguous_options=AMBIGUOUS_OPTIONS,
    )


_PYTORCHCV_HEAD = _head(
    lambda place, part: f"head.{place}.{('conv', 'bn')[part]}",
    {
        "position_in": "branch_pa.conv1",
        "position_out": "branch_pa.conv2",
        "channel_in": "branch_ca.conv1",
        "channel_out": "branch_ca.conv2",
        "project": r"head.branch_pa.att.\1_conv.\2",
        "position_gamma": "head.branch_pa.att.scale.alpha",
        "channel_gamma": "head.branch_ca.att.scale.alpha",
        "classify": "head.conv",
        "classify_position": "head.branch_pa.conv3",
        "classify_channel": "head.branch_ca.conv3",
    },
    _same,
)

FORMATS = (
    OFFICIAL,
    MMSEG,
    _pytorchcv("pytorchcv-danet", init="0", stage=""),
    _pytorchcv("pytorchcv-danet-words", init="init_block", stage="stage"),
)
