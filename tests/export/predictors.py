"""Small networks with random weights whose answers say something, for exports."""

import torch

import foveal
from foveal.inference import Predictor
from foveal.model_info import ModelInfo

TINY = {"width": 16, "heads": 2, "ffn_width": 16, "num_queries": 5}
DETECTORS = {
    "detr_test_resnet": {"encoder_layers": 1, "decoder_layers": 2, **TINY},
    "detr_dc5_test_resnet": {"encoder_layers": 1, "decoder_layers": 1, "queries": "anchors", **TINY},
    "detr_test_resnet, selected": {
        "encoder_layers": 1, "decoder_layers": 1, "queries": "selected", "concatenated": True, "denoising": 2,
        "classification": "focal", "stride": 8, **TINY,
    },
    "sparse_rcnn_test_resnet": {
        "stages": 2, "dynamic_width": 8, "strides": [4, 8, 16], "start_boxes": "grid", "roi_reference": 30.0, **TINY,
    },
}  # fmt: skip


def live(name: str, task: str, size: int) -> Predictor:
    """A network with random weights in which no block is the identity and no normalisation is zero."""
    torch.manual_seed(0)
    net = foveal.create_model(name, num_classes=4)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(getattr(module, "gamma", None), torch.Tensor):
            torch.nn.init.constant_(module.gamma, 0.3)
    info = ModelInfo(task, ["a", "b", "c", "d"], size, model=name)
    return Predictor(net.eval().requires_grad_(False), info, name)


def detector(name: str) -> Predictor:
    """Random weights that say something: scores around the threshold, boxes that differ."""
    torch.manual_seed(0)
    net = foveal.create_model(name.partition(",")[0], num_classes=4, **DETECTORS[name])
    heads = [net.class_embed] if hasattr(net, "class_embed") else [stage.class_logits for stage in net.stages]
    for head in heads:
        torch.nn.init.normal_(head.weight)
        torch.nn.init.zeros_(head.bias)
    info = ModelInfo("detect", ["a", "b", "c", "d"], 64, model=name.partition(",")[0])
    return Predictor(net.eval().requires_grad_(False), info, name)


@torch.no_grad()
def segmenter() -> Predictor:
    """Random weights that find every class about as often in a picture of noise."""
    ready = live("danet_test_resnet", "segment", 48)
    logits = ready.net(torch.randn(1, 3, 48, 48))["fused"]
    ready.net.classify[1].bias -= logits.mean((0, 2, 3))
    return ready


def with_blocks(*insertions: str) -> Predictor:
    """A classifier with inserted blocks whose attention does something."""
    torch.manual_seed(0)
    net = foveal.create_model("cifar_resnet8", num_classes=3)
    for insertion in insertions:
        foveal.insert(net, **foveal.parse_insertion(insertion))
    for name, parameter in net.named_parameters():
        if "gamma" in name or not parameter.any():
            torch.nn.init.constant_(parameter, 0.1)
    info = ModelInfo("classify", ["a", "b", "c"], 32, (0.5,) * 3, (0.5,) * 3, model="small")
    return Predictor(net.eval(), info, "small")
