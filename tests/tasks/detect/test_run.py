"""Detection through the house: training, evaluation, prediction, the page, and what is told on the way."""

import csv
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.data.boxes_by_hand import box, coco, image

import foveal
from foveal.cli import main
from foveal.evaluate import evaluate
from foveal.inference import predictor
from foveal.predict import predict
from foveal.tasks import TASKS
from foveal.train import TrainConfig, fit
from foveal.train.network import build_network
from foveal.train.parts import open_parts
from foveal.train.start import with_start

SMALL = {"stages": 1, "width": 16, "ffn_width": 16, "dynamic_width": 8, "heads": 2, "num_queries": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps on twelve scenes: enough to go everywhere."""
    config = TrainConfig(
        task="detect", model="sparse_rcnn_test_resnet", data_options={"length": 12}, epochs=2,
        batch_size=4, workers=0, accelerator="cpu",
        model_options=SMALL, out=str(tmp_path_factory.mktemp("detect") / "run"),
    )  # fmt: skip
    return fit(config, quiet=True)


def test_a_run_names_the_parts_of_its_loss_and_draws_answers(run):
    row = run.rows[-1]
    assert run.metric == "val_ap"
    assert {"train_class", "train_l1", "train_giou", "val_ap", "val_ap50", "val_ap_small", "val_loss"} <= set(
        row
    )
    assert row["train_loss"] < run.rows[0]["train_loss"]
    with Image.open(run.folder / "examples.png") as sheet:
        assert min(sheet.size) > 400
    info = foveal.load(run.weights).foveal_info
    assert (info["task"], info["category_ids"]) == ("detect", list(range(10)))
    assert run.config.to_dict()["lr"] == 1e-3
    assert run.config.optimizer == "adamw"


def test_the_size_of_a_batch_changes_no_figure(run):
    figures = [evaluate(run.weights, batch_size=size, device="cpu").figures for size in (1, 5, 12)]
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], abs=1e-5)


def test_images_of_different_sizes_are_padded_in_training_and_never_in_evaluation(tmp_path):
    task = TASKS["detect"]
    samples = [
        {"image": torch.ones(3, h, w), "boxes_xyxy": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
        for h, w in ((8, 12), (10, 6), (8, 12))
    ]
    (padded,) = task.collate_training(samples)
    assert padded["image"].shape == (3, 3, 10, 12)
    assert padded["sizes"].tolist() == [[8, 12], [10, 6], [8, 12]]
    assert padded["image"][0, :, 8:].abs().sum() == padded["image"][1, :, :, 6:].abs().sum() == 0
    assert [batch["image"].shape for batch in task.collate(samples)] == [(2, 3, 8, 12), (1, 3, 10, 6)]


def test_predictions_come_in_pixels_of_the_photograph_and_in_every_format(run, tmp_path):
    photo = image(tmp_path / "photo.png", size=(200, 100))
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = predict(
        run.weights, [photo, tmp_path / "broken.png"], out=tmp_path / "out",
        inference={"threshold": 0.0, "limit": 3}, device="cpu",
    )  # fmt: skip
    assert (found.count, len(found.unreadable)) == (1, 1)
    rows = list(csv.DictReader((tmp_path / "out" / "detections.csv").read_text().splitlines()))
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    lines = (tmp_path / "out" / "labels" / "photo.txt").read_text().splitlines()
    assert 0 < len(rows) == len(content["annotations"]) == len(lines) <= 3
    for row, annotation, line in zip(rows, content["annotations"], lines, strict=True):
        x1, y1, x2, y2 = (float(row[edge]) for edge in ("x1", "y1", "x2", "y2"))
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100
        assert annotation["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
        label, x, y, width, height, _ = map(float, line.split())
        assert (x * 200, y * 100) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.02)
        assert (width * 200, height * 100) == pytest.approx((x2 - x1, y2 - y1), abs=0.02)
        assert int(row["category_id"]) == annotation["category_id"] == label
    assert (tmp_path / "out" / "pictures" / "photo.png").exists()
    assert content["info"]["unreadable"][0]["file"].endswith("broken.png")


def test_a_threshold_and_suppression_leave_fewer(run, tmp_path):
    ready = predictor(run.weights, "cpu")
    picture = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    every = ready(picture, threshold=0.0)
    assert len(ready(picture, threshold=float(every.scores.median()))) < len(every)
    assert (
        len(ready(picture, threshold=0.0, nms=0.0))
        <= len({label for label, _ in every.labels}) + len(every) // 2
    )
    assert len(ready(picture, threshold=0.0, nms=0.01)) < len(every)


def test_eval_writes_a_page_and_coco_results_with_the_files_own_ids(run, tmp_path, capsys):
    root = tmp_path / "data"
    classes = [{"id": 100 + i, "name": str(i)} for i in range(10)]
    coco(root, [box(5, [2, 3, 10, 20], category=103)], categories=classes, name="instances_val.json")
    out = tmp_path / "a new folder"
    words = ["eval", "--weights", str(run.weights), "--data", str(root), "--html", str(out / "page.html"),
             "--results", str(out / "results.json"), "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "AP, mean over IoU 0.50 to 0.95" in said
    page = (out / "page.html").read_text()
    for title in ("Precision against recall", "What is taken for what", "The images with the most mistakes"):
        assert title in page
    assert "http" not in page.replace("http://www.w3.org", "")
    results = json.loads((out / "results.json").read_text())
    assert {one["image_id"] for one in results} == {1, 2}


def test_own_ids_of_classes_travel_with_the_weights(tmp_path):
    for name in ("instances_train.json", "instances_val.json"):
        coco(
            tmp_path / "data",
            [box(1, [2, 3, 20, 20]), box(2, [4, 3, 20, 20], image_id=2, category=7)],
            name=name,
        )
    config = TrainConfig(
        task="detect", model="sparse_rcnn_test_resnet", data=str(tmp_path / "data"), epochs=1,
        batch_size=2, workers=0, accelerator="cpu", image_size=32,
        model_options={**SMALL, "strides": [4, 8]}, out=str(tmp_path / "run"),
    )  # fmt: skip
    result = fit(config, quiet=True)
    assert foveal.load(result.weights).foveal_info["category_ids"] == [3, 7]


DETR_SMALL = {"encoder_layers": 1, "width": 16, "ffn_width": 16, "heads": 2, "num_queries": 6}


@pytest.mark.parametrize(
    ("model", "options"), [("sparse_rcnn_test_resnet", SMALL), ("detr_test_resnet", DETR_SMALL)]
)
def test_a_run_from_weights_keeps_all_but_the_rows_of_new_classes(model, options, tmp_path):
    common = {"task": "detect", "epochs": 1, "batch_size": 4, "workers": 0, "accelerator": "cpu"}
    first = TrainConfig(
        model=model, model_options=options, data_options={"length": 8}, out=str(tmp_path / "a"), **common
    )
    before = fit(first, quiet=True).weights
    classes = [{"id": 3, "name": "7"}, {"id": 9, "name": "ant"}]
    for name in ("instances_train.json", "instances_val.json"):
        coco(tmp_path / "data", [box(1, [2, 3, 20, 20]), box(2, [4, 3, 20, 20], category=9)], categories=classes,
             name=name)  # fmt: skip
    config = with_start(
        TrainConfig(from_weights=str(before), data=str(tmp_path / "data"), out=str(tmp_path / "b"), **common)
    )
    assert (config.model, config.lr) == (model, 1e-4)
    net, old = build_network(config, ["7", "ant"]).state_dict(), load_file(before)
    assert {
        name for name in net if net[name].shape == old[name].shape and not net[name].equal(old[name])
    } == set()
    layers = [name for name in net if net[name].shape != old[name].shape]
    assert layers
    for name in layers:
        assert net[name][0].equal(old[name][7])
    assert foveal.load(fit(config, quiet=True).weights).foveal_info["category_ids"] == [3, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 2.5e-3}, "lr must be 1e-06 to 0.002 for sparse_rcnn_test_resnet"),
        (
            {"lr": 2.5e-3, "recipe": "paper", "model": "sparse_rcnn_resnet18"},
            "lr must be 1e-06 to 0.00025 for sparse_rcnn_resnet18",
        ),
        ({"optimizer": "sgd", "lr": 0.1}, "lr must be 0.0001 to 0.05"),
        ({"recipe": "big"}, "recipe must be auto, small or paper"),
        ({"overfit": -1}, "overfit must be at least 0"),
        ({"crop_range": [0.5, 1.5]}, "crop_range must be two factors"),
    ],
)
def test_options_out_of_range_are_refused_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict({"task": "detect", **options})


def test_recipes_follow_what_is_at_hand():
    small = TrainConfig(task="detect", model="sparse_rcnn_test_resnet")
    paper = TrainConfig(task="detect", model="detr_resnet50", pretrained=True)
    assert small.model_options["zero_deltas"] is True
    assert (paper.lr, paper.clip_norm, paper.model_options) == (1e-4, 0.1, {})
    assert TASKS["detect"].backbone_lr(paper) == 0.1
    own = TrainConfig(task="detect", epochs=3, model_options={"num_queries": 5})
    assert (own.epochs, own.model_options["num_queries"]) == (3, 5)
    assert "roi_reference" not in own.model_options, (
        "the paper's: boxes of few pixels are read from the finest map"
    )
    assert TrainConfig(task="detect", model="detr_test_resnet").model_options["queries"] == "selected"
    assert TrainConfig(task="detect", task_options={"overfit": 4}).epochs == 150


def test_a_network_that_cannot_detect_is_refused():
    with pytest.raises(ValueError, match="needs a network that can detect"):
        TASKS["detect"].build("resnet18", 3)


def test_overfit_trains_and_evaluates_on_the_same_images(tmp_path):
    config = TrainConfig(
        task="detect", data_options={"length": 12}, epochs=1, batch_size=4, workers=0, accelerator="cpu",
        task_options={"overfit": 3}, model="sparse_rcnn_test_resnet", model_options=SMALL, out=str(tmp_path / "run"),
    )  # fmt: skip
    parts = open_parts(config)
    assert parts["train"] is parts["val"]
    assert len(parts["train"]) == 3
    assert fit(config, quiet=True).rows[0]["step"] == 1


def test_a_box_without_an_area_is_refused_with_its_file_and_not_taken_for_a_network_that_diverged(run):
    task = TASKS["detect"]
    sample = {
        "image": torch.zeros(3, 8, 8), "boxes_xyxy": torch.tensor([[2.0, 2, 2, 6]]), "labels": torch.tensor([0]),
        "file": "photo.jpg",
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"boxes must be finite and have an area, got 2, 2, 2, 6 .* in photo.jpg"
    ):
        task.losses(None, task.collate_training([sample])[0], None, None, None)
