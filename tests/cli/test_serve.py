"""``foveal serve``: which networks and images the page begins with, and clear refusals before it listens."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

import foveal
from foveal import inference
from foveal.cli.serve import serve
from foveal.look.page import server


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What would be served; nothing is."""
    made: dict = {}

    def make_app(networks: list, examples: list, **options: object) -> str:
        made.update(networks=networks, examples=examples, **options)
        return "app"

    monkeypatch.setattr(server, "make_app", make_app)
    monkeypatch.setattr(server, "run_server", lambda _app, listener: listener.close())
    return made


def test_it_says_where_the_page_is(app: dict, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve([str(weights)], port=0) == 0
    assert capsys.readouterr().out.startswith("open http://127.0.0.1:")
    assert [network.name for network in app["networks"]] == ["one.safetensors"]


def test_images_of_the_weights_own_data_come_before_the_bundled_ones(
    app: dict,
    weights: Path,
    coloured_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = inference.predictor

    def trained_there(path: str, device: str, blocks: object = None) -> inference.Predictor:
        network = real(path, device)
        return inference.Predictor(
            network.net, replace(network.info, data=str(coloured_folder)), network.name
        )

    monkeypatch.setattr(inference, "predictor", trained_there)
    serve([str(weights)], port=0)
    names = [name for name, _ in app["examples"]]
    assert [name.rpartition(" ")[2] for name in names[:4]] == ["(blue)", "(blue)", "(green)", "(red)"]
    assert "china.jpg" in names[4:]
    assert f"examples: 4 of {coloured_folder} (val)" in capsys.readouterr().out


def published(monkeypatch: pytest.MonkeyPatch, **options: object) -> list[str]:
    """Models by name come with weights of their own making: no network is asked."""
    asked = []

    def create(name: str, pretrained: bool = False) -> object:
        asked.append(name)
        assert pretrained
        net = foveal.create_model(name, **options)
        net.pretrained_cfg = {**net.pretrained_cfg, "input_size": (3, 64, 64)}
        return net

    monkeypatch.setattr(inference, "create_model", create)
    return asked


def test_models_are_served_by_their_names(app: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = published(monkeypatch)
    serve(["seresnet18", "regnety_002"], port=0)
    assert asked == ["seresnet18", "regnety_002"]
    assert [network.name for network in app["networks"]] == [
        "seresnet18 (published weights)",
        "regnety_002 (published weights)",
    ]
    assert len(app["networks"][0].info.classes) == 1000


def test_a_model_is_looked_at_by_its_name(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch)
    foveal.cli.look.look(str(photo), "seresnet18", sites="layer4.1.*", out=str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "photo--layer4.1.se--gates.png",
    }


def test_a_model_without_attention_is_refused_in_one_line(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch)
    with pytest.raises(ValueError, match="must have an attention site, got ResNet with none"):
        foveal.cli.look.look(str(photo), "resnet18", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_port_out_of_range_is_refused(app: dict, weights: Path) -> None:
    with pytest.raises(ValueError, match="port must be from 0 to 65535, got 70000"):
        serve([str(weights)], port=70000)
    assert app == {}


def test_a_port_in_use_is_an_error_of_the_system(app: dict, weights: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve([str(weights)], port=taken.getsockname()[1])
