"""Repositories as names of weights: a hub on loopback, a folder, and what is refused."""

import pytest
import torch

import foveal
from foveal.hub import pinned, weights_file
from foveal.inference import predictor
from tests.hub_server import Hub

NAME = "hf-hub:ann/digits"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.close()


def test_weights_of_a_repository_are_those_of_the_file(hub, weights, photo):
    hub.put("ann/digits", model_safetensors=weights.read_bytes())
    from_hub, from_file = foveal.load(NAME).state_dict(), foveal.load(weights).state_dict()
    assert all(torch.equal(from_hub[name], from_file[name]) for name in from_file)
    ready = predictor(NAME, "cpu")
    assert ready.name == NAME
    assert ready(photo).labels == predictor(weights, "cpu")(photo).labels
    assert foveal.read_info(NAME) == foveal.read_info(weights)


def test_what_was_fetched_once_is_there_without_the_hub(hub, weights):
    hub.put("ann/digits", model_safetensors=weights.read_bytes())
    weights_file(NAME)
    hub.close()
    assert weights_file(NAME).read_bytes() == weights.read_bytes()
    with pytest.raises(
        ConnectionError, match=r"hf-hub:ann/other must be fetched once, got no connection \(http"
    ):
        weights_file("hf-hub:ann/other")


def test_a_revision_is_taken_and_a_pinned_name_stays_what_it_was(hub, weights, other_weights):
    first = hub.put("ann/digits", model_safetensors=weights.read_bytes())
    name = pinned(NAME)
    assert name == f"{NAME}@{first}"
    second = hub.put("ann/digits", model_safetensors=other_weights.read_bytes())
    assert weights_file(NAME).read_bytes() == other_weights.read_bytes()
    assert weights_file(f"{NAME}@{second}").read_bytes() == other_weights.read_bytes()
    hub.asked.clear()
    assert weights_file(name).read_bytes() == weights.read_bytes()
    assert hub.asked == [], "a commit that is here is not asked for"


def test_a_folder_of_the_same_layout_is_opened(weights, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    assert predictor(f"local-dir:{tmp_path}", "cpu").info.classes == predictor(weights, "cpu").info.classes
    assert pinned(f"local-dir:{tmp_path}") == f"local-dir:{tmp_path}"


def refused(name):
    with pytest.raises(foveal.FovealError) as caught:
        foveal.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_foreign_and_pickled_repositories_are_refused(hub, weights, tmp_path):
    """In words, unread, and each by the name that was given."""
    from safetensors.torch import save

    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'executed')!r}, 'w')",))

    torch.save(Trap(), tmp_path / "trap.bin")
    pickle = (tmp_path / "trap.bin").read_bytes()
    hub.put("ann/cut", model_safetensors=weights.read_bytes()[:-100])
    hub.put("ann/foreign", model_safetensors=save({"w": torch.zeros(2)}))
    hub.put("ann/pickled", **{"pytorch_model.bin": pickle})
    hub.put("ann/disguised", model_safetensors=pickle)
    hub.put("ann/empty", README_md=b"soon")
    assert "got hf-hub:ann/cut: " in refused("hf-hub:ann/cut")
    assert refused("hf-hub:ann/foreign").endswith("got no foveal metadata in hf-hub:ann/foreign")
    assert "pytorch" in refused("hf-hub:ann/pickled")
    assert "a pickle, which can run code and is not opened" in refused("hf-hub:ann/pickled")
    assert "got a pickle in hf-hub:ann/disguised" in refused("hf-hub:ann/disguised")
    assert "must hold model.safetensors, written by foveal push, got README.md" in refused("hf-hub:ann/empty")
    assert not (tmp_path / "executed").exists()
    assert not [asked for asked in hub.asked if asked.startswith("GET") and "bin" in asked], (
        "fetched a pickle"
    )


def test_names_that_lead_nowhere_are_answered_in_one_line(hub, weights, tmp_path):
    hub.put("ann/digits", model_safetensors=weights.read_bytes())
    assert "must be a repository that exists and that you may read" in refused("hf-hub:ann/none")
    assert "must name a branch, tag or commit of ann/digits, got v9" in refused(f"{NAME}@v9")
    for wrong in ("hf-hub:digits", "hf-hub:", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:../x y/z"):
        assert "is written hf-hub:user/name" in refused(wrong)
    assert "is no name of the hub" in refused("hf-hub:ann/..")
    assert "got no such folder" in refused(f"local-dir:{tmp_path / 'none'}")
    (tmp_path / "net.pth").write_bytes(b"")
    assert "got net.pth, a pickle" in refused(f"local-dir:{tmp_path}")


def test_a_file_cannot_name_a_repository_as_its_model(hub, weights, tmp_path):
    """Weights from anywhere must not make the library open or fetch others."""
    net = foveal.load(weights)
    net.foveal_model = {"name": NAME, "kwargs": {}}
    foveal.save(net, tmp_path / "leads.safetensors")
    assert "name must be a model's, got 'hf-hub:ann/digits'" in refused(tmp_path / "leads.safetensors")
    assert hub.asked == []


def test_every_command_that_names_weights_or_a_model_takes_a_repository(
    hub, said, weights, photo, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hub.put("ann/digits", model_safetensors=weights.read_bytes())
    few = ["--data_options.length", "32"]
    assert said("eval", "--weights", NAME, *few, "--device", "cpu")[0] == 0
    assert said("predict", photo, "--weights", NAME, "--top", "2")[1].count("\n") == 2
    assert said("look", photo, "--weights", NAME, "--out", "look")[0] == 0
    status, out, err = said("plan", NAME, "--insert", "se@residual:3", "--image-size", "32")
    assert (status, err) == (0, "")
    assert "layer3.0.bn2" in out
    status, _, err = said(
        "train",
        "--model",
        NAME,
        *few,
        "--epochs",
        "1",
        "--workers",
        "0",
        "--accelerator",
        "cpu",
        "--out",
        "run",
    )
    assert status == 0, err
    commit = hub.repositories["ann/digits"][0][0]
    assert f"begins from {NAME}@{commit}: all weights and classes are kept" in err
    assert f"from_weights: {NAME}@{commit}" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run/weights/start.safetensors").read_bytes() == weights.read_bytes()
