"""Published DETRs: the authors' code, transformers with either of its backbones, and mmdetection 3."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.models import create_model
from foveal.published.classifiers import depth
from foveal.published.coco import detection_info
from foveal.published.keymap import STATE, Format, Rule, Shape, Shapes

AMBIGUOUS_OPTIONS = ("dc5", "heads", "dropout")
T = TypeVar("T", Tensor, Shape)


def _net(
    shapes: Shapes,
    options: dict[str, Any],
    *,
    stages: str,
    third: str,
    encoder: str,
    decoder: str,
    names: dict[str, str],
) -> tuple[nn.Module, str]:
    """The DETR that these shapes fit; ``encoder`` and ``decoder`` capture the number of a layer."""
    if "dc5" not in options:
        raise FovealError(
            "dc5 must be given, true or false, as files of DETR and DETR-DC5 look the same, got neither "
            "(on the command line --model_options.dc5 false)"
        )
    options = dict(options)
    dc5 = options.pop("dc5")
    if not isinstance(dc5, bool):
        raise FovealError(f"dc5 must be true or false, got {dc5!r}")
    number = depth(shapes, stages, third)
    learned = any(name.endswith("row_embed.weight") or ".row_embeddings" in name for name in shapes)
    frozen = not any(name.endswith("num_batches_tracked") for name in shapes)
    own = {
        "num_classes": shapes.size(names["class"] + ".weight", 0, 92) - 1,
        "num_queries": shapes.size(names["queries"] + ".weight", 0, 100),
        "width": shapes.size(names["queries"] + ".weight", 1, 256),
        "ffn_width": shapes.size(names["hidden"] + ".weight", 0, 2048),
        "encoder_layers": _layers(shapes, encoder),
        "decoder_layers": _layers(shapes, decoder),
        "frozen_norm": frozen,
        **({"positions": "learned"} if learned else {}),
    }
    net = create_model(f"detr_{'dc5_' if dc5 else ''}resnet{number}", **own, **options)
    norms = "frozen norms" if frozen else "norms that train"
    return (
        net,
        f"stride {16 if dc5 else 32}, {'learned' if learned else 'sine'} positions, {norms}, no-object last",
    )


def _layers(shapes: Shapes, pattern: str) -> int:
    return len({m[1] for name in shapes if (m := re.match(pattern, name))})


def _head(names: dict[str, str]) -> tuple[Rule, ...]:
    """Rules of an encoder and a decoder from the names of their parts; ``{}`` is the number of the layer there."""
    rules = []
    for kind, norms in (("encoder", ("norm1", "ffn.norm")), ("decoder", ("norm1", "norm2", "ffn.norm"))):
        at = names[kind].format(r"\1")
        rules += [
            Rule(rf"{kind}\.(\d+)\.self_attn\.in_proj_(\w+)", f"{at}.{names['self']}{names['packed']}"),
            Rule(rf"{kind}\.(\d+)\.self_attn\.out_proj\.(\w+)", rf"{at}.{names['self']}out_proj.\2"),
            Rule(rf"{kind}\.(\d+)\.multihead_attn\.in_proj_(\w+)", f"{at}.{names['cross']}{names['packed']}"),
            Rule(rf"{kind}\.(\d+)\.multihead_attn\.out_proj\.(\w+)", rf"{at}.{names['cross']}out_proj.\2"),
            Rule(rf"{kind}\.(\d+)\.ffn\.linear1\.(\w+)", rf"{at}.{names['linear1']}.\2"),
            Rule(rf"{kind}\.(\d+)\.ffn\.linear2\.(\w+)", rf"{at}.{names['linear2']}.\2"),
        ]
        theirs = names[f"{kind}_norms"].split()
        rules += [
            Rule(rf"{kind}\.(\d+)\.{ours.replace('.', chr(92) + '.')}\.(\w+)", rf"{at}.{norm}.\2")
            for ours, norm in zip(norms, theirs, strict=True)
        ]
    rules += [
        Rule(r"decoder_norm\.(\w+)", rf"{names['decoder_norm']}.\1"),
        Rule(r"query_embed\.weight", f"{names['queries']}.weight"),
        Rule(r"input_proj\.(\w+)", rf"{names['project']}.\1"),
        Rule(r"class_embed\.(\w+)", rf"{names['class']}.\1"),
    ]
    boxes = names["boxes"].split()
    rules += [Rule(rf"bbox_embed\.layers\.{i}\.(\w+)", rf"{place}.\1") for i, place in enumerate(boxes)]
    return tuple(rules)


# ------------------------------------------------------------------------------------------------ the authors' code

_OFFICIAL = {
    "encoder": "transformer.encoder.layers.{}",
    "decoder": "transformer.decoder.layers.{}",
    "self": "self_attn.",
    "cross": "multihead_attn.",
    "packed": r"in_proj_\2",
    "linear1": "linear1",
    "linear2": "linear2",
    "encoder_norms": "norm1 norm2",
    "decoder_norms": "norm1 norm2 norm3",
    "decoder_norm": "transformer.decoder.norm",
    "queries": "query_embed",
    "project": "input_proj",
    "class": "class_embed",
    "boxes": "bbox_embed.layers.0 bbox_embed.layers.1 bbox_embed.layers.2",
    "hidden": "transformer.encoder.layers.0.linear1",
}
OFFICIAL = Format(
    name="detr-official",
    signature=(r"transformer\.encoder\.layers\.", r"backbone\.0\.body\.", r"query_embed\.", r"class_embed\."),
    build=partial(
        _net,
        stages=r"backbone\.0\.body\.layer([1-4])\.(\d+)\.",
        third=r"backbone\.0\.body\.layer1\.0\.conv3\.",
        encoder=r"transformer\.encoder\.layers\.(\d+)\.",
        decoder=r"transformer\.decoder\.layers\.(\d+)\.",
        names=_OFFICIAL,
    ),
    rules=(
        *_head(_OFFICIAL),
        Rule(r"backbone\.(.*)", r"backbone.0.body.\1"),
        Rule(r"position\.(.*)", r"backbone.1.\1"),
    ),
    ambiguous_options=AMBIGUOUS_OPTIONS,
    info=detection_info,
)

# ----------------------------------------------------------------------------------------------------- transformers

THIRDS = ("q_proj", "k_proj", "v_proj")


def join_thirds(state: Mapping[str, T]) -> dict[str, T]:
    """A file's projections of queries, keys and values as one, ``qkv_proj``; tensors or shapes.

    Where one of the three is missing all stay as they are, and the names say what is wrong.
    """
    joined: dict[str, Any] = dict(state)
    for name in state:
        stem, mark, kind = name.partition(".q_proj.")
        parts = [f"{stem}.{third}.{kind}" for third in THIRDS]
        if mark and all(part in state for part in parts):
            found: list[Any] = [joined.pop(part) for part in parts]
            if isinstance(found[0], Tensor):
                joined[f"{stem}.qkv_proj.{kind}"] = torch.cat(found)
            else:
                joined[f"{stem}.qkv_proj.{kind}"] = (sum(shape[0] for shape in found), *found[0][1:])
    return joined


def part_thirds(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    parted = {}
    for name, value in state.items():
        stem, mark, kind = name.partition(".qkv_proj.")
        if mark:
            thirds = value.chunk(3)
            parted |= {f"{stem}.{p}.{kind}": v.clone() for p, v in zip(THIRDS, thirds, strict=True)}
        else:
            parted[name] = value
    return parted


_TRANSFORMERS = {
    "encoder": "model.encoder.layers.{}",
    "decoder": "model.decoder.layers.{}",
    "self": "self_attn.",
    "cross": "encoder_attn.",
    "packed": r"qkv_proj.\2",
    "linear1": "fc1",
    "linear2": "fc2",
    "encoder_norms": "self_attn_layer_norm final_layer_norm",
    "decoder_norms": "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm",
    "decoder_norm": "model.decoder.layernorm",
    "queries": "model.query_position_embeddings",
    "project": "model.input_projection",
    "class": "class_labels_classifier",
    "boxes": "bbox_predictor.layers.0 bbox_predictor.layers.1 bbox_predictor.layers.2",
    "hidden": "model.encoder.layers.0.fc1",
}
BODY = "model.backbone.conv_encoder.model"
_LEARNED = tuple(
    Rule(rf"position\.{ours}\.weight", f"model.backbone.position_embedding.{theirs}.weight")
    for ours, theirs in (("row_embed", "row_embeddings"), ("col_embed", "column_embeddings"))
)


def _own_resnet(third: bool) -> tuple[Rule, ...]:
    """Names of transformers' own ResNet: stages, layers and convolutions counted from 0."""
    rules = [
        Rule(r"backbone\.conv1\.weight", f"{BODY}.embedder.embedder.convolution.weight"),
        Rule(rf"backbone\.bn1\.{STATE}", rf"{BODY}.embedder.embedder.normalization.\1"),
    ]
    for stage in range(1, 5):
        ours, theirs = rf"backbone\.layer{stage}\.(\d+)", rf"{BODY}.encoder.stages.{stage - 1}.layers.\1"
        for conv in range(1, 3 + third):
            rules += [
                Rule(rf"{ours}\.conv{conv}\.weight", rf"{theirs}.layer.{conv - 1}.convolution.weight"),
                Rule(rf"{ours}\.bn{conv}\.{STATE}", rf"{theirs}.layer.{conv - 1}.normalization.\2"),
            ]
        rules += [
            Rule(rf"{ours}\.downsample\.0\.weight", rf"{theirs}.shortcut.convolution.weight"),
            Rule(rf"{ours}\.downsample\.1\.{STATE}", rf"{theirs}.shortcut.normalization.\2"),
        ]
    return tuple(rules)


def _transformers(name: str, body: str, stages: str, third: str, rules: tuple[Rule, ...]) -> Format:
    return Format(
        name=name,
        signature=(
            r"model\.encoder\.layers\.",
            body,
            r"model\.query_position_embeddings\.",
            r"class_labels_classifier\.",
        ),
        build=partial(
            _net,
            stages=stages,
            third=third,
            encoder=r"model\.encoder\.layers\.(\d+)\.",
            decoder=r"model\.decoder\.layers\.(\d+)\.",
            names=_TRANSFORMERS,
        ),
        rules=(*_head(_TRANSFORMERS), *_LEARNED, *rules),
        ambiguous_options=AMBIGUOUS_OPTIONS,
        info=detection_info,
        join=join_thirds,
        part=part_thirds,
    )


_BODY = BODY.replace(".", r"\.")
TRANSFORMERS = _transformers(
    "detr-transformers",
    _BODY + r"\.layer1\.",
    _BODY + r"\.layer([1-4])\.(\d+)\.",
    _BODY + r"\.layer1\.0\.conv3\.",
    (Rule(r"backbone\.(.*)", rf"{BODY}.\1"),),
)
TRANSFORMERS_RESNET = _transformers(
    "detr-transformers-resnet",
    _BODY + r"\.encoder\.stages\.",
    _BODY + r"\.encoder\.stages\.(\d)\.layers\.(\d+)\.",
    _BODY + r"\.encoder\.stages\.0\.layers\.0\.layer\.2\.",
    _own_resnet(third=True),
)

# ------------------------------------------------------------------------------------------------------ mmdetection

_MMDET = {
    "encoder": "encoder.layers.{}",
    "decoder": "decoder.layers.{}",
    "self": "self_attn.attn.",
    "cross": "cross_attn.attn.",
    "packed": r"in_proj_\2",
    "linear1": "ffn.layers.0.0",
    "linear2": "ffn.layers.1",
    "encoder_norms": "norms.0 norms.1",
    "decoder_norms": "norms.0 norms.1 norms.2",
    "decoder_norm": "decoder.post_norm",
    "queries": "query_embedding",
    "project": "neck.convs.0.conv",
    "class": "bbox_head.fc_cls",
    "boxes": "bbox_head.reg_ffn.layers.0.0 bbox_head.reg_ffn.layers.1 bbox_head.fc_reg",
    "hidden": "encoder.layers.0.ffn.layers.0.0",
}
MMDET = Format(
    name="detr-mmdet",
    signature=(r"encoder\.layers\.", r"bbox_head\.fc_cls\.", r"query_embedding\.", r"neck\.convs\.0\."),
    build=partial(
        _net,
        stages=r"backbone\.layer([1-4])\.(\d+)\.",
        third=r"backbone\.layer1\.0\.conv3\.",
        encoder=r"encoder\.layers\.(\d+)\.",
        decoder=r"decoder\.layers\.(\d+)\.",
        names=_MMDET,
    ),
    rules=_head(_MMDET),
    ambiguous_options=AMBIGUOUS_OPTIONS,
    info=detection_info,
)

FORMATS = (OFFICIAL, TRANSFORMERS, TRANSFORMERS_RESNET, MMDET)
