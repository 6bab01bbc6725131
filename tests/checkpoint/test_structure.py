"""What a file says of a network that was wrapped or changed since it was made, and what it then asks for."""

import pytest
import timm
import torch
from torch import nn

import foveal
from foveal.checkpoint.structure import describe, unwrapped
from foveal.errors import FovealError

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def gated(**options) -> nn.Module:
    torch.manual_seed(0)
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    return foveal.insert(net, "se", reduction=4, start="paper", **options)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "timm ModelEma": timm.utils.ModelEma,
    "timm ModelEmaV2": timm.utils.ModelEmaV2,
    "timm ModelEmaV3": timm.utils.ModelEmaV3,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "two": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_taken_off_and_its_network_saved(wrapper, path):
    net = gated().eval()
    foveal.save(WRAPPERS[wrapper](net), path)
    assert torch.equal(foveal.load(path).eval()(IMAGE), net(IMAGE))
    assert torch.equal(foveal.load(path, gated()).eval()(IMAGE), net(IMAGE))


def test_averaged_weights_are_those_that_are_saved(path):
    net = gated()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for _ in range(2):
        averaged.update_parameters(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1.0)
    foveal.save(averaged, path)
    loaded = foveal.load(path)
    assert torch.equal(loaded.fc.weight, averaged.module.fc.weight)  # type: ignore[union-attr]
    assert not torch.equal(loaded.fc.weight, net.fc.weight)


def test_blocks_inserted_inside_a_wrapper_come_back_without_it(path):
    net = nn.DataParallel(foveal.create_model("cifar_resnet8", num_classes=2))
    foveal.insert(net, "se", reduction=4, start="paper", example=IMAGE)
    foveal.save(net, path)
    again = foveal.load(path)
    assert [one.site for one in foveal.inserted(again)] == [f"layer{i}.0.bn2" for i in (1, 2, 3)]
    assert torch.equal(again.eval()(IMAGE), unwrapped(net).eval()(IMAGE))


def test_weights_go_into_a_wrapped_network_that_is_returned_as_it_came(path):
    foveal.save(gated(), path, classes=["a", "b"])
    wrapped = nn.DataParallel(gated())
    assert foveal.load(path, wrapped) is wrapped
    assert wrapped.foveal_info == wrapped.module.foveal_info == {"classes": ["a", "b"]}


# -------------------------------------------------------------------------------------------- another classifier


@pytest.mark.parametrize("model", ["cifar_resnet8", "resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_a_classifier_put_in_by_reset_classifier_is_recorded(model, path):
    net = foveal.create_model(model, num_classes=10)
    net.reset_classifier(3)  # type: ignore[operator]
    foveal.save(net, path)
    assert foveal.read_info(path)["model"]["kwargs"]["num_classes"] == 3
    assert torch.equal(foveal.load(path).eval()(IMAGE), net.eval()(IMAGE))
    assert net.foveal_model["kwargs"]["num_classes"] == 10, "saving changes nothing"  # type: ignore[index]


def test_a_classifier_put_in_by_hand_is_recorded(path):
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    net.fc = nn.Linear(64, 3)
    foveal.save(net, path)
    assert torch.equal(foveal.load(path).eval()(IMAGE), net.eval()(IMAGE))


def test_a_classifier_taken_off_is_recorded(path):
    net = foveal.create_model("resnet10t", num_classes=10)
    net.reset_classifier(0)  # type: ignore[operator]
    foveal.save(net, path)
    assert torch.equal(foveal.load(path).eval()(IMAGE), net.eval()(IMAGE))


# ------------------------------------------------------------------------------ changes that no weight would show


def for_small_images() -> nn.Module:
    net = foveal.create_model("resnet18", num_classes=2)
    net.maxpool = nn.Identity()
    net.act1 = nn.SiLU()
    return net


def test_a_module_replaced_since_is_named_where_the_file_alone_would_lose_it(path):
    net = for_small_images()
    foveal.save(net, path)
    with pytest.raises(
        FovealError,
        match=r"in which act1 was SiLU\(.*\) and not ReLU\(.*; maxpool|in which act1 .*, maxpool was Id",
    ):
        foveal.load(path)
    assert torch.equal(foveal.load(path, for_small_images()).eval()(IMAGE), net.eval()(IMAGE))
    plain = foveal.create_model("resnet18", num_classes=2)
    with pytest.raises(
        FovealError, match=r"same modules.*act1: SiLU\(\) in the file, ReLU\(inplace=True\) here"
    ):
        foveal.load(path, plain)


def test_weights_of_a_plain_network_do_not_go_into_a_changed_one(path):
    foveal.save(foveal.create_model("resnet18", num_classes=2), path)
    with pytest.raises(FovealError, match=r"maxpool: MaxPool2d\(.* in the file, Identity\(\) here"):
        foveal.load(path, for_small_images())


def harmlessly_changed() -> nn.Module:
    net = foveal.create_model("resnet18", num_classes=2, drop_rate=0.5)
    foveal.freeze_backbone(net, keep=["fc"])  # no momentum
    net.act1 = nn.ReLU(inplace=False)
    net.drop_block = nn.Dropout(0.3)
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def test_what_changes_no_output_is_no_change(path):
    net = harmlessly_changed()
    assert describe(net)[1] == []
    foveal.save(net, path)
    foveal.load(path)


def test_describing_draws_no_random_number():
    net = gated()
    net.foveal_model["kwargs"]["in_chans"] = 2  # nothing kept from an earlier call fits
    state = torch.get_rng_state()
    describe(net)
    assert torch.equal(torch.get_rng_state(), state)
