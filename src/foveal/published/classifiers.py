"""Published classifiers with SE and CBAM: timm, its legacy trunks, pytorchcv, and CBAM's own repository."""

import re
from functools import partial
from typing import Any

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion import insert, inserted, remove
from foveal.models import OWN, create_model
from foveal.published.keymap import STATE, Format, Rule, Shape, Shapes, pointwise

DEPTHS: dict[tuple[bool, Shape], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (2, 2, 2, 2)): 26,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
WIDTHS: dict[Shape, str] = {
    (128, 4): "resnext{}_32x4d",
    (256, 8): "resnext{}_32x8d",
    (256, 4): "resnext{}_64x4d",
    (256, 2): "net154",
}
"""By shape of the first 3x3 convolution, the grouped networks."""

TWINS = {
    "pytorchcv-seresnet": "stride 2 in the first 1x1 convolution, pytorchcv's seresnet50",
    "pytorchcv-seresnet-b": "stride 2 in the 3x3 convolution, pytorchcv's seresnet50b",
}
"""What tells formats apart whose files look the same."""

DROPS = ("drop_rate", "drop_path_rate")


def depth(shapes: Shapes, stages: str, third: str) -> int:
    """The depth of a ResNet; ``stages`` captures a name's stage and block, ``third`` is what bottlenecks alone have."""
    counts, bottleneck = shapes.blocks(stages), shapes.any(third)
    if (bottleneck, counts) not in DEPTHS:
        known = ", ".join(
            f"{list(c)} (ResNet-{number})" for (b, c), number in DEPTHS.items() if b == bottleneck
        )
        absent = 4 - len(counts)
        cut = f" and no tensors of {absent} of the 4 stages" if absent > 0 else ""
        raise FovealError(f"blocks per stage must be one of {known}, got {list(counts)}{cut}")
    return DEPTHS[bottleneck, counts]


def backbone(shapes: Shapes, stages: str = r"layer([1-4])\.(\d+)\.", first: str = "layer1.0.conv{}.") -> str:
    """timm's name of the plain network; ``first`` names the convolutions of the first block."""
    number = depth(shapes, stages, re.escape(first.format(3)))
    grouped = WIDTHS.get(shapes.get(first.format(2) + "weight", ())[:2])
    return (grouped or "resnet{}").format(number)


def sizes(shapes: Shapes, first: str, last: str, classes: int = 1000) -> dict[str, int]:
    """What the first convolution and the classifier tell of a network."""
    return {
        "num_classes": shapes.size(f"{last}.weight", 0, classes),
        "in_chans": shapes.size(f"{first}.weight", 1, 3),
    }


def with_block(block: str, plain: str, kept: dict[str, Any], **options: Any) -> nn.Module:
    """``plain`` with a block on every residual branch: by its name here, or assembled where it has none."""
    name = f"{block}_{plain}"
    if name in OWN:
        return create_model(name, **kept, **options)
    example = torch.zeros(1, kept["in_chans"], 64, 64)
    net = create_model(plain, **kept)
    return insert(net, block, at="residual", start="paper", example=example, **options)


# ------------------------------------------------------------------------------------------------------------ timm


def _timm(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    plain, deep = backbone(shapes), shapes.any(r"conv1\.\d")
    if deep != (plain == "net154"):
        stem = "three convolutions" if deep else "one convolution"
        raise FovealError(
            f"a stem of three convolutions must be SENet-154's, got {plain} with a stem of {stem}"
        )
    kept = {**sizes(shapes, "conv1.0" if deep else "conv1", "fc"), **options}
    net = with_block("se", plain, kept)
    narrow = _other_widths(net, shapes, kept["in_chans"])
    return net, "SE with biases" + narrow + ", stride 2 in the 3x3 convolution, ReLU"


def _other_widths(net: nn.Module, shapes: Shapes, in_chans: int) -> str:
    """Give the blocks of a stage the file's hidden width where it is not a sixteenth (timm rounds to eights)."""
    changed = ""
    for stage in range(1, 5):
        here = [one for one in inserted(net) if one.site.startswith(f"layer{stage}.")]
        usual = here[0].channels // 16
        hidden = shapes.size(f"layer{stage}.0.se.fc1.weight", 0, usual)
        if hidden != usual:
            remove(net, f"layer{stage}.**.se")
            example = torch.zeros(1, in_chans, 64, 64)
            insert(net, "se", stages=(stage,), start="paper", example=example, hidden=hidden)
            changed += f", {hidden} hidden channels in stage {stage}"
    return changed


TIMM_SE = Format(
    name="timm-se",
    signature=(r"layer\d\.\d+\.se\.fc\d\.", r"conv1\.", r"layer\d\.\d+\.bn1\."),
    build=_timm,
    rules=(
        Rule(r"(layer\d\.\d+)\.bn\d\.se\.(fc\d)\.weight", r"\1.se.\2.weight", pointwise),
        Rule(r"(layer\d\.\d+)\.bn\d\.se\.(fc\d)\.bias", r"\1.se.\2.bias"),
    ),
    ambiguous_options=DROPS,
    assumed="act_layer ReLU, output_stride 32, no aa_layer, global_pool avg",
)


def _legacy(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    name = backbone(shapes)
    if f"legacy_se_{name}" not in OWN:
        raise FovealError(f"the network must be one of timm's legacy_se*, got blocks of {name}")
    kept = {**sizes(shapes, "layer0.conv1", "last_linear"), **options}
    stride = "first 1x1" if name.startswith("resnet") else "3x3"
    variant = f"SE with biases, stride 2 in the {stride} convolution, max-pooling that rounds up"
    if name in ("resnet18", "resnet34"):
        variant = "SE with biases after a ReLU, max-pooling that rounds up"
    return create_model(f"legacy_se_{name}", **kept), variant


TIMM_LEGACY_SE = Format(
    name="timm-legacy-se",
    signature=(r"layer\d\.\d+\.se_module\.fc\d\.", r"layer0\.", r"layer\d\.\d+\.bn1\."),
    build=_legacy,
    rules=(
        Rule(r"(.*\.se_module)\.se\.(fc\d)\.weight", r"\1.\2.weight", pointwise),
        Rule(r"(.*\.se_module)\.se\.(fc\d)\.bias", r"\1.\2.bias"),
    ),
    ambiguous_options=("drop_rate",),
)

# ------------------------------------------------------------------------------------------------------- pytorchcv

UNIT = r"layer(?P<stage>\d)\.(?P<unit>\d+)"
AT = r"features.stage\g<stage>.unit#"


def pytorchcv_trunk(ours: str, at: str) -> tuple[Rule, ...]:
    """Names of a pytorchcv ResNet's residual blocks: ``ours`` is where the stages are here, ``at`` a block there."""
    return (
        Rule(rf"{ours}\.conv(\d)\.weight", rf"{at}.body.conv\3.conv.weight"),
        Rule(rf"{ours}\.bn(\d)\.{STATE}", rf"{at}.body.conv\3.bn.\4"),
        Rule(rf"{ours}\.downsample\.0\.weight", rf"{at}.identity_conv.conv.weight"),
        Rule(rf"{ours}\.downsample\.1\.{STATE}", rf"{at}.identity_conv.bn.\3"),
    )


PYTORCHCV = (
    Rule(rf"{UNIT}\.bn\d\.se\.fc(\d)\.weight", rf"{AT}.se.conv\3.weight", pointwise),
    Rule(rf"{UNIT}\.bn\d\.se\.fc(\d)\.bias", rf"{AT}.se.conv\3.bias"),
    Rule(rf"{UNIT}\.bn\d\.cbam\.channel\.fc(\d)\.(\w+)", rf"{AT}.cbam.ch_gate.mlp.fc\3.\4"),
    Rule(rf"{UNIT}\.bn\d\.cbam\.spatial\.conv\.weight", rf"{AT}.cbam.sp_gate.conv.conv.weight"),
    Rule(rf"{UNIT}\.bn\d\.cbam\.spatial\.norm\.{STATE}", rf"{AT}.cbam.sp_gate.conv.bn.\3"),
    *pytorchcv_trunk(UNIT, AT),
    Rule(r"conv1\.weight", "features.init_block.conv.conv.weight"),
    Rule(rf"bn1\.{STATE}", r"features.init_block.conv.bn.\1"),
    Rule(r"fc\.(\w+)", r"output.\1"),
)


def _pytorchcv(shapes: Shapes, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's name of the plain network and what to make it with."""
    plain = backbone(shapes, r"features\.stage(\d)\.unit(\d+)\.", "features.stage1.unit1.body.conv{}.conv.")
    return plain, {**sizes(shapes, "features.init_block.conv.conv", "output"), **options}


def _pytorchcv_se(shapes: Shapes, options: dict[str, Any], *, stride_first: bool) -> tuple[nn.Module, str]:
    plain, kept = _pytorchcv(shapes, options)
    if plain in ("resnet18", "resnet34"):
        return with_block("se", plain, kept), "SE with biases"
    if stride_first and plain in ("resnet50", "resnet101", "resnet152"):  # ResNeXts are of one kind there
        kept["stride_first"] = True
    stride = "first 1x1" if "stride_first" in kept else "3x3"
    return with_block("se", plain, kept), f"SE with biases, stride 2 in the {stride} convolution"


SE_SIGNATURE = (r"features\.stage\d\.unit\d+\.se\.conv\d\.", r"features\.init_block\.conv\.", r"output\.")
PYTORCHCV_SE = Format(
    name="pytorchcv-seresnet",
    signature=SE_SIGNATURE,
    build=partial(_pytorchcv_se, stride_first=True),
    rules=PYTORCHCV,
    ambiguous_options=DROPS,
)
PYTORCHCV_SE_B = Format(
    name="pytorchcv-seresnet-b",
    signature=SE_SIGNATURE,
    build=partial(_pytorchcv_se, stride_first=False),
    rules=PYTORCHCV,
    ambiguous_options=DROPS,
)

# ------------------------------------------------------------------------------------------------------------ CBAM

OFFICIAL = "CBAM variant 'official': biased MLP, maximum before mean, BatchNorm after the 7x7 convolution"


def _pytorchcv_cbam(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    return with_block("cbam", *_pytorchcv(shapes, options), variant="official"), OFFICIAL


PYTORCHCV_CBAM = Format(
    name="pytorchcv-cbam",
    signature=(
        r"features\.stage\d\.unit\d+\.cbam\.(ch|sp)_gate\.",
        r"features\.init_block\.conv\.",
        r"output\.",
    ),
    build=_pytorchcv_cbam,
    rules=PYTORCHCV,
    ambiguous_options=DROPS,
)


def _official(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    kept = {**sizes(shapes, "conv1", "fc"), **options}
    return with_block("cbam", backbone(shapes), kept, variant="official"), OFFICIAL


CBAM_OFFICIAL = Format(
    name="cbam-official",
    signature=(r"layer\d\.\d+\.cbam\.(ChannelGate|SpatialGate)\.", r"conv1\.", r"layer\d\.\d+\.bn1\."),
    build=_official,
    rules=(
        Rule(r"(layer\d\.\d+)\.bn\d\.cbam\.channel\.fc1\.(\w+)", r"\1.cbam.ChannelGate.mlp.1.\2"),
        Rule(r"(layer\d\.\d+)\.bn\d\.cbam\.channel\.fc2\.(\w+)", r"\1.cbam.ChannelGate.mlp.3.\2"),
        Rule(
            r"(layer\d\.\d+)\.bn\d\.cbam\.spatial\.conv\.weight", r"\1.cbam.SpatialGate.spatial.conv.weight"
        ),
        Rule(rf"(layer\d\.\d+)\.bn\d\.cbam\.spatial\.norm\.{STATE}", r"\1.cbam.SpatialGate.spatial.bn.\2"),
    ),
    ambiguous_options=DROPS,
)

# ------------------------------------------------------------------------------- torchvision's ResNet with a listing's


def _reduction(shapes: Shapes, name: str) -> dict[str, int]:
    """The reduction that the first block's first layer shows, where it is not the usual 16."""
    hidden, channels = (*shapes.get(name, ()), 0, 0)[:2]
    reduction = channels // hidden if hidden else 16
    return {} if reduction == 16 else {"reduction": reduction}


def _senet_pytorch(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    kept = {**sizes(shapes, "conv1", "fc"), **options}
    bias = shapes.any(r"layer\d\.\d+\.se\.fc\.0\.bias")
    own = _reduction(shapes, "layer1.0.se.fc.0.weight") | ({} if bias else {"bias": False})
    said = "with" if bias else "without"
    return with_block(
        "se", backbone(shapes), kept, **own
    ), f"SE {said} biases, stride 2 in the 3x3 convolution"


SENET_PYTORCH = Format(
    name="senet-pytorch",
    signature=(r"layer\d\.\d+\.se\.fc\.[02]\.", r"conv1\.", r"layer\d\.\d+\.bn1\."),
    build=_senet_pytorch,
    rules=(
        Rule(r"(layer\d\.\d+)\.bn\d\.se\.fc1\.(\w+)", r"\1.se.fc.0.\2"),
        Rule(r"(layer\d\.\d+)\.bn\d\.se\.fc2\.(\w+)", r"\1.se.fc.2.\2"),
    ),
    ambiguous_options=DROPS,
)


def _cbam_listing(shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    kept = {**sizes(shapes, "conv1", "fc"), **options}
    own = _reduction(shapes, "layer1.0.ca.fc1.weight")
    kernel = shapes.size("layer1.0.sa.conv1.weight", 2, 7)
    own |= {} if kernel == 7 else {"kernel_size": kernel}
    net = with_block("cbam", backbone(shapes), kept, variant="article", **own)
    return (
        net,
        "CBAM variant 'article': MLP without biases, mean before maximum, no norm after the convolution",
    )


CBAM_LISTING = Format(
    name="cbam-listing",
    signature=(r"layer\d\.\d+\.ca\.fc\d\.", r"layer\d\.\d+\.sa\.conv1\.", r"conv1\.", r"layer\d\.\d+\.bn1\."),
    build=_cbam_listing,
    rules=(
        Rule(r"(layer\d\.\d+)\.bn\d\.cbam\.channel\.(fc\d)\.weight", r"\1.ca.\2.weight", pointwise),
        Rule(r"(layer\d\.\d+)\.bn\d\.cbam\.spatial\.conv\.weight", r"\1.sa.conv1.weight"),
    ),
    ambiguous_options=DROPS,
)

FORMATS = (
    TIMM_SE,
    TIMM_LEGACY_SE,
    SENET_PYTORCH,
    PYTORCHCV_SE,
    PYTORCHCV_SE_B,
    PYTORCHCV_CBAM,
    CBAM_OFFICIAL,
    CBAM_LISTING,
)
