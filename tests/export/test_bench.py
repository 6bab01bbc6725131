"""The table of what attention costs in each runtime."""

import json

import pytest

from foveal.errors import FovealError
from foveal.export import bench


def test_a_name_that_no_network_has_is_refused():
    with pytest.raises(FovealError, match="only must be part of a name, got 'vgg'"):
        bench.bench_export("vgg")


@pytest.mark.slow
def test_networks_are_timed_beside_the_one_without_attention(tmp_path, monkeypatch, capsys):
    networks = {"cifar_resnet8": bench.Network("cifar_resnet8", size=(32, 32))}
    networks["with"] = bench.Network("cifar_resnet8", "se(reduction=4)@residual", "cifar_resnet8", (32, 32))
    monkeypatch.setattr(bench, "NETWORKS", networks)
    monkeypatch.setattr(bench, "BARS", {"onnx": 1e9, "openvino": 1e9})
    monkeypatch.setattr(bench, "BARRED", ["with"])
    out, runtimes = tmp_path / "a" / "b.json", ["eager", "fuse", "onnx", "onnx static", "openvino default"]
    assert bench.bench_export("with", str(out), repeats=2, batches=[1, 2], runtimes=runtimes)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["network"], row["batch"]) for row in rows[:4]] == [
        ("cifar_resnet8", 1), ("with", 1), ("cifar_resnet8", 2), ("with", 2),
    ]  # fmt: skip
    assert {row["runtime"] for row in rows} == set(runtimes)
    assert [(row["runtime"], row["met"]) for row in rows if "met" in row] == [
        ("onnx", True), ("onnx static", True),
    ]  # fmt: skip
    assert {row["batch"] for row in rows if row["runtime"] == "onnx static"} == {1}
    assert all(("ratio" in row) == (row["network"] == "with") for row in rows)
    assert "meets the bar" in capsys.readouterr().out
