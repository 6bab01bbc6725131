"""mmagic's SAGAN: generator and discriminator in one checkpoint, at 128 or 32 pixels, with classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.models import create_model
from foveal.models.sagan import GENERATOR, SAGAN, ResidualGenerator
from foveal.published.keymap import Format, Rule, Shape, Shapes

RIGHT = ".weight_v"
"""The right singular vector of PyTorch's first spectral norm; here it is made of the left one when it is needed."""


def _build(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    inplace = options.get("relu_inplace")
    if not isinstance(inplace, bool):
        raise FovealError(
            "relu_inplace must be stated, as the configuration's act_cfg has it: files of networks with it and without "
            f"look the same, got {inplace!r}"
        )
    blocks = sum(shapes.blocks(r"generator\.conv_blocks\.()(\d+)\.conv_1\."))
    size = {5: 128, 3: 32}.get(blocks)
    if size is None:
        raise FovealError(f"the generator must have 5 or 3 residual blocks, got {blocks}")
    rows = shapes.size("generator.noise2feat.weight_orig", 0, 0)
    eps = options.get("norm_eps", 1e-4)
    net = create_model(
        f"sagan_{size}",
        variant="mmagic",
        num_classes=shapes.size("discriminator.proj_y.weight_orig", 0, 1000),
        in_chans=shapes.size("generator.to_rgb.conv.weight_orig", 0, 3),
        width=max(1, rows // (16 * GENERATOR[size][0][0])),
        latent=shapes.size("generator.noise2feat.weight_orig", 1, 128),
        norm_eps=eps,
        relu_inplace=inplace,
    )
    return net, f"SAGAN of mmagic at {size} pixels, norms with eps {eps:g}, ReLU in place: {inplace}"


def _scalar(_shape: Shape) -> Shape:
    return ()


SPECTRAL = {"layer.weight": "weight_orig", "layer.bias": "bias", "u": "weight_u"}
POINTWISE = {"weight": "weight_orig", "u": "weight_u"}
ATTENTION = {"query": "theta", "key": "phi", "value": "g", "out": "o"}


def _layer(ours: str, theirs: str, names: Mapping[str, str] = SPECTRAL) -> list[Rule]:
    """The names of a layer under spectral norm; both are patterns, the second as `re.Match.expand` reads it."""
    return [
        Rule(rf"{ours}\.{one.replace('.', chr(92) + '.')}", f"{theirs}.{other}")
        for one, other in names.items()
    ]


def _block(ours: str, theirs: str) -> list[Rule]:
    """A residual block, or attention in its place."""
    rules = [
        *_layer(rf"{ours}\.conv([12])", rf"{theirs}.conv_\1.conv"),
        *_layer(rf"{ours}\.shortcut", rf"{theirs}.shortcut.conv"),
        *_layer(rf"{ours}\.norm([12])\.gain", rf"{theirs}.norm_\1.weight_embedding"),
        *_layer(rf"{ours}\.norm([12])\.shift", rf"{theirs}.norm_\1.bias_embedding"),
        Rule(rf"{ours}\.norm([12])\.norm\.(\w+)", rf"{theirs}.norm_\1.norm.\2"),
        Rule(rf"{ours}\.gamma", rf"{theirs}.gamma", _scalar),
    ]
    for one, other in ATTENTION.items():
        rules += _layer(rf"{ours}\.{one}", rf"{theirs}.{other}.conv", POINTWISE)
    return rules


def _rules(net: nn.Module) -> tuple[Rule, ...]:
    # the popular form has other parts
    if not isinstance(net, SAGAN) or not isinstance(net.generator, ResidualGenerator):
        return ()
    rules = [
        *_layer(r"generator\.project", "generator.noise2feat"),
        *_layer(r"generator\.to_image", "generator.to_rgb.conv"),
        Rule(r"generator\.norm\.(\w+)", r"generator.to_rgb.bn.\1"),
        *_layer(r"discriminator\.score", "discriminator.decision"),
        *_layer(r"discriminator\.classes", "discriminator.proj_y"),
        *_block(r"discriminator\.blocks\.0", "discriminator.from_rgb"),
    ]
    parts: Any = net
    for number in range(len(parts.generator.blocks)):
        rules += _block(rf"generator\.blocks\.{number}", f"generator.conv_blocks.{number}")
    for number in range(1, len(parts.discriminator.blocks)):
        rules += _block(rf"discriminator\.blocks\.{number}", f"discriminator.conv_blocks.{number - 1}")
    return tuple(rules)


def _without_right(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.endswith(RIGHT)}


def _with_right(state: Mapping[str, Any]) -> dict[str, Any]:
    """Right singular vectors beside the left ones, as a power iteration makes them."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        found[name] = value
        if name.endswith(".weight_u"):
            base = name.removesuffix(".weight_u")
            weight: Tensor = state[f"{base}.weight_orig"]
            with torch.no_grad():
                found[f"{base}{RIGHT}"] = F.normalize(weight.flatten(1).T @ value, dim=0)
    return found


FORMATS = (
    Format(
        name="mmagic-sagan",
        signature=(
            r"generator\.noise2feat\.weight_orig",
            r"discriminator\.from_rgb\.",
            r"generator\.conv_blocks\.",
        ),
        build=_build,
        rules=_rules,
        ambiguous_options=("relu_inplace", "norm_eps"),
        ignored_names=r"generator_ema\.|data_preprocessor\.",
        join=_without_right,
        part=_with_right,
    ),
)
