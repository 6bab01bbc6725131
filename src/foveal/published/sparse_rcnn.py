"""Published Sparse R-CNNs: the authors' code on detectron2, and mmdetection."""

import re
from functools import partial
from typing import Any

from torch import nn

from foveal.models import create_model
from foveal.published.classifiers import depth
from foveal.published.coco import detection_info
from foveal.published.keymap import STATE, Format, Rule, Shapes

AMBIGUOUS_OPTIONS = ("heads", "dropout")


def _net(
    shapes: Shapes, options: dict[str, Any], *, stages: str, third: str, at: str, names: dict[str, str]
) -> tuple[nn.Module, str]:
    """The Sparse R-CNN that these shapes fit; ``at`` is where its stages are, before their number."""
    number = depth(shapes, stages, third)
    frozen = not any(name.endswith("num_batches_tracked") for name in shapes)
    first = f"{at}0."
    width = shapes.size(first + names["logits"] + ".weight", 1, 256)
    inside = shapes.size(first + names["out"] + ".weight", 1, 49 * width)
    own = {
        "num_classes": shapes.size(first + names["logits"] + ".weight", 0, 80),
        "num_queries": shapes.size(names["boxes"] + ".weight", 0, 100),
        "width": width,
        "ffn_width": shapes.size(first + names["linear1"] + ".weight", 0, 2048),
        "dynamic_width": shapes.size(first + names["inner_norm"] + ".weight", 0, 64),
        "pool": max(round((inside / width) ** 0.5), 1),
        "stages": len({m[1] for name in shapes if (m := re.match(re.escape(at) + r"(\d+)\.", name))}),
        "frozen_norm": frozen,
    }
    net = create_model(f"sparse_rcnn_resnet{number}", **own, **options)
    norms = "frozen norms" if frozen else "norms that train"
    return net, f"{own['stages']} stages, {own['num_queries']} boxes, {norms}"


_D2 = "backbone.bottom_up"


def _detectron2() -> tuple[Rule, ...]:
    rules = [
        Rule(r"init_proposal_(\w+)\.weight", r"init_proposal_\1.weight"),
        Rule(r"stages\.(\d+)\.(.*)", r"head.head_series.\1.\2"),
        Rule(r"backbone\.conv1\.weight", f"{_D2}.stem.conv1.weight"),
        Rule(rf"backbone\.bn1\.{STATE}", rf"{_D2}.stem.conv1.norm.\1"),
    ]
    for layer in range(1, 5):
        ours, theirs = rf"backbone\.layer{layer}\.(\d+)", rf"{_D2}.res{layer + 1}.\1"
        rules += [
            Rule(rf"{ours}\.conv(\d)\.weight", rf"{theirs}.conv\2.weight"),
            Rule(rf"{ours}\.bn(\d)\.{STATE}", rf"{theirs}.conv\2.norm.\3"),
            Rule(rf"{ours}\.downsample\.0\.weight", rf"{theirs}.shortcut.weight"),
            Rule(rf"{ours}\.downsample\.1\.{STATE}", rf"{theirs}.shortcut.norm.\2"),
        ]
    for level in range(4):
        rules += [
            Rule(rf"fpn\.inner_blocks\.{level}\.0\.(\w+)", rf"backbone.fpn_lateral{level + 2}.\1"),
            Rule(rf"fpn\.layer_blocks\.{level}\.0\.(\w+)", rf"backbone.fpn_output{level + 2}.\1"),
        ]
    return tuple(rules)


OFFICIAL = Format(
    name="sparse-rcnn-official",
    signature=(
        r"head\.head_series\.\d+\.inst_interact\.",
        r"init_proposal_boxes\.",
        r"backbone\.bottom_up\.",
    ),
    build=partial(
        _net,
        stages=r"backbone\.bottom_up\.res([2-5])\.(\d+)\.",
        third=r"backbone\.bottom_up\.res2\.0\.conv3\.",
        at="head.head_series.",
        names={
            "logits": "class_logits",
            "out": "inst_interact.out_layer",
            "inner_norm": "inst_interact.norm1",
            "linear1": "linear1",
            "boxes": "init_proposal_boxes",
        },
    ),
    rules=_detectron2(),
    ambiguous_options=AMBIGUOUS_OPTIONS,
    info=detection_info,
)

_PARTS = {
    r"self_attn\.in_proj_": "attention.attn.in_proj_",
    r"self_attn\.out_proj\.": "attention.attn.out_proj.",
    r"inst_interact\.dynamic_layer\.": "instance_interactive_conv.dynamic_layer.",
    r"inst_interact\.norm1\.": "instance_interactive_conv.norm_in.",
    r"inst_interact\.norm2\.": "instance_interactive_conv.norm_out.",
    r"inst_interact\.out_layer\.": "instance_interactive_conv.fc_layer.",
    r"inst_interact\.norm3\.": "instance_interactive_conv.fc_norm.",
    r"norm1\.": "attention_norm.",
    r"norm2\.": "instance_interactive_conv_norm.",
    r"norm3\.": "ffn_norm.",
    r"linear1\.": "ffn.layers.0.0.",
    r"linear2\.": "ffn.layers.1.",
    r"cls_module\.": "cls_fcs.",
    r"reg_module\.": "reg_fcs.",
    r"class_logits\.": "fc_cls.",
    r"bboxes_delta\.": "fc_reg.",
}
MMDET = Format(
    name="sparse-rcnn-mmdet",
    signature=(
        r"roi_head\.bbox_head\.\d+\.instance_interactive_conv\.",
        r"rpn_head\.init_proposal_bboxes\.",
        r"neck\.lateral_convs\.",
    ),
    build=partial(
        _net,
        stages=r"backbone\.layer([1-4])\.(\d+)\.",
        third=r"backbone\.layer1\.0\.conv3\.",
        at="roi_head.bbox_head.",
        names={
            "logits": "fc_cls",
            "out": "instance_interactive_conv.fc_layer",
            "inner_norm": "instance_interactive_conv.norm_in",
            "linear1": "ffn.layers.0.0",
            "boxes": "rpn_head.init_proposal_bboxes",
        },
    ),
    rules=(
        Rule(r"init_proposal_boxes\.weight", "rpn_head.init_proposal_bboxes.weight"),
        Rule(r"init_proposal_features\.weight", "rpn_head.init_proposal_features.weight"),
        *(
            Rule(rf"stages\.(\d+)\.{ours}(.*)", rf"roi_head.bbox_head.\1.{theirs}\2")
            for ours, theirs in _PARTS.items()
        ),
        Rule(r"fpn\.inner_blocks\.(\d)\.0\.(\w+)", r"neck.lateral_convs.\1.conv.\2"),
        Rule(r"fpn\.layer_blocks\.(\d)\.0\.(\w+)", r"neck.fpn_convs.\1.conv.\2"),
    ),
    ambiguous_options=AMBIGUOUS_OPTIONS,
    info=detection_info,
)

FORMATS = (OFFICIAL, MMDET)
