"""Sparse R-CNN's published files: names as their code has them, in and out."""

import pytest
import torch

import foveal
from foveal.published import convert, export

SMALL = {
    "width": 16,
    "heads": 8,
    "ffn_width": 24,
    "dynamic_width": 4,
    "num_queries": 5,
    "stages": 2,
    "pool": 3,
}
# from the peers' code, one name of each kind
OFFICIAL = [
    "init_proposal_boxes.weight",
    "init_proposal_features.weight",
    "head.head_series.1.self_attn.in_proj_weight",
    "head.head_series.0.self_attn.out_proj.bias",
    "head.head_series.0.inst_interact.dynamic_layer.weight",
    "head.head_series.0.inst_interact.norm3.bias",
    "head.head_series.0.inst_interact.out_layer.weight",
    "head.head_series.0.linear1.weight",
    "head.head_series.0.norm3.weight",
    "head.head_series.0.cls_module.0.weight",
    "head.head_series.0.reg_module.6.weight",
    "head.head_series.0.reg_module.7.bias",
    "head.head_series.0.class_logits.bias",
    "head.head_series.0.bboxes_delta.weight",
    "backbone.bottom_up.stem.conv1.weight",
    "backbone.bottom_up.stem.conv1.norm.running_mean",
    "backbone.bottom_up.res2.0.conv3.norm.bias",
    "backbone.bottom_up.res2.0.shortcut.weight",
    "backbone.bottom_up.res5.2.conv1.weight",
    "backbone.bottom_up.res3.0.shortcut.norm.weight",
    "backbone.fpn_lateral2.weight",
    "backbone.fpn_output5.bias",
]
MMDET = [
    "rpn_head.init_proposal_bboxes.weight",
    "rpn_head.init_proposal_features.weight",
    "roi_head.bbox_head.1.attention.attn.in_proj_weight",
    "roi_head.bbox_head.0.attention_norm.weight",
    "roi_head.bbox_head.0.instance_interactive_conv.norm_in.weight",
    "roi_head.bbox_head.0.instance_interactive_conv.fc_layer.bias",
    "roi_head.bbox_head.0.instance_interactive_conv_norm.bias",
    "roi_head.bbox_head.0.ffn.layers.0.0.weight",
    "roi_head.bbox_head.0.ffn.layers.1.weight",
    "roi_head.bbox_head.0.ffn_norm.bias",
    "roi_head.bbox_head.0.cls_fcs.0.weight",
    "roi_head.bbox_head.0.reg_fcs.6.weight",
    "roi_head.bbox_head.0.fc_cls.bias",
    "roi_head.bbox_head.0.fc_reg.weight",
    "backbone.layer4.2.bn3.running_var",
    "neck.lateral_convs.3.conv.bias",
    "neck.fpn_convs.0.conv.weight",
]


@pytest.mark.parametrize(
    ("format", "names"), [("sparse-rcnn-official", OFFICIAL), ("sparse-rcnn-mmdet", MMDET)]
)
def test_files_have_their_names_and_go_out_and_in(format, names):
    torch.manual_seed(0)
    net = foveal.create_model(
        "sparse_rcnn_resnet50", num_classes=80, frozen_norm="official" in format, **SMALL
    )
    state = export(net, format)
    assert set(names) <= set(state)
    assert len(state) == len(net.state_dict())
    again = convert(state)
    assert again.foveal_info["converted_from"] == format
    assert again.foveal_info["classes"][79] == "toothbrush"
    assert again.foveal_info["task"] == "detect"
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(net.eval()(x)["boxes"], again.eval()(x)["boxes"])
