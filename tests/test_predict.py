"""Answers for image files: every file is answered or named, in order, and nothing is written over."""

import json
import os

import pytest
import torch
from PIL import Image

import foveal
from foveal.evaluate import evaluate
from foveal.inference import image_files, predictor
from foveal.predict import predict
from foveal.tasks.classify.prediction import predictions_text

COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 30, 20)}


def labelled(weights, paths, top=5, batch_size=32):
    """Predictions for files, and the unreadable ones."""
    ready, unreadable = predictor(weights, "cpu"), {}
    options = ready.inference_options({"top": top})
    found = [one for one, _ in ready.predict_files(image_files(paths), options, unreadable, batch_size)]
    return found, unreadable


def test_files_and_folders_get_the_right_labels_in_order(coloured_run, coloured_folder):
    first = coloured_folder / "val" / "red" / "03.png"
    found, unreadable = labelled(coloured_run.weights, [first, coloured_folder / "val"], top=2, batch_size=4)
    assert unreadable == {}
    assert found[0].file == str(first)
    assert len(found) == 18, "a file given twice is labelled once"
    for one in found:
        assert one.label in one.file
        (_, p), (_, q) = one.labels
        assert 1 >= p >= q >= 0


def test_probabilities_do_not_depend_on_the_batch(coloured_run, coloured_folder):
    alone, together = (
        labelled(coloured_run.weights, [coloured_folder / "val"], batch_size=n)[0] for n in (1, 18)
    )
    for a, b in zip(alone, together, strict=True):
        assert [name for name, _ in a.labels] == [name for name, _ in b.labels]
        assert [p for _, p in a.labels] == pytest.approx([p for _, p in b.labels], abs=1e-6)


def test_unreadable_files_are_named_and_the_others_labelled(coloured_run, coloured_folder, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (40, 20), COLOURS["red"]).save(tmp_path / "good.png")
    found, unreadable = labelled(coloured_run.weights, [tmp_path])
    assert [one.label for one in found] == ["red"]
    assert sorted(unreadable) == [str(tmp_path / "broken.jpg"), str(tmp_path / "empty.png")]
    assert all(name in reason for name, reason in unreadable.items())
    document = json.loads(predictions_text(found, unreadable, "json"))
    assert [one["file"] for one in document["unreadable"]] == list(unreadable)
    assert document["predictions"][0]["labels"][0] == "red"
    done = predict(coloured_run.weights, [tmp_path], device="cpu")
    assert (done.count, done.unreadable) == (1, unreadable)


def test_folders_are_searched_for_images_alone(coloured_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="must hold images"):
        image_files([tmp_path])
    with pytest.raises(FileNotFoundError, match="must exist"):
        image_files([tmp_path / "nothing"])
    assert len(image_files([coloured_folder / "val" / "red", coloured_folder / "val"])) == 18


def test_a_text_is_never_written_over(coloured_run, coloured_folder, tmp_path):
    where = tmp_path / "labels.csv"
    predict(coloured_run.weights, [coloured_folder / "val"], out=where, device="cpu")
    kept = where.read_text()
    assert len(kept.splitlines()) == 19
    with pytest.raises(foveal.FovealError, match="would be overwritten"):
        predict(coloured_run.weights, [coloured_folder / "val"], out=where, device="cpu")
    assert where.read_text() == kept


def test_names_in_any_encoding_reach_the_file(coloured_run, tmp_path):
    """A file name in Latin-1 is no UTF-8: its bytes are escaped, and nothing is lost."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (24, 24), COLOURS["red"]).save(folder / "a.png")
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    for name in ("labels.csv", "labels.json"):
        done = predict(
            coloured_run.weights, [folder], out=tmp_path / name, format=name[-4:].strip("."), device="cpu"
        )
        assert done.count == 1
        assert "caf" in (tmp_path / name).read_text(encoding="utf-8")


def test_files_that_are_no_weights_of_a_run_are_refused(tmp_path, coloured_run):
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    foveal.save(net, tmp_path / "plain.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(foveal.FovealError, match="must come with classes, image_size"):
        predict(tmp_path / "plain.safetensors", [tmp_path / "a.png"])
    torch.save({}, tmp_path / "pickle.pth")
    with pytest.raises(foveal.FovealError, match="pickle"):
        evaluate(tmp_path / "pickle.pth")
    for options, rule in (
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"scales": [1.0]}, "are top, flip, got scales"),
    ):
        with pytest.raises(foveal.FovealError, match=rule):
            predict(coloured_run.weights, [tmp_path / "a.png"], inference=options)
    with pytest.raises(FileNotFoundError, match=r"weights must be a file, a repository .* or a model"):
        predict("no_such_net", [tmp_path / "a.png"])
