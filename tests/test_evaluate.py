"""Figures of trained weights on a data set: those of the training, by the names of the classes."""

import io
import shutil

import pytest
from PIL import Image
from rich.console import Console

import foveal
from foveal.evaluate import data_options_for, evaluate
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS
from foveal.train import TrainConfig, fit

COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 30, 20)}


def test_evaluation_repeats_what_training_measured(coloured_run, coloured_folder):
    found = evaluate(coloured_run.weights, batch_size=5, device="cpu")
    assert found.figures["accuracy"] == coloured_run.best["val_accuracy"]
    assert found.figures["loss"] == pytest.approx(coloured_run.best["val_loss"], rel=1e-5)
    assert (found.images, found.data, found.split) == (18, str(coloured_folder), "val")
    assert found.interval[0] <= found.figures["accuracy"] <= found.interval[1] + 1e-9
    assert set(found.per_class) == set(COLOURS)


def test_what_is_left_out_of_the_data_is_told(coloured_run, coloured_folder, tmp_path):
    shutil.copytree(coloured_folder, tmp_path / "data")
    shutil.copytree(coloured_folder / "val", tmp_path / "data" / "holdout")
    found = evaluate(coloured_run.weights, str(tmp_path / "data"), device="cpu")
    (note,) = found.to_dict()["notes"]
    assert note.startswith("1 file or folder is left out, holdout: 18 images in a folder beside the parts")
    console = Console(width=200, file=io.StringIO())
    console.print(TASKS["classify"].show(found))
    assert note in console.file.getvalue()


def test_classes_are_matched_by_name_and_not_by_number(coloured_run, tmp_path):
    for name in ("red", "green"):  # in the weights' order these are 2 and 1
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (30, 26), COLOURS[name]).save(tmp_path / "val" / name / f"{i}.png")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    assert evaluate(coloured_run.weights, str(tmp_path), device="cpu").figures["accuracy"] == 1.0


def test_a_class_the_network_does_not_know_is_refused_by_name(coloured_run, tmp_path):
    for part in ("train", "val"):
        for name in ("red", "violet"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (30, 26)).save(tmp_path / part / name / "a.png")
    with pytest.raises(ValueError, match=r"among the 3 of the weights, got violet"):
        evaluate(coloured_run.weights, str(tmp_path))


def test_the_options_of_the_training_hold_unless_they_are_given(coloured_folder, tmp_path):
    """On the training's own data, however it is called, the same images are held out as in training."""
    data = tmp_path / "flat"
    for name in COLOURS:
        (data / name).mkdir(parents=True)
        for path in sorted((coloured_folder / "train" / name).iterdir()):
            (data / name / path.name).write_bytes(path.read_bytes())
    options = {"val_share": 0.5, "split_seed": 3}
    config = TrainConfig(
        data=str(data), data_options=options, epochs=1, batch_size=8, image_size=24, workers=0, accelerator="cpu",
        out=str(tmp_path / "run"),
    )  # fmt: skip
    run = fit(config, quiet=True)
    named = evaluate(run.weights, f"{data}/../flat", device="cpu")
    assert named.images == evaluate(run.weights, device="cpu").images == 24
    assert named.figures["accuracy"] == run.rows[-1]["val_accuracy"]
    assert evaluate(run.weights, data_options={"split_seed": 4}, device="cpu").images == 24
    assert evaluate(run.weights, data_options={"val_share": 0.25}, device="cpu").images == 12


def test_a_network_for_grey_images_is_measured_on_any_data(coloured_folder, tmp_path):
    """The data of the training, the same moved elsewhere, and scenes: wherever images have colours they become grey."""
    config = TrainConfig(
        data=str(coloured_folder), model_options={"in_chans": 1}, epochs=1, batch_size=16, image_size=24, workers=0,
        accelerator="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    run = fit(config, quiet=True)
    (tmp_path / "moved").symlink_to(coloured_folder)
    shutil.copytree(coloured_folder, tmp_path / "copied")
    figures = evaluate(run.weights, device="cpu").figures
    assert figures["accuracy"] == run.best["val_accuracy"]
    for place in ("moved", "copied"):
        assert evaluate(run.weights, str(tmp_path / place), device="cpu").figures == figures
    options = {"data_options": {"length": 40, "size": 24}, "out": str(tmp_path / "scenes")}
    scenes = fit(TrainConfig(**{**vars(config), "data": "scenes", **options}), quiet=True)
    assert evaluate(scenes.weights, device="cpu").figures["accuracy"] == scenes.best["val_accuracy"]


def test_weights_that_compare_kept_are_measured_too(tmp_path, in_this_process):
    from foveal.compare import compare

    drawn = {"length": 64, "size": 16, "digit_size": (8, 8)}
    result = compare(["se(reduction=4)@residual:3"], seeds=1, control=False, epochs=1, jobs=1, out=str(tmp_path),
                     data_options=drawn, accelerator="cpu", quiet=True, self_check=False)  # fmt: skip
    [weights] = result.folder.glob("runs/se-seed0-*.safetensors")
    assert evaluate(weights, device="cpu").figures["accuracy"] == pytest.approx(result.rows[1].metric.mean)


def test_data_without_an_image_are_refused():
    with pytest.raises(foveal.FovealError, match="length must be between"):
        evaluate(foveal.inference.open_bundled(), data_options={"length": 0})


def test_a_weights_file_cannot_make_eval_fetch_data():
    info = ModelInfo(
        "classify", ["a", "b"], 32, data="torchvision:X", data_options={"download": True, "length": 3}
    )
    task = TASKS["classify"]
    assert data_options_for(info, None, {}, task) == {"length": 3}
    assert data_options_for(info, "torchvision:X", {}, task) == {"length": 3}
    assert data_options_for(info, None, {"download": True}, task) == {"length": 3, "download": True}
