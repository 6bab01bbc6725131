"""Single blocks: SE as the common listing and timm have it; Non-local of the common PyTorch port and of mmcv."""

import re
from typing import Any

from torch import nn

from foveal.errors import FovealError
from foveal.nn import NonLocal, SqueezeExcite
from foveal.published.keymap import STATE, Format, Rule, Shape, Shapes, pointwise

AMBIGUOUS_SIMILARITIES = ("embedded_gaussian", "dot_product")


def given_options(net: nn.Module) -> dict[str, Any]:
    """What a Non-local block, or the first one of a network, knows and its file does not."""
    block = next((module for module in net.modules() if isinstance(module, NonLocal)), None)
    return {} if block is None else {"pairwise": block.pairwise, "scaled": block.scaled}


def prefixes(shapes: Shapes) -> list[str]:
    """Where in a whole network's file there are Non-local blocks."""
    outs = (m[1] for name in shapes if (m := re.fullmatch(r"(.+\.)(?:conv_out\.conv|W|W\.0)\.weight", name)))
    return [p for p in outs if shapes.any(re.escape(p) + r"g\.")]


def _block(
    shapes: Shapes, options: dict[str, Any], *, conv: str, concat: str, norm: str, out_bias: bool | None
) -> tuple[nn.Module, str]:
    """``conv`` is what a layer's name ends in, as in ``theta.conv.weight``."""
    pooled = shapes.any(r"g\.0\.")
    weight = shapes.get(f"g.0{conv}.weight" if pooled else f"g{conv}.weight", ())
    if len(weight) not in (3, 4, 5):
        raise FovealError(f"g must be a 1x1 convolution for 1 to 3 spatial sizes, got the shape {weight}")
    told = None
    if shapes.any(concat):
        told = "concatenation"
    elif not shapes.any(r"theta\."):
        told = "gaussian"
    pairwise = options.pop("pairwise", told)
    if told is None and pairwise not in AMBIGUOUS_SIMILARITIES:
        raise FovealError(
            f"pairwise must be stated as {' or '.join(map(repr, AMBIGUOUS_SIMILARITIES))}, for their files look the "
            f"same, got {pairwise!r}"
        )
    if told is not None and pairwise != told:
        raise FovealError(f"pairwise must be {told!r} for these names, got {pairwise!r}")
    block = NonLocal(
        weight[1],
        inner=weight[0],
        dims=len(weight) - 2,
        pairwise=pairwise,
        subsample="after" if pooled else "none",
        norm="batch" if shapes.any(norm) else "none",
        out_bias=out_bias,
        **options,
    )
    scale = "" if told is not None or pairwise == "dot_product" else f", scale {block.scale:.3g}"
    after = ", keys sub-sampled after phi and g" if pooled else ""
    return block, f"one Non-local block, {block.dims}-D, {pairwise}{scale}{after}"


def _paired(shape: Shape) -> Shape:
    """(2, width), for theta and phi, as the kernel of a 1x1 convolution over both."""
    return (1, shape[0] * shape[1], 1, 1)


# ------------------------------------------------------------------------------------------------- the common port


def _port(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    return _block(
        shapes,
        dict(options),
        conv="",
        concat=r"concat_project\.",
        norm=r"W\.1\.",
        out_bias=True if shapes.any(r"W\.0\.bias") else None,
    )


def _mmcv(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    options = dict(options)
    embedded = options.get("pairwise") == "embedded_gaussian"
    if embedded and options.get("scaled") not in (True, False, "mmdet"):
        raise FovealError(
            "scaled must be stated for embedded_gaussian, for the file does not show it: use_scale is True by default "
            "in mmcv and False in mmaction2's configurations, and old mmdetection's scale is 'mmdet', "
            f"got {options.get('scaled')!r}"
        )
    if not embedded:
        options.pop("scaled", None)
    return _block(
        shapes, options, conv=".conv", concat=r"concat_project\.", norm=r"conv_out\.bn\.", out_bias=None
    )


def _rules(net: nn.Module, *, conv: str, out: str, norm: str, concat: str) -> tuple[Rule, ...]:
    """Max pooling after phi and g makes them the first of two there."""
    first = ".0" if getattr(net, "subsample", "none") != "none" else ""
    return (
        Rule(r"theta\.(\w+)", rf"theta{conv}.\1"),
        Rule(r"(phi|g)\.(\w+)", rf"\1{first}{conv}.\2"),
        Rule(r"out\.(\w+)", rf"{out}.\1"),
        Rule(rf"norm\.{STATE}", rf"{norm}.\1"),
        Rule("pair_weight", f"{concat}.weight", _paired),
    )


def _port_rules(net: nn.Module) -> tuple[Rule, ...]:
    out = "W" if isinstance(getattr(net, "norm", None), nn.Identity) else "W.0"
    return _rules(net, conv="", out=out, norm="W.1", concat="concat_project.0")


def _mmcv_rules(net: nn.Module) -> tuple[Rule, ...]:
    return _rules(net, conv=".conv", out="conv_out.conv", norm="conv_out.bn", concat="concat_project.conv")


# -------------------------------------------------------------------------------------------------------------- SE


def _se(shapes: Shapes, options: dict[str, Any], first: str) -> tuple[nn.Module, str]:
    hidden, channels = (*shapes.get(f"{first}.weight", ()), 1, 1)[:2]
    bias = shapes.any(re.escape(first) + r"\.bias")
    block = SqueezeExcite(channels, hidden=hidden, bias=bias, **options)
    return block, f"one SE block with{'' if bias else 'out'} biases, {channels} channels, {hidden} hidden"


def _listed_se(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    return _se(shapes, options, "fc.0")


def _timm_se(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    return _se(shapes, options, "fc1")


FORMATS = (
    Format(
        name="se-listing-block",
        signature=(r"fc\.0\.weight", r"fc\.2\.weight"),
        build=_listed_se,
        rules=(Rule(r"fc1\.(\w+)", r"fc.0.\1"), Rule(r"fc2\.(\w+)", r"fc.2.\1")),
        only=r"fc\.[02]\.",
    ),
    Format(
        name="timm-se-block",
        signature=(r"fc1\.weight", r"fc2\.weight"),
        build=_timm_se,
        rules=(Rule(r"(fc\d)\.weight", r"\1.weight", pointwise), Rule(r"(fc\d)\.bias", r"\1.bias")),
        only=r"fc[12]\.",
    ),
    Format(
        name="nonlocal-port",
        signature=(r"g\.(0\.)?(weight|bias)", r"W\.(0\.)?(weight|bias)"),
        build=_port,
        rules=_port_rules,
        ambiguous_options=("pairwise",),
    ),
    Format(
        name="mmcv-nonlocal",
        signature=(r"g\.(0\.)?conv\.", r"conv_out\.conv\."),
        build=_mmcv,
        rules=_mmcv_rules,
        ambiguous_options=("pairwise", "scaled"),
    ),
)
