"""Every family of named networks leaves in every format, with gates and attention that do something."""

import pytest
import torch

import foveal
from foveal.export import export
from foveal.export.answers import script_input
from foveal.export.script import run_script
from foveal.inference import Predictor
from foveal.model_info import ModelInfo

CLASSIFIERS = (
    "cifar_se_resnet20",
    "cifar_cbam_resnet20",
    "se_resnet18",
    "cbam_resnet18",
    "legacy_se_resnet18",
)
CLASSIFIERS += ("nonlocal_resnet50", "se_resnext50_32x4d", "seresnet18", "resnet10t")
HEADS = ("danet", "danet_position", "danet_channel", "fcn_nonlocal", "fcn")


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


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_every_family_are_exported(name, to, tmp_path):
    done = export(live(name, "classify", 64), to, out=tmp_path / "out")
    assert all(one.agreement == 1 for one in done.checks)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("head", HEADS)
def test_segmentation_heads_are_exported(head, to, tmp_path):
    done = export(live(f"{head}_test_resnet", "segment", 48), to, out=tmp_path / "out")
    assert all(one.agreement > 0.99 for one in done.checks)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"),
    [*((name, "onnx") for name in DETECTORS), ("detr_test_resnet, selected", "openvino"),
     ("sparse_rcnn_test_resnet", "openvino"), ("sparse_rcnn_test_resnet", "pt2")],
)  # fmt: skip
def test_detectors_are_exported_with_boxes_of_any_size_of_image(name, to, tmp_path):
    ready = detector(name)
    done = export(ready, to, with_preprocessing=True, out=tmp_path / "out")
    assert [one.shape for one in done.checks] == [(2, 3, 64, 64), (1, 3, 64, 64), (3, 3, 81, 64)]
    assert all(one.difference < 1e-5 and one.agreement == 1 for one in done.checks)
    with script_input(ready, None) as photo:
        said, wanted = run_script(done.folder / "infer.py", photo, tmp_path), ready(photo)
    assert len(wanted) > 1, "an answer without boxes would prove nothing"
    assert [label for label, _ in said["labels"]] == [label for label, _ in wanted.labels]
    torch.testing.assert_close(torch.tensor(said["boxes_xyxy"]), wanted.boxes_xyxy, atol=0.02, rtol=0)


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
