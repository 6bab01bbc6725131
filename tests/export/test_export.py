"""`foveal export`: a file for another runtime, proven, with a script that answers as foveal does."""

import copy
import json
import math
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.errors import FovealError
from foveal.export import export, format_named, openvino, pt2
from foveal.export.onnx import to_model
from foveal.export.program import record
from foveal.export.proof import make_batches, real_images
from foveal.export.quantize import calibration_inputs, float_nodes
from foveal.export.script import run_script
from foveal.inference import Predictor, predictor
from foveal.model_info import ModelInfo


@pytest.fixture(scope="module")
def ready(weights):
    """A small classifier with a CBAM, a Non-local block and a DANet block, none of them the identity."""
    return predictor(weights, "cpu")


@pytest.fixture(scope="module")
def batches(ready):
    return make_batches(ready, real_images(ready, None), static=False, normalise=False)


@pytest.fixture(scope="module")
def program(ready, batches):
    return record(ready, torch.from_numpy(batches[0].input), static=False, half=False, normalise=False)


@pytest.fixture(scope="module")
def graphs(program):
    """With statistics in groups, as ONNX Runtime wants them, and without."""
    return {grouped: to_model(program, for_onnxruntime=grouped) for grouped in (True, False)}


@pytest.fixture
def recorded(monkeypatch, program, graphs):
    """Recording and translating take seconds: they are done once for all tests here."""
    use_again(monkeypatch, program, graphs)


def use_again(patch, program, graphs, change=lambda model: None):
    def changed(_, for_onnxruntime=False):
        model = copy.deepcopy(graphs[for_onnxruntime])
        change(model)
        return model

    patch.setattr("foveal.export.record", lambda *_, **__: program)
    patch.setattr("foveal.export.onnx.to_model", changed)
    patch.setattr("foveal.export.openvino.to_model", changed)


@pytest.fixture(scope="module")
def onnx_folder(weights, program, graphs, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        use_again(patch, program, graphs)
        lines = []
        export(weights, out=out, say=lines.append)
    (out.parent / "said.txt").write_text("\n".join(lines))
    return out


def test_batches_are_real_images_of_two_sizes_and_three_batches(batches):
    assert [batch.prepared.shape for batch in batches] == [(2, 3, 32, 32), (1, 3, 32, 32), (3, 3, 41, 32)]
    assert not torch.equal(batches[0].prepared[0], batches[0].prepared[1])


def test_no_image_of_the_proof_is_larger_than_any_network_may_see(ready, monkeypatch):
    monkeypatch.setattr("foveal.export.proof.LARGEST_SIZE", 40)
    *_, last = make_batches(ready, real_images(ready, None)[:1], static=False, normalise=False)
    assert last.prepared.shape == (3, 3, 25, 20)


def test_the_file_stands_with_a_description_and_a_script(onnx_folder, ready):
    names = ["build_engine.py", "foveal.json", "infer.py", "model.onnx"]
    assert sorted(path.name for path in onnx_folder.iterdir()) == names
    about = json.loads((onnx_folder / "foveal.json").read_text())
    assert about["classes"] == ready.info.classes
    assert [one["block"] for one in about["plan"]] == ["cbam", "nonlocal", "dual"]
    assert about["input"] == {"name": "images", "shape": ["batch", 3, "height", "width"], "type": "float32"}
    assert len(about["checks"]) == 3
    assert all(0 < one["difference"] < 1e-4 and one["agreement"] == 1 for one in about["checks"])
    said = (onnx_folder.parent / "said.txt").read_text()
    assert "images 3x3x41x32: largest difference" in said
    assert "top-1 agreement 100.00%" in said


def test_nodes_are_named_by_their_modules_and_nothing_of_this_machine_is_in_the_file(onnx_folder):
    import onnx

    model = onnx.load(onnx_folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "layer1.0.bn2.cbam/ReduceMax" in names
    assert {node.op_type for node in model.graph.node if node.name.startswith("layer1.0.bn2.cbam/Global")} == {
        "GlobalAveragePool", "GlobalMaxPool",
    }  # fmt: skip
    assert "layer1.0.conv1/Conv" in names
    sizes = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    (about,) = (entry.value for entry in model.metadata_props if entry.key == "foveal")
    assert json.loads(about)["task"] == "classify"
    assert str(Path(foveal.__file__).parents[1]).encode() not in (onnx_folder / "model.onnx").read_bytes()


def test_the_script_answers_as_foveal_does_without_torch(onnx_folder, ready, photo, tmp_path):
    text = (onnx_folder / "infer.py").read_text()
    assert not re.search(r"^\s*(import|from) (torch|foveal)", text, flags=re.MULTILINE)
    answer = run_script(onnx_folder / "infer.py", photo, tmp_path)
    wanted = ready(photo).labels
    assert [label for label, _ in answer["labels"]] == [label for label, _ in wanted]
    assert np.allclose([p for _, p in answer["labels"]], [p for _, p in wanted], atol=1e-5)


def test_a_file_that_cannot_be_read_is_one_line_and_keeps_no_other_from_its_answer(
    onnx_folder, photo, tmp_path
):
    (tmp_path / "cut.jpg").write_bytes(Path(photo).read_bytes()[:3000])
    names = ["missing.png", "cut.jpg", str(photo)]
    done = subprocess.run(
        [sys.executable, "-I", str(onnx_folder / "infer.py"), *names],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [str(photo)]
    assert [line.partition(" has no answer: ")[0] for line in done.stderr.splitlines()] == names[:2]


@pytest.mark.parametrize("to", ["openvino", pytest.param("aotinductor", marks=pytest.mark.slow)])
def test_other_formats_compute_the_same(to, recorded, ready, tmp_path):
    """torch.export's own is the example in the docstring of `export`."""
    done = export(ready, to, out=tmp_path / to)
    assert max(one.difference for one in done.checks) < 1e-5
    assert done.answer_difference < 1e-5
    assert done.file.exists()


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A small DANet whose attention is switched on."""
    torch.manual_seed(0)
    net = foveal.create_model("danet_test_resnet", num_classes=5)
    for block in (net.position[1], net.channel[1]):
        torch.nn.init.constant_(block.gamma, 0.5)
    path = tmp_path_factory.mktemp("segmenter") / "danet.safetensors"
    info = ModelInfo("segment", ["sky", "road", "car", "tree", "sign"], 48, model="danet_test_resnet")
    foveal.save(net, path, **info.to_dict())
    return path


def test_a_segmentation_network_is_exported_with_its_preprocessing_and_masks(segmenter, photo, tmp_path):
    done = export(segmenter, with_preprocessing=True, out=tmp_path / "out")
    assert [one.shape for one in done.checks] == [(2, 3, 48, 48), (1, 3, 48, 48), (3, 3, 61, 48)]
    assert all(one.difference < 1e-4 and one.agreement == 1 for one in done.checks)
    assert json.loads((done.folder / "foveal.json").read_text())["input"]["type"] == "uint8"
    answer = run_script(done.folder / "infer.py", photo, tmp_path)
    wanted = predictor(segmenter, "cpu")(photo)
    assert np.array_equal(np.asarray(Image.open(tmp_path / answer["classes_png"])), wanted.class_map.numpy())
    assert [tuple(pair) for pair in answer["labels"]] == wanted.labels
    again = run_script(done.folder / "infer.py", photo, tmp_path)["classes_png"]
    assert (tmp_path / again).exists()
    assert again != answer["classes_png"], "another photograph of that name may be there"


@pytest.mark.slow
def test_a_segmentation_file_of_one_shape_takes_that_of_the_first_image_that_can_be_read(segmenter, tmp_path):
    """In eight bits, too: images of other shapes calibrate nothing."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    for name, size in (("1.png", (72, 48)), ("2.png", (48, 48)), ("3.png", (48, 48))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            tmp_path / "images" / name
        )
    lines, images = [], str(tmp_path / "images")
    export(
        segmenter,
        static=True,
        images=images,
        int8=True,
        calibrate=images,
        out=tmp_path / "out",
        say=lines.append,
    )
    assert any("2.png becomes (48, 48), where a file of one shape takes (72, 48)" in line for line in lines)
    names = [f"{images}/{name}" for name in ("1.png", "2.png")]
    done = subprocess.run(
        [sys.executable, tmp_path / "out" / "infer.py", *names], capture_output=True, text=True, cwd=tmp_path
    )
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == names[:1]
    assert (
        "2.png has no answer: it becomes (1, 3, 48, 48), where [1, 3, 72, 48] alone is taken" in done.stderr
    )


def test_a_disk_that_is_full_is_said_by_its_own_error(program, tmp_path, monkeypatch):
    """PyTorch's writer ends the process there, and OpenVINO's says nothing of a disk."""
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space left on device"):
            pt2.write(program, Path("/dev/full"), "{}")
    full = MagicMock(save_model=MagicMock(side_effect=RuntimeError("basic_ios::clear: iostream error")))
    monkeypatch.setitem(sys.modules, "openvino", full)
    monkeypatch.setattr("shutil.disk_usage", lambda _: MagicMock(free=0))
    monkeypatch.setattr(openvino, "_serialized", lambda _: None)
    with pytest.raises(OSError, match="No space left on device"):
        openvino.write(program, tmp_path / "model.xml", "{}")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
def test_half_precision_stays_near(to, ready, tmp_path):
    done = export(ready, to, half=True, out=tmp_path / "out")
    assert all(1e-6 < one.difference < 0.02 and one.agreement == 1 for one in done.checks)
    assert json.loads((done.folder / "foveal.json").read_text())["precision"] == "float16"


class Overflowing(torch.nn.Module):
    """What it multiplies by and divides by again is too much for float16."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.conv(x) * 1e6 / 1e6).mean((2, 3))


def test_where_float16_alone_changes_the_answer_the_file_is_not_blamed(tmp_path):
    ready = Predictor(
        Overflowing().eval(), ModelInfo("classify", ["a", "b", "c", "d"], 32, model="own"), "own"
    )
    with pytest.raises(FovealError, match=r"in float16 the network itself differs by inf .* without half"):
        export(ready, "pt2", half=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def calibration(photo, tmp_path_factory):
    """Parts of a photograph, and a file that is no image."""
    folder = tmp_path_factory.mktemp("calibration")
    image = Image.open(photo)
    for i in range(12):
        image.crop((20 * i, 10 * i, 20 * i + 80, 10 * i + 90)).save(folder / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("to", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_eight_bits_are_calibrated_measured_and_told(to, recorded, ready, calibration, tmp_path):
    """Without the data of the training at hand, the measure is the agreement with the float file."""
    lines = []
    unknown = replace(ready, info=replace(ready.info, data=None))
    done = export(unknown, to, int8=True, calibrate=str(calibration), out=tmp_path / "out", say=lines.append)
    assert sum("broken.png" in line for line in lines) == 1
    told = json.loads((done.folder / "foveal.json").read_text())["int8"]
    assert told["calibration_images"] == 12
    assert set(told["values"]) == set(told["time_ms"]) == {"float", "all", "gates and softmax in float"}
    assert told["values"]["float"] == 1
    assert told["values"][told["kept"]] == max(v for name, v in told["values"].items() if name != "float")
    assert 1e-6 < max(one.difference for one in done.checks) < 1
    names = format_named(to).nodes(done.file)
    assert any("Quantize" in name or "/fq_output" in name for name in names)
    left = {path.name for path in done.folder.iterdir()}
    assert left == {"foveal.json", "infer.py", done.file.name} | (
        {"model.bin"} if to == "openvino" else set()
    )


def test_the_script_for_tensorrt_keeps_gates_and_softmax_in_float32(onnx_folder, tmp_path, monkeypatch):
    """Run against an object that takes every call: TensorRT itself is on no machine of these tests."""
    trt, network = MagicMock(), MagicMock()
    trt.float32 = "float32"
    trt.Builder.return_value.create_network.return_value = network
    trt.Builder.return_value.build_serialized_network.return_value = b"engine"
    names = format_named("onnx").nodes(onnx_folder / "model.onnx")
    layers = {name: MagicMock(num_outputs=1, precision="any") for name in names}
    for name, layer in layers.items():
        layer.name, layer.get_output.return_value.dtype = name, "float32"
    network.num_layers, network.get_layer = len(names), list(layers.values()).__getitem__
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(sys, "argv", ["build_engine.py", "--fp16"])
    script = tmp_path / "build_engine.py"
    script.write_text((onnx_folder / "build_engine.py").read_text())
    runpy.run_path(str(script))
    assert (tmp_path / "model.engine").read_bytes() == b"engine"
    kept = {name for name, layer in layers.items() if layer.precision == "float32"}
    assert {name for name in names if "Softmax" in name} < kept
    assert any(".cbam/" in name for name in kept)
    assert not any("/Conv" in name and "cbam" not in name for name in kept)
    shapes = trt.Builder.return_value.create_optimization_profile.return_value.set_shape.call_args.args
    assert shapes == ("images", (1, 3, 16, 16), (1, 3, 32, 32), (8, 3, 64, 64))


def test_gates_and_softmax_are_the_nodes_that_may_stay_in_float(ready, graphs):
    left = float_nodes(ready.net, [node.name for node in graphs[True].graph.node])
    assert "layer1.0.bn2.cbam.channel.fc1/Gemm" in left
    assert any(name.endswith("/Softmax") for name in left)
    assert not any(name.startswith(("conv1/", "layer1.0.conv1/", "fc/")) for name in left)


def test_options_of_eight_bits_that_do_not_fit_are_refused(said, weights, calibration, tmp_path, monkeypatch):
    for words, message in (
        (("--int8",), "int8 must come with calibrate"),
        (("--calibrate", calibration), "int8 must come with calibrate"),
        (("--int8", "--calibrate", calibration, "--to", "pt2"), "int8 must be for onnx or openvino, got pt2"),
        (("--int8", "--calibrate", calibration, "--half"), "int8 must be given without half"),
    ):
        status, _, error = said("export", weights, "--out", tmp_path / "out", *words)
        assert (status, message in error) == (2, True)
    with pytest.raises(foveal.FovealError, match="calibrate must hold an image that can be read"):
        calibration_inputs(predictor(weights, "cpu"), str(tmp_path), print)
    monkeypatch.setattr("foveal.export.record", None)  # the folder is looked at before anything takes time
    status, _, error = said("export", weights, "--int8", "--calibrate", tmp_path, "--out", tmp_path / "out")
    assert (status, "calibrate must hold an image that can be read" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- planted faults


def swap_statistics(model):
    """CBAM's spatial gate sees the maximum where it was trained to see the mean."""
    joins = (n for n in model.graph.node if n.op_type == "Concat" and n.attribute[0].i == 1)
    *_, concat = (n for n in joins if n.name.startswith("layer1.0.bn2.cbam/"))
    first, second = concat.input
    concat.input[0], concat.input[1] = second, first


def bake_pool(model):
    """The last pooling averages over the size that was recorded, whatever comes."""
    import onnx

    *_, last = (node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    last.op_type = "AveragePool"
    last.attribute.extend([
        onnx.helper.make_attribute("kernel_shape", [8, 8]), onnx.helper.make_attribute("strides", [8, 8]),
    ])  # fmt: skip


@pytest.mark.parametrize("to", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("fault", "where"),
    [(swap_statistics, "is layer1.0.bn2.cbam/"), (bake_pool, "seen in the output of fc")],
)
def test_a_fault_in_the_file_is_found_and_named_and_nothing_is_kept(
    to, fault, where, program, graphs, ready, tmp_path, monkeypatch
):
    use_again(monkeypatch, program, graphs, fault)
    with pytest.raises(foveal.FovealError, match="differs from the network") as error:
        export(ready, to, out=tmp_path / "out")
    assert "the first node that differs is" in str(error.value)
    assert where in str(error.value)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_exported_is_said_in_one_line(said, weights, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    assert said("export", weights, "--out", tmp_path / "there")[::2] == (
        2, f"export: out must not exist yet, got {tmp_path / 'there'}, which would be overwritten\n",
    )  # fmt: skip
    assert (
        said("export", weights, "--image-size", "9000")[2]
        == "export: image_size must be 2 to 8192, got 9000\n"
    )
    status, _, error = said("export", weights, "--images", tmp_path / "there", "--out", tmp_path / "a")
    assert (status, list(tmp_path.glob(".a*"))) == (2, [])
    assert "images must hold an image that can be read" in error
    assert "to must be" in said("export", weights, "--to", "tflite")[2]
    monkeypatch.setattr("foveal.export.find_spec", lambda name: None)
    assert said("export", weights)[2] == (
        'export: onnx needs onnx, onnxscript, onnxruntime: pip install "foveal[export]"\n'
    )


def test_a_network_whose_outputs_are_no_numbers_is_refused(ready, tmp_path):
    """Nothing equals nothing: such a file would be proven."""
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10))
    torch.nn.init.constant_(net[2].weight, float("nan"))
    with pytest.raises(FovealError, match="must give numbers, got none that is finite for images 2x3x32x32"):
        export(replace(ready, net=net.eval()), out=tmp_path / "out")
    with pytest.raises(FovealError, match="out must name a folder, got ''"):
        export(ready, out="")


class Refuses(torch.nn.Module):
    def forward(self, x):
        return x * float(x.mean()) if x.mean() > 0 else x


def test_a_block_that_cannot_be_recorded_is_named(ready, batches, tmp_path, capsys):
    net = foveal.create_model("cifar_resnet8", num_classes=10).eval()
    net.layer2[0].bn1 = torch.nn.Sequential(net.layer2[0].bn1, Refuses())
    with pytest.raises(foveal.FovealError, match=r"cannot be recorded at layer2.0.bn1.1: .*--static"):
        export(replace(ready, net=net), out=tmp_path / "out")
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_the_network_cannot_take_is_said(ready, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 9), torch.nn.Flatten(), torch.nn.LazyLinear(10))
    net(torch.zeros(1, 3, 32, 32))
    fixed = replace(ready, net=net.eval())
    with pytest.raises(
        foveal.FovealError, match="image_size must be one that the network takes, got 48 \\(48x48\\): mat1"
    ):
        export(fixed, image_size=48, out=tmp_path / "out")
    with pytest.raises(foveal.FovealError, match="any size, but not 41x32; --static exports one size"):
        export(fixed, "pt2", out=tmp_path / "out")
    done = export(fixed, "pt2", static=True, out=tmp_path / "out")
    assert json.loads((done.folder / "foveal.json").read_text())["input"]["shape"] == [1, 3, 32, 32]


def test_a_format_is_known_by_its_name():
    assert format_named("pt2").FILE == "model.pt2"
    with pytest.raises(
        foveal.FovealError, match="to must be one of onnx, openvino, aotinductor, pt2, web, got x"
    ):
        format_named("x")


@pytest.mark.parametrize("step", ["write", "load"])
def test_what_an_exporter_or_a_runtime_raises_is_one_line(step, recorded, ready, tmp_path, monkeypatch):
    def fails(*_):
        raise AssertionError("op <built-in function ceil>\nis not in _SYM_OPS")

    said = "CifarResNet cannot be exported to onnx, which says: op <.*ceil> is not in _SYM_OPS"
    monkeypatch.setattr(f"foveal.export.onnx.{step}", fails)
    with pytest.raises(FovealError, match=said):
        export(ready, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Padded(torch.nn.Module):
    """Pools as TensorFlow's "same" does, whose padding rounds a quotient of sizes up, and one rounded down."""

    def forward(self, x):
        height, width = x.shape[2:]
        padded = torch.nn.functional.pad(x, (0, math.ceil(width / 4) * 4 - width, 0, math.floor(height / 3)))
        return torch.nn.functional.avg_pool2d(padded, 4)


def test_quotients_of_sizes_that_are_rounded_are_saved_by_pytorch(ready, tmp_path):
    net = torch.nn.Sequential(
        Padded(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10)
    )
    done = export(replace(ready, net=net.eval()), "pt2", image_size=31, out=tmp_path / "out")
    assert [one.shape[-1] for one in done.checks] == [31, 31, 31]
    assert all(one.difference < 1e-5 for one in done.checks)
