import json

import pytest
import torch
from PIL import Image

import foveal
from foveal.train import TrainConfig, evaluate, fit, predict
from foveal.train.inference import chosen_device, image_files
from foveal.train.report import evaluation_table, predictions_text, summary

COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 30, 20)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Plain coloured images: what a network can learn in seconds."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 16), ("val", 6)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(number):
                noise = torch.randint(-15, 16, (3,), generator=generator).tolist()
                image = Image.new("RGB", (30, 26), tuple(c + n for c, n in zip(colour, noise, strict=True)))
                image.save(folder / part / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    options = TrainConfig(
        data=str(data),
        epochs=6,
        batch_size=12,
        lr=0.05,
        image_size=24,
        insert=["se(reduction=4)"],
        workers=0,
        accelerator="cpu",
        out=str(tmp_path_factory.mktemp("runs") / "colours"),
    )
    return fit(options, quiet=True)


def test_evaluation_repeats_what_training_measured(result, data):
    found = evaluate(result.weights, batch_size=5, device="cpu")
    assert found.accuracy == result.best["val_accuracy"]
    assert found.loss == pytest.approx(result.best["val_loss"], rel=1e-5)
    assert (found.images, found.data, found.split) == (18, str(data), "val")
    assert found.interval[0] <= found.accuracy <= found.interval[1] + 1e-9
    assert set(found.per_class) == set(COLOURS)


def test_classes_are_matched_by_name_and_not_by_number(result, tmp_path):
    for name in ("red", "green"):  # in the weights' order these are 2 and 1
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (30, 26), COLOURS[name]).save(tmp_path / "val" / name / f"{i}.png")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    assert evaluate(result.weights, str(tmp_path), device="cpu").accuracy == 1.0


def test_a_class_the_network_does_not_know_is_refused_by_name(result, tmp_path):
    for part in ("train", "val"):
        for name in ("red", "violet"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (30, 26)).save(tmp_path / part / name / "a.png")
    with pytest.raises(ValueError, match=r"among the 3 of the weights, got violet in"):
        evaluate(result.weights, str(tmp_path))


def test_files_and_folders_get_the_right_labels_in_order(result, data):
    first = data / "val" / "red" / "03.png"
    found, unreadable = predict(result.weights, [first, data / "val"], top=2, batch_size=4, device="cpu")
    assert unreadable == {}
    assert found[0].file == str(first)
    assert len(found) == 18, "a file given twice is labelled once"
    for one in found:
        assert one.labels[0] in one.file
        assert len(one.labels) == len(one.probabilities) == 2
        assert 1 >= one.probabilities[0] >= one.probabilities[1] >= 0


def test_probabilities_do_not_depend_on_the_batch(result, data):
    alone = predict(result.weights, [data / "val"], batch_size=1, device="cpu")[0]
    together = predict(result.weights, [data / "val"], batch_size=18, device="cpu")[0]
    for a, b in zip(alone, together, strict=True):
        assert a.labels == b.labels
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_unreadable_files_are_named_and_the_others_labelled(result, data, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (40, 20), COLOURS["red"]).save(tmp_path / "good.png")
    found, unreadable = predict(result.weights, [tmp_path], device="cpu")
    assert [one.labels[0] for one in found] == ["red"]
    assert sorted(unreadable) == [str(tmp_path / "broken.jpg"), str(tmp_path / "empty.png")]
    assert all(name in reason for name, reason in unreadable.items())
    document = json.loads(predictions_text(found, unreadable, "json"))
    assert [one["file"] for one in document["unreadable"]] == list(unreadable)
    assert document["predictions"][0]["labels"][0] == "red"


def test_folders_are_searched_for_images_alone(data, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="must hold images"):
        image_files([tmp_path])
    with pytest.raises(FileNotFoundError, match="must exist"):
        image_files([tmp_path / "nothing"])
    assert len(image_files([data / "val" / "red", data / "val"])) == 18


def test_files_that_are_no_weights_of_a_run_are_refused(tmp_path, result):
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    foveal.save(net, tmp_path / "plain.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="must hold task, classes"):
        predict(tmp_path / "plain.safetensors", [tmp_path])
    torch.save({}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="pickle"):
        evaluate(tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        predict(result.weights, [tmp_path], top=0)


def test_an_unknown_device_is_refused():
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=f"must be one this machine has, got {name}"):
            chosen_device(name)


def test_the_summary_says_where_things_are_and_what_comes_next(result):
    from rich.console import Console

    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary(result), evaluation_table(evaluate(result.weights, device="cpu")))
    text = console.export_text()
    for part in (
        f"foveal eval --weights {result.weights}",
        "curves.png",
        "metrics.csv",
        "layer3.0.bn2.se",
        "accuracy",
    ):
        assert part in text
