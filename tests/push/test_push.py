"""From a run to a repository on a hub on loopback and back, and what is kept out of it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import timm
import torch
import yaml
from tests.hub_server import Hub

import foveal
from foveal.model_info import ModelInfo
from foveal.push import push
from foveal.push.paths import without_paths


@pytest.fixture
def plain(tmp_path):
    """A network of timm without blocks, as training saves it."""
    torch.manual_seed(0)
    net = foveal.create_model("resnet10t", num_classes=3)
    figures = {"epoch": 4, "val_accuracy": 0.75, "val_loss": 0.5}
    info = ModelInfo(
        "classify",
        ["oak", "ash <b>|", "elm"],
        96,
        data="/home/ann/leaves",
        figures=figures,
        model="resnet10t",
    )
    path = tmp_path / "plain.safetensors"
    foveal.save(net, path, **info.to_dict())
    return path


def front_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_run_goes_to_the_hub_and_comes_back(coloured_run, coloured_folder, photo, tmp_path):
    """In processes of their own, as a person types it; nothing but loopback is asked."""
    hub = Hub()
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}

    def foveal_command(*words):
        command = [sys.executable, "-m", "foveal", *map(str, words)]
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, cwd=tmp_path, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = foveal_command("push", coloured_run.weights, "ann/colours", "--license", "cc-by-4.0")
    assert f"{coloured_folder} is a path of this machine" in said
    assert "picture.png is examples.png of the run" in said
    assert hub.private == {"ann/colours": True}, "public only where it is asked for"
    files = hub.repositories["ann/colours"][-1][1]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "picture.png"]
    assert not [name for name, content in files.items() if str(coloured_folder).encode() in content]
    assert files["picture.png"] == (coloured_run.folder / "examples.png").read_bytes()
    card = files["README.md"].decode()
    assert front_of(card)["license"] == "cc-by-4.0"
    assert "`layer1.0.bn2` | `se` | reduction 4" in card
    value = coloured_run.best["val_accuracy"]
    assert f"| accuracy | {value:.4g} | {coloured_folder.name} | val | one view |" in card
    assert "timm does not know the inserted blocks" in card
    assert json.loads(files["config.json"])["foveal"]["plan"][0]["block"] == "se"
    answer = foveal_command("predict", photo, "--weights", "hf-hub:ann/colours")
    assert answer == foveal_command("predict", photo, "--weights", coloured_run.weights)
    hub.close()


def test_a_plain_network_loads_in_timm_with_its_preprocessing(plain, tmp_path):
    done = push(plain, "ann/leaves", license="mit", out=tmp_path / "rep")
    assert done.for_timm
    assert done.removed == ["/home/ann/leaves"]
    opened = timm.create_model(f"local-dir:{tmp_path / 'rep'}", pretrained=True).eval()
    ours = foveal.predictor(f"local-dir:{tmp_path / 'rep'}", "cpu")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(opened(x), ours.net(x))
    config = timm.data.resolve_model_data_config(opened)
    assert (tuple(config["input_size"]), config["crop_pct"], config["interpolation"]) == (
        (3, 96, 96),
        0.875,
        "bilinear",
    )
    assert opened.pretrained_cfg["label_names"] == ours.info.classes
    card = (tmp_path / "rep" / "README.md").read_text()
    assert front_of(card)["library_name"] == "timm"
    assert front_of(card)["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert "ash &lt;b>&#124;" in card


def test_a_network_with_blocks_does_not_pretend_to_be_timms(weights, tmp_path):
    assert not push(weights, "ann/digits", license="mit", out=tmp_path / "rep").for_timm
    assert "architecture" not in json.loads((tmp_path / "rep" / "config.json").read_text())


def test_figures_and_a_comparison_join_the_card(plain, tmp_path):
    evaluated = {
        "data": "/home/ann/leaves",
        "split": "test",
        "images": 40,
        "metric": "accuracy",
        "accuracy": 0.7,
    }
    (tmp_path / "test.json").write_text(json.dumps({**evaluated, "inference": {"top": 5}}))
    row = {
        "name": "none",
        "metric": {"mean": 0.5},
        "to_none": None,
        "costs": {"parameters": 1e6, "time_ms": 2.0},
    }
    better = {"mean": 0.02, "low": 0.01, "high": 0.03, "p_corrected": 0.039}
    results = {
        "conclusion": "cbam helps on /home/ann/leaves.",
        "settings": {"info": {"data": "/home/ann/leaves"}},
        "metric": "accuracy",
        "variants": [row, {**row, "name": "cbam", "to_none": better}],
    }
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "results.json").write_text(json.dumps(results))
    push(
        plain,
        "ann/leaves",
        license="mit",
        out=tmp_path / "rep",
        figures=tmp_path / "test.json",
        comparison=tmp_path / "compared",
    )
    card = (tmp_path / "rep" / "README.md").read_text()
    assert "| accuracy | 0.7 | leaves | test | one view |" in card
    assert "images" not in card.split("## Figures")[1].split("##")[0]
    assert "no test set was measured" not in card
    assert "| `cbam` | 50 % | +2.0 (+1.0 to +3.0), p = 0.039 | 1,000,000 | 2 ms |" in card
    assert "/home" not in card


def test_figures_of_other_weights_or_of_another_task_are_refused(plain, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copyfile(plain, other)
    foveal.save(foveal.create_model("resnet10t", num_classes=3), other, **foveal.read_info(other))
    evaluated = {"data": "x", "split": "test", "metric": "accuracy", "accuracy": 0.9, "inference": {}}
    for changed, rule in (
        ({"weights": str(other)}, r"figures must be those of .*plain\.safetensors, got those of .*other"),
        ({"metric": "miou", "miou": 0.5}, "figures must be those of task classify, accuracy, got miou"),
    ):
        (tmp_path / "test.json").write_text(json.dumps(evaluated | changed))
        with pytest.raises(foveal.FovealError, match=rule):
            push(plain, "ann/leaves", license="mit", out=tmp_path / "rep", figures=tmp_path / "test.json")
    (tmp_path / "test.json").write_text(json.dumps(evaluated | {"weights": str(plain)}))
    push(plain, "ann/leaves", license="mit", out=tmp_path / "rep", figures=tmp_path / "test.json")


def test_a_measured_test_set_is_not_denied(tmp_path):
    """Weights that were saved by hand have no figures of their own."""
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    foveal.save(net, tmp_path / "net.safetensors", **ModelInfo("classify", ["a", "b"], 32).to_dict())
    evaluated = {"data": "x", "split": "test", "metric": "accuracy", "accuracy": 0.9, "inference": {}}
    (tmp_path / "test.json").write_text(json.dumps(evaluated))
    rep = tmp_path / "rep"
    push(tmp_path / "net.safetensors", "ann/x", license="mit", out=rep, figures=tmp_path / "test.json")
    card = (rep / "README.md").read_text()
    assert "| accuracy | 0.9 | x | test | one view |" in card
    assert "no test set was measured" not in card
    assert "random weights" not in card, "nothing is known of the training"


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"name": "leaves"}, "is written hf-hub:user/name"),
        ({"name": "ann/leaves@v1"}, "without a revision"),
        ({"license": "my own licence"}, "license must be the hub's word"),
        ({"picture": "none.png"}, "picture must be a PNG file, got none.png"),
        ({"figures": "none.json"}, "figures must be what foveal eval --out wrote, got no file"),
        ({"comparison": "none"}, "comparison must be what foveal compare wrote, got no file"),
    ],
)
def test_what_cannot_be_a_repository_is_refused(plain, tmp_path, changed, rule):
    options = {"name": "ann/leaves", "license": "mit", "out": tmp_path / "rep", **changed}
    with pytest.raises(foveal.FovealError, match=rule):
        push(plain, options.pop("name"), **options)
    assert not (tmp_path / "rep").exists()


def test_the_licence_is_asked_for(said, plain):
    status, _, err = said("push", plain, "ann/leaves")
    assert (status, err) == (
        2,
        "push: license must be given, such as apache-2.0, cc-by-4.0 or other, got none\n",
    )


def test_a_hub_that_refuses_is_one_line(plain, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match=r"ann/leaves could not be uploaded: http://127\.0\.0\.1:9 did not"
    ):
        push(plain, "ann/leaves", license="mit")


def test_paths_of_any_system_are_found_and_classes_are_left_alone():
    removed = []
    info = {
        "data": "C:\\Users\\ann\\leaves",
        "data_options": {"masks": ["/mnt/m", "~/m", "m/n"]},
        "classes": ["/"],
    }
    assert without_paths(info, removed) == {
        "data": "leaves",
        "data_options": {"masks": ["m", "m", "m/n"]},
        "classes": ["/"],
    }
    assert removed == ["C:\\Users\\ann\\leaves", "/mnt/m", "~/m"]
