"""``foveal convert``: a file that foveal.load rebuilds, the way back, and one line for whatever is wrong."""

import os
import subprocess
import sys

import pytest
import torch

import foveal
from foveal.cli import main
from foveal.published import export

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net():
    return foveal.create_model("cbam_resnet18", num_classes=3, variant="official").eval()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_and_back(net, capsys):
    state = export(net, "cbam-official")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, "in.pth")
    assert main(["convert", "in.pth", "out.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "in.pth: cbam-official, CBAM variant 'official'" in said
    assert "out.safetensors: cbam_resnet18, 3 classes, 11.27 million parameters, 8 inserted blocks" in said
    again = foveal.load("out.safetensors").eval()
    assert torch.equal(again(X), net(X))
    assert foveal.read_info("out.safetensors")["info"]["converted_from"] == "cbam-official"
    for name in ("back.pth", "back.safetensors"):
        assert main(["convert", "out.safetensors", name, "--to", "cbam-official"]) == 0
    from safetensors.torch import load_file

    for back in (torch.load("back.pth", weights_only=True), load_file("back.safetensors")):
        assert back.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in back.items())


def refused(capsys, *arguments: str) -> str:
    assert main(["convert", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("convert: ")
    assert text.count("\n") == 1
    return text


def test_mistakes_are_one_line_and_leave_nothing(net, capsys, tmp_path):
    torch.save(foveal.create_model("resnet18").state_dict(), "plain.pth")
    state = export(net, "cbam-official")
    torch.save({**state, "fc.weight": state["fc.weight"].T.contiguous()}, "turned.pth")
    torch.save(export(foveal.nn.NonLocal(8, out_bias=True), "nonlocal-port"), "block.pth")
    before = {path.name for path in tmp_path.iterdir()}
    assert "one of the formats" in refused(capsys, "plain.pth", "out.safetensors")
    assert "mis-shaped: fc." in refused(capsys, "turned.pth", "out.safetensors")
    assert "No such file" in refused(capsys, "none.pth", "out.safetensors")
    assert "--model_options" not in refused(capsys, "block.pth", "out.safetensors")
    assert "another file" in refused(capsys, "plain.pth", "plain.pth")
    assert "one of timm-se" in refused(capsys, "plain.pth", "out.safetensors", "--format", "timm")
    assert "one of timm-se" in refused(capsys, "plain.pth", "out.safetensors", "--to", "timm")
    assert "pickle" in refused(capsys, "plain.pth", "out.pth", "--to", "timm-se")
    foveal.save(net, "ours.safetensors")
    kind = refused(capsys, "ours.safetensors", "out.pth", "--to", "mmseg-danet")
    assert kind.startswith("convert: mmseg-danet must be given a network of its kind")
    assert refused(capsys, "turned.pth", "out.pth", "--to", "mmseg-danet").startswith("convert: expected")
    high = refused(capsys, "turned.pth", "out.safetensors", "--model_options.drop_rate=high")
    assert high.startswith("convert: drop_rate must be a number")
    assert {path.name for path in tmp_path.iterdir()} == before | {"ours.safetensors"}


def test_a_single_block_goes_into_a_file_for_a_block_made_alike(capsys):
    block = foveal.nn.NonLocal(8, out_bias=True, norm="batch", start="paper")
    state = export(block, "nonlocal-port")
    torch.save({f"layer2.1.non_local.{name}": value for name, value in state.items()}, "net.pth")
    arguments = ["net.pth", "block.safetensors", "--prefix", "layer2.1.non_local"]
    assert main(["convert", *arguments, "--model_options.pairwise=embedded_gaussian"]) == 0
    assert "block.safetensors: one NonLocal, " in capsys.readouterr().out
    other = foveal.nn.NonLocal(8, out_bias=True, norm="batch", start="paper")
    foveal.load("block.safetensors", other)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(other.eval()(x), block.eval()(x))


def test_averaged_weights_are_taken_where_asked_for(net, capsys):
    raw = export(net, "cbam-official")
    mean = {name: value + 1 for name, value in raw.items()}
    torch.save({"state_dict": raw, "state_dict_ema": mean, "epoch": 3}, "in.pth")
    assert "--ema true or --ema false" in refused(capsys, "in.pth", "out.safetensors")
    for ema, state in (("true", mean), ("false", raw)):
        assert main(["convert", "in.pth", "out.safetensors", "--ema", ema]) == 0
        said = capsys.readouterr().out
        assert ("averaged weights (state_dict_ema)" in said) == (ema == "true")
        assert torch.equal(foveal.load("out.safetensors").fc.bias, state["fc.bias"])  # type: ignore[union-attr]


def test_a_target_stays_as_it_was_after_an_error(net, capsys, tmp_path, monkeypatch):
    torch.save(foveal.create_model("resnet18").state_dict(), "plain.pth")
    foveal.save(net, "ours.safetensors")
    for target in ("out.safetensors", "out.pth"):
        (tmp_path / target).write_text("as it was")
    before = {path.name for path in tmp_path.iterdir()}
    refused(capsys, "plain.pth", "out.safetensors")
    refused(capsys, "ours.safetensors", "out.pth", "--to", "mmseg-danet")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    torch.save(export(net, "cbam-official"), "in.pth")
    assert "No space left" in refused(capsys, "in.pth", "out.safetensors")
    assert "No space left" in refused(capsys, "ours.safetensors", "out.pth", "--to", "cbam-official")
    assert {(tmp_path / target).read_text() for target in ("out.safetensors", "out.pth")} == {"as it was"}
    assert {path.name for path in tmp_path.iterdir()} == before | {"in.pth"}


def test_help_needs_no_torch():
    code = "import sys; from foveal.cli import main; main(['convert', '--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
