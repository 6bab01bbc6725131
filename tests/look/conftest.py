"""A small network with one block of each kind, its scales away from zero, saved as training saves it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi import FastAPI

import foveal
from foveal.data import decode_image
from foveal.look import serve
from foveal.look.network import Network, open_network

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


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a real server on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=serve.ImpatientProtocol, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("one") / "one.safetensors", seed=0)


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("two") / "two.safetensors", seed=1)


@pytest.fixture(scope="session")
def network(weights: Path) -> Network:
    return open_network(weights)


@pytest.fixture(scope="session")
def networks(weights: Path, other_weights: Path) -> list[Network]:
    return [open_network(weights), open_network(other_weights)]


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(load_sample_images().images[0][:200, :300]).save(path)
    assert decode_image(path).shape == (3, 200, 300)
    return path
