"""Clips in a script without foveal are those that foveal prepares, and so are the answers of an exported network."""

import json

import numpy as np
import pytest
import torch
from tests.data.test_video import rotated
from tests.data.videos import write_animation, write_frames, write_video

import foveal
from foveal.data.video import FORMATS
from foveal.export import export
from foveal.export.script import run_script
from foveal.inference import Predictor
from foveal.model_info import ModelInfo
from foveal.tasks.clips.shipping import prepare, read, ship

NATIVE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def network(size=20, frames=4, stride=2, short="loop", **options):
    torch.manual_seed(0)
    net = foveal.create_model("nonlocal_i3d_cifar_resnet8", num_classes=3, blocks=2, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    extra = {"frames": frames, "stride": stride, "short": short}
    return Predictor(net.eval(), ModelInfo("clips", ["a", "b", "c"], size, extra=extra), "net")


def noise(count, height, width):
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "count", "height", "width", "short"),
    [
        (20, 12, 20, 20, "loop"),
        (20, 5, 33, 47, "loop"),
        (16, 3, 50, 24, "repeat"),
        (112, 9, 130, 171, "loop"),
    ],
)
def test_a_clip_is_prepared_to_the_bit(tmp_path, size, count, height, width, short):
    """Short ones, wide ones, and sizes where a margin is cut off."""
    ready = network(size, short=short)
    facts = {**ready.task.ship(ready.info).preprocessing, "normalised_in_graph": True}
    write_frames(tmp_path / "frames", noise(count, height, width))
    write_animation(tmp_path / "a.webp", noise(count, height, width))
    for name in ("frames", "a.webp"):
        wanted = ready.view({"image": ready.read(tmp_path / name)})["image"][None].numpy()
        found = prepare(read(str(tmp_path / name), "RGB"), facts)
        assert found.shape == wanted.shape == (1, 3, 4, size, size)
        assert np.abs(found.astype(int) - wanted).max() <= (0 if NATIVE else 1)


def test_a_script_takes_for_videos_what_foveal_takes_for_videos():
    """It has no foveal to ask, so the names stand in it."""
    assert tuple(FORMATS) in read.__code__.co_consts


def test_a_video_file_is_prepared_to_the_bit(tmp_path):
    """Upright, and with frames of B, which files hold in another order than they are shown in."""
    pytest.importorskip("av")
    ready = network(20, frames=4, stride=3)
    facts = {**ready.task.ship(ready.info).preprocessing, "normalised_in_graph": True}
    write_video(tmp_path / "a.mp4", noise(30, 48, 64), options={"g": "10", "bf": "2"})
    (tmp_path / "turned.mp4").write_bytes(rotated((tmp_path / "a.mp4").read_bytes(), 90))
    write_video(tmp_path / "a.avi", noise(30, 48, 64), "mpeg4")
    for name in ("a.mp4", "turned.mp4", "a.avi"):
        wanted = ready.view({"image": ready.read(tmp_path / name)})["image"][None].numpy()
        found = prepare(read(str(tmp_path / name), "RGB"), facts)
        assert np.abs(found.astype(int) - wanted).max() <= (0 if NATIVE else 1), name


def test_a_video_file_without_pyav_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(SystemExit, match=r"reading a.mp4 needs PyAV: pip install av"):
        read("a.mp4", "RGB")


def test_what_makes_a_clip_is_told():
    shipment = ship(network(112, 8, 3, "repeat").info, 8, 3, "repeat", shorter=128)
    assert shipment.preprocessing == {
        "frames": 8, "stride": 3, "short": "repeat", "resize_shorter": 128, "crop": 112,
    }  # fmt: skip
    assert shipment.free == (0,), "one number of frames and one size, any batch"


@pytest.mark.parametrize(
    ("to", "options"),
    [("onnx", {"with_preprocessing": True}), pytest.param("openvino", {}, marks=pytest.mark.slow)],
)
def test_an_exported_network_answers_as_foveal_does(tmp_path, to, options):
    pytest.importorskip("av")
    pytest.importorskip({"onnx": "onnxruntime"}.get(to, to))
    ready = network(over="spacetime", subsample="after")
    done = export(ready, to, out=tmp_path / "out", **options)
    assert [one.shape for one in done.checks] == [(2, 3, 4, 20, 20), (1, 3, 4, 20, 20), (3, 3, 4, 20, 20)]
    assert done.answer_difference < 1e-5
    about = json.loads((done.folder / "foveal.json").read_text())
    assert about["input"]["shape"] == ["batch", 3, 4, 20, 20]
    write_animation(tmp_path / "a.gif", noise(7, 31, 40))
    write_frames(tmp_path / "frames", noise(3, 31, 40))
    write_video(tmp_path / "a.mp4", noise(14, 32, 40))
    for name in ("a.gif", "frames", "a.mp4"):
        said = run_script(done.folder / "infer.py", tmp_path / name, tmp_path)["labels"]
        wanted = ready(tmp_path / name).labels
        assert [label for label, _ in said] == [label for label, _ in wanted]
        assert [score for _, score in said] == pytest.approx([score for _, score in wanted], abs=1e-4)
