"""Every family of named networks leaves in every format, with gates and attention that do something."""

import pytest
import torch

import foveal
from foveal.export import export
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
