"""A small network with one block of each kind, its scales away from zero, saved as training saves it."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.data import decode_image
from foveal.look import serve
from foveal.look.network import Network, open_network

PAGE = {"X-Foveal": "1"}
INFO = {
    "task": "classify",
    "classes": [str(i) for i in range(10)],
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "data": "scenes",
    "data_options": {},
}


def save_network(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    foveal.insert(net, "cbam", stages=(1,), reduction=4, example=torch.zeros(1, 3, 32, 32))
    foveal.insert(net, "nonlocal", at="block", stages=(2,), example=torch.zeros(1, 3, 32, 32))
    foveal.insert(net, "dual", at="block", stages=(3,), example=torch.zeros(1, 3, 32, 32))
    with torch.no_grad():
        for one in foveal.inserted(net):
            for parameter in one.module.parameters():
                parameter.normal_(std=0.4)
    foveal.save(net, path, **INFO)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("one") / "one.safetensors", seed=0)


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("two") / "two.safetensors", seed=1)


@pytest.fixture(scope="session")
def danet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DANet for eleven classes, as training for segmentation saves it."""
    torch.manual_seed(0)
    net = foveal.create_model("danet_resnet18", num_classes=11)
    for block in (net.position[1], net.channel[1]):
        torch.nn.init.constant_(block.gamma, 0.5)
    path = tmp_path_factory.mktemp("danet") / "danet.safetensors"
    classes = ["background", *INFO["classes"]]
    facts = {"task": "segment", "classes": classes, "image_size": 64, "ignore_index": 255}
    foveal.save(
        net, path, **{**INFO, **facts, "class_weights": None, "data_options": {"digit_size": [20, 24]}}
    )
    return path


@pytest.fixture(scope="session")
def network(weights: Path) -> Network:
    return open_network(weights)


@pytest.fixture(scope="session")
def networks(weights: Path, other_weights: Path) -> list[Network]:
    return [open_network(weights), open_network(other_weights)]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sklearn.datasets import load_sample_images

    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(load_sample_images().images[0][:200, :300]).save(path)
    assert decode_image(path).shape == (3, 200, 300)
    return path


@pytest.fixture(scope="session")
def address(networks: list[Network]) -> Iterator[str]:
    black = [("black", torch.zeros(3, 40, 40, dtype=torch.uint8))]
    with serve.serving(serve.make_app(networks, black, allow_hosts=("lab",))) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers=PAGE, timeout=60) as opened:
        yield opened


def png(width: int = 40, height: int = 40, seed: int = 0) -> bytes:
    """A file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]
