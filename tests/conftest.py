"""Two processes share the tests; each keeps to one thread, or they would wait for each other's.

Also what tests of several rooms need: the command, a full disk, a trained network, weights with a block of each kind.
"""

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright import sync_api

CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_finish():
    """What imports made stays to the end: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples every time, and none of them judged by the clock
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture(autouse=True, scope="session")
def without_native_kernels_under_type_checks(request):
    """Numba compiles no function with run-time type checks: gates then take PyTorch's operators."""
    if request.config.getoption("jaxtyping_packages", None):
        from foveal.ops import whole_gate

        whole_gate.HAS_NUMBA = False


@pytest.fixture
def said(capsys):
    """Call the command; give back its status and what it printed."""

    from foveal.cli import main

    def call(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """What forks a process that can be killed, without the seconds that imports take: see `tests/forked.py`."""
    from tests.forked import Zygote

    if not hasattr(os, "fork") or not Path("/proc/self/stat").exists():
        pytest.skip("needs to fork and to read /proc")
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture
def in_this_process(monkeypatch):
    """Comparisons start no workers, which would import everything again for each test."""
    from tests.engine import InThisProcess

    monkeypatch.setattr("foveal.compare.runner.make_engine", lambda *_, **__: InThisProcess())


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    """A real one, without a screen; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Debian's chromium at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def latin_folder(tmp_path):
    """A folder whose name is in Latin-1, as old archives unpack; skips where a file system takes UTF-8 alone."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
        str(folder).encode()
    except OSError:
        pytest.skip("file names are UTF-8 here")
    except UnicodeEncodeError:
        return folder
    pytest.skip("file names are no UTF-8 here")


@pytest.fixture
def full_disk(monkeypatch):
    """Call it with a file's name: the disk has no room for that file, as shows when it is synced; None ends that."""
    from foveal import files

    sync = files._sync

    def fill(name):
        def refuse(path):
            if name is not None and path.name.startswith(f".{name}."):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            sync(path)

        monkeypatch.setattr(files, "_sync", refuse)

    return fill


@pytest.fixture(scope="session")
def without_float64():
    """A function that gives a tensor as a device without float64 has it: what is computed of it refuses that type."""
    import torch

    class OnDevice(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.cpu:
                return torch.Tensor.cpu(args[0].as_subclass(torch.Tensor))
            result = super().__torch_function__(func, types, args, kwargs or {})
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            return result

    return lambda tensor: tensor.as_subclass(OnDevice)


COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 30, 20)}


@pytest.fixture(scope="session")
def coloured_folder(tmp_path_factory):
    """Plain coloured images: what a network can learn in seconds."""
    folder = tmp_path_factory.mktemp("data")
    import torch
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 16), ("val", 6)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(number):
                noise = torch.randint(-15, 16, (3,), generator=generator).tolist()
                image = Image.new("RGB", (30, 26), tuple(c + n for c, n in zip(colour, noise, strict=True)))
                image.save(folder / part / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def coloured_run(coloured_folder, tmp_path_factory):
    from foveal.train import TrainConfig, fit

    options = TrainConfig(
        data=str(coloured_folder),
        epochs=6,
        batch_size=12,
        lr=0.05,
        image_size=24,
        insert=["se(reduction=4)"],
        workers=0,
        accelerator="cpu",
        out=str(tmp_path_factory.mktemp("runs") / "colours"),
    )
    return fit(options, quiet=True)


# ------------------------------------------------------------------------------- weights with a block of each kind

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
    import torch

    import foveal

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
    import torch

    import foveal

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
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from foveal.data import decode_image

    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(load_sample_images().images[0][:200, :300]).save(path)
    assert decode_image(path).shape == (3, 200, 300)
    return path
