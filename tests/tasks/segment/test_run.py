"""Segmentation end to end: train, continue after a kill, evaluate, predict; and every kind of bad input in one line."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import foveal
from foveal.evaluate import evaluate
from foveal.palette import palette
from foveal.predict import predict
from foveal.tasks.segment.metric import confusion, intersect_and_union, ious
from foveal.train import TrainConfig, fit
from foveal.train.block_report import block_report

IGNORED = 9
FAST = {"model": "danet_test_byobnet", "batch_size": 4, "lr": 0.05, "workers": 0, "accelerator": "cpu"}


def config(folder, out, **changes):
    options = {"task": "segment", "data": str(folder), "data_options": {"ignore_index": IGNORED}, **FAST}
    return TrainConfig.from_dict({**options, "out": str(out), **changes})


@pytest.fixture(scope="module")
def run(masks_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    inserted = ["se(reduction=4)@backbone.stages_3.*.conv3_1x1"]
    return fit(config(masks_folder, out, epochs=16, insert=inserted, schedule="poly"), quiet=True)


# ------------------------------------------------------------------------------------------------------- training


def test_a_run_learns_and_keeps_what_using_its_weights_needs(run, masks_folder):
    assert run.best["val_miou"] > 0.6
    assert run.rows[-1]["train_loss"] < run.rows[0]["train_loss"]
    info = foveal.load(run.weights).foveal_info
    assert (info["task"], info["image_size"], info["ignore_index"]) == ("segment", 32, IGNORED)
    assert info["classes"] == ["background", "blue", "red"]
    assert info["data_options"] == {"ignore_index": IGNORED}
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    header, *rows = (run.folder / "metrics.csv").read_text().splitlines()
    parts = ["train_fused", "train_position", "train_channel"]
    assert header.split(",")[3:10] == ["train_loss", *parts, "val_loss", "val_miou", "val_pixel_accuracy"]
    first = dict(zip(header.split(","), map(float, rows[0].split(",")), strict=True))
    assert sum(first[name] for name in parts) == pytest.approx(first["train_loss"], rel=1e-5)
    assert len(rows) == 16


def test_the_report_holds_inserted_blocks_and_danet_s_own(run):
    rows = {row["block"]: row for row in run.blocks}
    assert set(rows) == {"se", "position", "channel"}
    for name in ("position", "channel"):
        assert rows[name]["site"].startswith(name)
        assert rows[name]["scale"] is not None
        assert rows[name]["contribution"] > 0
    untouched = block_report(
        foveal.create_model("danet_test_byobnet", num_classes=2), [torch.randn(2, 3, 32, 32)]
    )
    assert [row["verdict"].split(",")[0] for row in untouched] == ["inert", "inert"]


KILLED = """
import os, signal
import torch
from foveal.train import TrainConfig, fit, loop

torch.set_num_threads({threads})

step = loop.supervised_step
def supervised_step(training, *rest):
    if training.epoch == 1 and training.batch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(training, *rest)
loop.supervised_step = supervised_step
fit(TrainConfig.from_dict({options!r}), quiet=True)
"""


def test_a_killed_run_continues_to_the_same_bits(tmp_path, masks_folder, zygote):
    hard = {
        "epochs": 2,
        "checkpoint_steps": 1,
        "ohem": True,
        "class_weights": "balanced",
        "model_options": {"auxiliary": True, "channel_form": "paper"},
    }
    whole = fit(config(masks_folder, tmp_path / "whole", **hard), quiet=True)
    options = config(masks_folder, tmp_path / "killed", **hard).to_dict()
    child = zygote.run(tmp_path, code=KILLED.format(options=options, threads=torch.get_num_threads()))
    assert child.status == -signal.SIGKILL, child.err
    resumed = fit(resume=tmp_path / "killed", quiet=True)
    mine, theirs = (load_file(r.folder / "weights/last.safetensors") for r in (resumed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [{**row, "seconds": 0} for row in resumed.rows] == [{**row, "seconds": 0} for row in whole.rows]
    assert foveal.load(whole.weights).foveal_model["kwargs"]["channel_form"] == "paper"


def test_half_precision_and_channels_last_train_too(tmp_path, masks_folder):
    options = {"epochs": 1, "precision": "bfloat16", "channels_last": True, "freeze_epochs": 1, "ema": 0.5}
    plain = options | {"precision": "float32", "channels_last": False}
    here, there = (
        fit(config(masks_folder, tmp_path / str(i), **o), quiet=True) for i, o in enumerate((options, plain))
    )
    assert here.rows[0]["train_loss"] == pytest.approx(there.rows[0]["train_loss"], rel=0.02)
    assert here.rows[0]["train_loss"] != there.rows[0]["train_loss"]


# --------------------------------------------------------------------------------------------------- measured


def test_evaluation_repeats_what_training_measured(run):
    found = evaluate(run.weights, device="cpu", batch_size=2)
    assert found.figures["miou"] == pytest.approx(run.best["val_miou"], abs=1e-9)
    assert found.figures["pixel_accuracy"] == pytest.approx(run.best["val_pixel_accuracy"], abs=1e-9)
    assert found.figures["loss"] == pytest.approx(run.best["val_loss"], rel=1e-5)
    assert (found.images, found.inference.to_dict(), found.interval_of) == (
        5,
        {"mode": "whole"},
        "images drawn, not training runs",
    )
    assert np.mean([v for v in found.per_class.values() if v is not None]) == pytest.approx(
        found.figures["miou"]
    )


def test_classes_are_matched_by_name_and_the_ignored_value_is_that_of_training(run, tmp_path, masks_folder):
    swapped = np.array([2, 1, 0])  # red, blue, background
    (tmp_path / "classes.txt").write_text("red\nblue\nbackground")
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / part / kind).mkdir(parents=True)
        for path in (masks_folder / "val" / "images").iterdir():
            (tmp_path / part / "images" / path.name).write_bytes(path.read_bytes())
            mask = np.asarray(Image.open(masks_folder / "val" / "labels" / path.name))
            moved = np.where(mask == IGNORED, IGNORED, swapped[np.minimum(mask, 2)])
            Image.fromarray(moved.astype(np.uint8)).save(tmp_path / part / "labels" / path.name)
    same, other = evaluate(run.weights, device="cpu"), evaluate(run.weights, str(tmp_path))
    assert other.figures["miou"] == pytest.approx(same.figures["miou"], abs=1e-9)
    assert other.per_class == pytest.approx(same.per_class)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "inference whole: each image in one pass"),
        (["--inference", "sliding"], "inference sliding: windows of 32 every 21 pixels, logits averaged"),
        (
            ["--inference", "multiscale", "--scales", "[1,1.5]", "--flip"],
            "inference multiscale: sizes x1, x1.5 and their mirror images, logits averaged",
        ),
    ],
)
def test_eval_says_how_it_measured(said, run, tmp_path, words, line):
    words = [*words, "--device", "cpu", "--out", tmp_path / "e.json"]
    status, out, _ = said("eval", "--weights", run.weights, *words)
    document = json.loads((tmp_path / "e.json").read_text())
    assert status == 0
    assert line in out
    assert "mIoU, one confusion matrix of all pixels" in out
    assert f"{100 * document['miou']:.2f} %" in out
    assert f"inference {document['inference']['mode']}" in line
    assert list(document["per_class"]) == ["background", "blue", "red"]


# -------------------------------------------------------------------------------------------------------- used


def test_predict_writes_masks_colours_overlays_and_shares(said, run, masks_folder, tmp_path):
    photos = tmp_path / "photos" / "deep"
    photos.mkdir(parents=True)
    for path in sorted((masks_folder / "val" / "images").iterdir()):
        (photos / path.name).write_bytes(path.read_bytes())
    (photos.parent / "00.jpg").write_bytes((photos / "00.png").read_bytes())
    Image.new("L", (70, 50), 120).save(photos / "grey.png")
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    status, text, err = said("predict", photos.parent, "--weights", run.weights, "--out", out)
    assert status == 0
    assert "7 files segmented" in text
    assert "broken.png" in err
    assert err.endswith("predict: 1 of 8 files could not be read\n")
    rows = list(csv.DictReader((out / "shares.csv").read_text().splitlines()))
    assert len(rows) == len({row["mask"] for row in rows}) == 7
    colours = palette(["background", "blue", "red"])
    for row in rows:
        mask, image = np.asarray(Image.open(out / "masks" / row["mask"])), Image.open(row["file"])
        assert mask.shape == image.size[::-1]
        assert sum(float(row[c]) for c in ("background", "blue", "red")) == pytest.approx(1, abs=1e-5)
        assert float(row["red"]) == pytest.approx((mask == 2).mean(), abs=1e-5)
        assert np.array_equal(np.asarray(Image.open(out / "colours" / row["mask"])), colours[mask])
        over = np.asarray(Image.open(out / "overlays" / row["mask"]))
        kept = np.asarray(image.convert("RGB"))
        assert np.array_equal(over[mask == 0], kept[mask == 0]), "background shows the image"
    document = json.loads((out / "classes.json").read_text())
    assert (document["inference"], document["image_size"]) == ({"mode": "whole"}, 32)
    listed = document["classes"]
    assert [one["name"] for one in listed] == ["background", "blue", "red"]
    assert [tuple(one["colour"]) for one in listed] == [tuple(c) for c in colours.tolist()]
    assert (out / "legend.png").exists()
    truth = np.asarray(Image.open(masks_folder / "val" / "labels" / "01.png"))
    [one] = [row for row in rows if row["file"].endswith("01.png")]
    mask = np.asarray(Image.open(out / "masks" / one["mask"]))
    assert (mask == truth)[truth != IGNORED].mean() > 0.7
    again = said("predict", photos.parent, "--weights", run.weights, "--out", out)
    assert again[0] == 2
    assert "must be a new or empty folder" in again[2]
    assert again[2].count("\n") == 1


def masks_in(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted((folder / "masks").iterdir())}


@pytest.mark.parametrize(
    ("words", "options", "line"),
    [
        (
            ["--inference", "sliding"],
            {"inference": "sliding", "crop": 32, "stride": 21},
            "inference sliding: windows of 32 every 21 pixels, logits averaged",
        ),
        (
            ["--inference", "sliding", "--crop", "16", "--stride", "9"],
            {"inference": "sliding", "crop": 16, "stride": 9},
            "inference sliding: windows of 16 every 9 pixels, logits averaged",
        ),
        (
            ["--inference", "multiscale", "--scales", "[0.5,1.5]", "--flip"],
            {"inference": "multiscale", "scales": [0.5, 1.5], "flip": True},
            "inference multiscale: sizes x0.5, x1.5 and their mirror images, logits averaged",
        ),
    ],
)
def test_predict_sends_images_through_as_asked_and_says_so(
    said, run, masks_folder, tmp_path, words, options, line
):
    """The masks it writes give the very mIoU that evaluation in the same way gives."""
    photos = masks_folder / "val" / "images"
    typed = ["predict", photos, "--weights", run.weights, "--device", "cpu", "--out", tmp_path / "typed"]
    status, text, _ = said(*typed, *words)
    assert status == 0
    assert line in text
    recorded = json.loads((tmp_path / "typed" / "classes.json").read_text())["inference"]
    assert recorded == {"mode": options["inference"]} | {k: options[k] for k in options if k != "inference"}
    predict(run.weights, [photos], out=tmp_path / "called", device="cpu", inference=options)
    predict(run.weights, [photos], out=tmp_path / "whole", device="cpu")
    masks, called, whole = (masks_in(tmp_path / name) for name in ("typed", "called", "whole"))
    assert all(np.array_equal(masks[name], called[name]) for name in called)
    assert any(not np.array_equal(masks[name], whole[name]) for name in whole)
    matrix = torch.zeros(3, 3, dtype=torch.float64)
    for name, mask in masks.items():
        truth = np.array(Image.open(masks_folder / "val" / "labels" / name))
        matrix += confusion(torch.from_numpy(mask)[None].long(), torch.from_numpy(truth)[None].long(), 3)
    measured = evaluate(run.weights, device="cpu", inference=options)
    found = ious(intersect_and_union(matrix)).nanmean()
    assert float(found) == pytest.approx(measured.figures["miou"], abs=1e-9)


def test_predict_refuses_a_wrong_way_before_it_makes_a_folder(said, run, masks_folder, tmp_path):
    photos = masks_folder / "val" / "images"
    typed = ["predict", photos, "--weights", run.weights, "--out", tmp_path / "o", "--crop", "16"]
    assert said(*typed) == (2, "", "predict: crop is an option of inference sliding, got it with whole\n")
    assert not (tmp_path / "o").exists()


def test_predict_writes_nothing_where_no_file_is_readable(said, run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    status, text, err = said(
        "predict", tmp_path / "broken.png", "--weights", run.weights, "--out", tmp_path / "o"
    )
    assert (status, text) == (2, "")
    assert err.endswith("predict: 1 of 1 files could not be read\n")
    assert not (tmp_path / "o").exists()
    taken = said("predict", tmp_path, "--weights", run.weights, "--out", tmp_path / "broken.png" / "o")
    assert (taken[0], taken[2].count("\n")) == (2, 1)
    assert "where a file stands in the way" in taken[2]


def test_predict_writes_json_and_finds_a_folder_of_its_own(said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (200, 30, 20)).save("a.png")
    for name in ("danet_test_byobnet", "danet_test_byobnet-2"):
        assert said("predict", "a.png", "--weights", run.weights, "--format", "json")[0] == 0
        document = json.loads((tmp_path / "runs/predict" / name / "shares.json").read_text())
        assert document["predictions"][0]["file"] == "a.png"


def test_options_of_another_task_are_refused_with_that_task(run, tmp_path, said):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    small = {"length": 64, "size": 24}
    other = fit(
        TrainConfig(data_options=small, epochs=1, workers=0, accelerator="cpu", out=str(tmp_path / "c")),
        quiet=True,
    )
    for words in (["--inference", "sliding"], ["--crop", "0"], ["--scales", "[1]"]):
        for typed in (["eval"], ["predict", tmp_path / "a.png"]):
            status, out, err = said(*typed, "--weights", other.weights, *words)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert f"{words[0]} is an option of task segment only" in err
    status, _, err = said("predict", tmp_path / "a.png", "--weights", run.weights, "--top", "0")
    assert (status, err) == (2, "predict: --top is an option of task classify only\n")
    for typed in (["eval"], ["predict", tmp_path / "a.png"]):
        status, _, err = said(*typed, "--weights", other.weights, "--batch_size", "0")
        assert (status, err.count("\n")) == (2, 1)
        assert "batch_size must be at least 1, got 0" in err


# ---------------------------------------------------------------------------------------------------- bad input


def trains(said, folder, out, *words):
    options = [f"--{name}={value}" for name, value in FAST.items()]
    return said(
        "train", "--task", "segment", "--data", folder, "--data_options.ignore_index", IGNORED, *options,
        "--epochs", "1", "--out", out, *words,
    )  # fmt: skip


def two(folder, write, mask, **more):
    folder.mkdir()
    (folder / "classes.txt").write_text("background\nblue\nred")
    for part in ("train", "val"):
        for name in ("a", "b", "c", "d"):
            write(folder / part, name, mask, **more)
    return folder


def test_small_grey_mixed_and_partly_ignored_images_train(said, tmp_path, write_mask_pair):
    """A crop of 32 of images from 20 pixels up, one of them ignored throughout, one grey."""
    folder = two(tmp_path / "data", write_mask_pair, np.zeros((20, 26), dtype=int))
    for part in ("train", "val"):
        write_mask_pair(folder / part, "e", np.full((44, 20), IGNORED))
        mask = np.ones((20, 60), dtype=int)
        write_mask_pair(folder / part, "f", mask, image=np.full((20, 60), 90))
    status, out, err = trains(said, folder, tmp_path / "run", "--crop_size", "32")
    assert status == 0, err
    row = next(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert all(np.isfinite(float(value)) for value in row.values())
    assert "mIoU" in out


BLANK = np.zeros((24, 30), dtype=int)


@pytest.mark.parametrize(
    ("spoil", "words", "line"),
    [
        ("ignored", [], "the masks must hold at least 1 labelled pixel for val, got none"),
        ("value", [], "mask values must be 0 to 2 (3 classes) or 9 (ignored), got [7] in"),
        ("size", [], "image and mask must have the same size, got 30x24 in"),
        ("missing", [], "every image must have a mask of the same name in"),
        ("classes", [], "mask values must be 0 to 1 (2 classes) or 9 (ignored), got [2] in"),
        ("no classes", [], "segmentation needs classes.txt or option classes, got neither in"),
        ("", ["--class_weights", "[1,2]"], "class_weights must be one a class, 3 of them"),
        ("", ["--class_weights", "[1,-2,1]"], "class_weights must be finite, at least 0 and not all 0"),
        ("", ["--scale_range", "[2,1]"], "scale_range must be two factors, 0 < smallest <= largest"),
        ("", ["--crop_size", "4"], "crop_size must be at least 8, got 4"),
        ("", ["--mixup", "0.2"], "--mixup is an option of task classify only"),
        ("", ["--model", "resnet18"], "task segment needs a network that can segment, one of"),
        ("", ["--model", "danet_resnet19"], "got 'resnet19'; did you mean resnet1"),
        ("", ["--model", "danet_vgg11"], "backbone must offer feature maps at output_stride=8, got 'vgg11'"),
        ("", ["--model_options.chanel_form", "paper"], "chanel_form"),
        ("", ["--model_options.channel_form", "book"], "form must be one of"),
    ],
)
def test_bad_input_is_one_clear_line(said, tmp_path, write_mask_pair, spoil, words, line):
    folder = two(tmp_path / "data", write_mask_pair, np.full((24, 30), 2))
    labels = folder / "val" / "labels"
    if spoil == "ignored":
        for path in labels.iterdir():
            Image.fromarray(np.full((24, 30), IGNORED, dtype=np.uint8)).save(path)
    elif spoil == "value":
        Image.fromarray(np.full((24, 30), 7, dtype=np.uint8)).save(labels / "a.png")
    elif spoil == "size":
        Image.fromarray(np.zeros((25, 30), dtype=np.uint8)).save(labels / "b.png")
    elif spoil == "missing":
        (labels / "c.png").unlink()
    elif spoil == "classes":
        (folder / "classes.txt").write_text("background\nblue")
    elif spoil == "no classes":
        (folder / "classes.txt").unlink()
    status, out, err = trains(said, folder, tmp_path / "run", *words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert line in err
    assert not (tmp_path / "run").exists()


def test_options_of_segmentation_are_refused_elsewhere(said):
    status, _, err = said("train", "--ohem")
    assert (status, err) == (2, "train: --ohem is an option of task segment only\n")
