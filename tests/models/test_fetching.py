"""Published weights through timm's own loader, from a cache laid out as the hub's client lays it out."""

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import foveal
from foveal.train import TrainConfig, fit

NOBODY = "http://127.0.0.1:9"  # the discard port: a connection is refused at once
MODEL = "resnet10t"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A hub cache with random weights under the name of the published ones."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("hub")
    repository = folder / f"models--{timm.get_pretrained_cfg(MODEL).hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(timm.create_model(MODEL).state_dict(), snapshot / "model.safetensors")
    return folder


@pytest.fixture
def published(cache):
    return load_file(next(cache.rglob("model.safetensors")))


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_pretrained_weights_come_with_a_classifier_of_ones_own(offline, published):
    net = foveal.create_model(MODEL, pretrained=True, num_classes=7)
    state = net.state_dict()
    kept = [name for name in published if not name.startswith("fc.")]
    assert all(torch.equal(state[name], published[name]) for name in kept)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert net.foveal_model == {"name": MODEL, "kwargs": {"num_classes": 7, "in_chans": 3}}
    assert constants.HF_HUB_OFFLINE is False, "only while it fetched"


def test_a_grey_image_is_seen_by_the_sum_of_the_colours_kernels(offline, published):
    grey = foveal.create_model(MODEL, pretrained=True, in_chans=1).state_dict()
    torch.testing.assert_close(grey["conv1.0.weight"], published["conv1.0.weight"].sum(1, keepdim=True))


def test_networks_assembled_here_take_the_weights_of_their_backbone(offline, published):
    net = foveal.create_model(f"fcn_{MODEL}", pretrained=True, num_classes=3)
    state = net.backbone.state_dict()
    assert all(torch.equal(value, published[name]) for name, value in state.items())
    foveal.insert(net, "se", at="backbone.layer4", example=torch.zeros(1, 3, 32, 32))
    assert len(foveal.inserted(net)) == 1


def test_training_begins_with_the_published_weights(offline, published, tmp_path):
    few = {"data_options": {"length": 64}, "epochs": 1, "workers": 0, "accelerator": "cpu", "image_size": 32}
    still = {"lr": 0.0, "insert": ["se@residual:4"], "out": str(tmp_path / "run")}
    result = fit(TrainConfig(model=MODEL, pretrained=True, **few, **still), quiet=True)
    weights = foveal.load(result.folder / "weights/last.safetensors")
    trained = weights.state_dict()
    learned = [n for n in published if not n.startswith("fc.") and n.endswith(("weight", "bias"))]
    assert all(torch.equal(trained[name], published[name]) for name in learned)
    config = timm.get_pretrained_cfg(MODEL)
    assert (tuple(weights.foveal_info["mean"]), tuple(weights.foveal_info["std"])) == (
        config.mean,
        config.std,
    )


def test_without_network_and_cache_one_line_says_so_after_one_question(offline, monkeypatch, tmp_path):
    """The hub's client alone asks a dozen times, for a minute."""
    asked = []

    def refuse(address, *_args, **_named):
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConnectionError) as caught:
        foveal.create_model(MODEL, pretrained=True)
    said = str(caught.value)
    assert said.startswith(f"the published weights of '{MODEL}' must be fetched once")
    assert f"{NOBODY} did not answer" in said
    assert str(tmp_path / "cache") in said
    assert "\n" not in said
    assert 1 <= len(asked) <= 2


def test_a_mistake_in_the_name_is_still_called_one(offline):
    with pytest.raises(ValueError, match=r"pretrained must be False"):
        foveal.create_model("cifar_resnet8", pretrained=True)


@pytest.mark.parametrize("name", ["nonlocal_c2d_resnet50", "resnet18"])
def test_every_source_of_weights_is_refused_alike(offline, monkeypatch, tmp_path, name):
    """torchvision fetches by urllib, timm by the hub's client."""
    from urllib.error import URLError

    def refuse(*_args, **_named):
        raise URLError("no such host")

    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=f"published weights of '{name}' must be fetched once"):
        foveal.create_model(name, pretrained=True)
