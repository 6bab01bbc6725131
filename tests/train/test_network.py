"""The network of a config: the size of image that it takes, and what it cannot take."""

import pytest
import torch

import foveal
from foveal.data import open_dataset
from foveal.train import TrainConfig
from foveal.train.network import add_blocks, build_network, describe_network, fixed_size

DATA = {part: open_dataset("scenes", part, length=4, size=24) for part in ("train", "val")}


@pytest.mark.parametrize(("model", "size"), [("vit_tiny_patch16_224", 224), ("cifar_resnet8", 24)])
def test_a_network_of_one_size_gets_images_of_that_size(model, size):
    config = TrainConfig(model=model)
    with torch.device("meta"):
        net = foveal.create_model(model, num_classes=10)
    assert fixed_size(net) == (224 if size == 224 else None)
    assert describe_network(config, net, DATA).image_size == size


def test_published_weights_bring_their_preprocessing():
    with torch.device("meta"):
        net = foveal.create_model("resnet18", num_classes=10)
    info = describe_network(TrainConfig(model="resnet18", pretrained=True), net, DATA)
    own = net.pretrained_cfg
    assert (info.image_size, info.interpolation) == (own["input_size"][-1], own["interpolation"])
    assert (info.crop_share, tuple(info.mean), tuple(info.std)) == (own["crop_pct"], own["mean"], own["std"])


def test_images_that_the_network_cannot_take_are_one_line():
    config = TrainConfig(model="vit_tiny_patch16_224")
    net = build_network(config, list("ab"))
    with pytest.raises(
        foveal.FovealError, match=r"must take images of shape \(1, 3, 32, 32\), got vit_tiny.*: [^\n]+$"
    ):
        add_blocks(net, config, 32)
