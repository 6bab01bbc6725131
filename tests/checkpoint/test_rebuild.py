"""A file can make the library build no more than its own tensors justify."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.marks import slow
from torch import nn

import foveal
from foveal.errors import FovealError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def rewritten(path, change) -> None:
    description = foveal.read_info(path)
    change(description)
    save_file(load_file(path), path, metadata={"foveal": json.dumps(description)})


@pytest.fixture
def made(monkeypatch):
    """How many modules were made."""
    count = [0]
    usual = nn.Module.__init__

    def counting(self, *args, **kwargs):
        count[0] += 1
        usual(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__init__", counting)
    return count


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("resnet10t", {"layers": [10**6, 2, 2, 2]}),
        ("resnet10t", {"layers": [2000, 2000, 2000, 2000]}),
        ("vit_tiny_patch16_224", {"depth": 10**9}),
        ("vit_tiny_patch16_224", {"depth": 2000}),
        ("vit_tiny_patch16_224", {"depth": 1e9}),
        ("resnet10t", {"block_args": {"attn_layer": ["x", {"depth": 10**8}]}}),
        ("maxvit_tiny_tf_224", {"img_size": 8000}),
        ("mobilenetv3_small_050", {"surprise_size": [10**7]}),
    ],
)
def test_a_network_of_any_depth_is_refused_after_little_work(model, kwargs, path, made):
    foveal.save(foveal.create_model("resnet10t", num_classes=2), path)
    rewritten(path, lambda d: d["model"].update(name=model) or d["model"]["kwargs"].update(kwargs))
    made[0] = 0
    with pytest.raises(FovealError, match=r"(at most 2048|about as many tensors as the file)") as caught:
        foveal.load(path)
    assert "\n" not in str(caught.value)
    assert made[0] < 3000


def test_counting_ends_with_loading(path):
    foveal.save(foveal.create_model("cifar_resnet8"), path)
    foveal.load(path)
    for _ in range(10):
        nn.Sequential(*[nn.Linear(1, 1) for _ in range(500)])


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("danet_resnet18", {}),
        ("legacy_se_resnet18", {}),
        *slow([("nonlocal_i3d_resnet50", {"num_classes": 2}), ("cifar_cbam_resnet110", {})]),
    ],
)
def test_what_builds_tensors_twice_still_rebuilds(model, options, path):
    with torch.device("meta"):
        names = list(foveal.create_model(model, **options).state_dict())
    net = foveal.create_model(model, **options)
    foveal.save(net, path)
    assert list(foveal.load(path).state_dict()) == names


@pytest.mark.parametrize(
    "kwargs",
    [
        {"act_layer": "no such"},
        {"norm_layer": 5},
        {"block": "basic"},
        {"act_layer": ["relu"]},
        {"layers": "many"},
        {"name": "x"},
        {"output_stride": -3},
        {"channels": {"a": {}}},
    ],
)
def test_arguments_of_any_kind_are_answered_in_one_line(kwargs, path):
    foveal.save(foveal.create_model("resnet10t", num_classes=2), path)
    rewritten(path, lambda d: d["model"]["kwargs"].update(kwargs))
    with pytest.raises(FovealError) as caught:
        foveal.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
