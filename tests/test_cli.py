import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from foveal.cli import VERBS, main, overview

SMALL = ["--data-options.length", "64", "--data_options.size=24", "--workers", "0", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    words = [
        "--epochs",
        "1",
        "--insert",
        "se(reduction=4)@residual:3",
        "--insert",
        "cbam(reduction=4)@block:3",
    ]
    assert main(["train", *SMALL, *words, "--out", str(folder)]) == 0
    return folder


# ---------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_needs_no_torch(words):
    code = (
        "import sys; from foveal.cli import main; status = main(sys.argv[1:]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "usage: foveal" in done.stdout
    assert done.stderr == ""


def test_help_appears_within_a_second():
    def seconds():
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "foveal.cli", "train", "--help"], capture_output=True, check=True
        )
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(3)) < 1


def test_every_verb_is_in_the_overview():
    assert all(f"\n  {verb} " in overview() for verb in VERBS)


def test_the_version_is_that_of_the_package(said):
    import foveal

    assert said("--version") == (0, f"foveal {foveal.__version__}\n", "")


# ------------------------------------------------------------------------------------------------------- options


def test_options_can_be_written_as_people_write_them(said, tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 3\nlr: 0.5\ninsert: [se]\n")
    words = [
        "--batch-size",
        "7",
        "--pretrained",
        "--insert",
        "cbam@residual:3,4",
        "--insert=se(reduction=8)@block",
    ]
    status, out, err = said("train", *words, "--epochs=5", "--config", tmp_path / "c.yaml", "--print_config")
    assert (status, err) == (0, "")
    import yaml

    found = yaml.safe_load(out)
    assert found["batch_size"] == 7
    assert found["pretrained"] is True
    assert found["insert"] == ["cbam@residual:3,4", "se(reduction=8)@block"], (
        "the command line replaces the file"
    )
    assert (found["epochs"], found["lr"]) == (5, 0.5), "the file's place on the line does not matter"


def test_a_printed_config_is_a_config(said, tmp_path):
    _, out, _ = said("train", "--lr", "0.3", "--print_config")
    (tmp_path / "c.yaml").write_text(out)
    assert said("train", "--config", tmp_path / "c.yaml", "--print_config")[1] == out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "foveal: verb must be one of"),
        (["train", "--epoch", "3"], "train: unknown option --epoch; did you mean --epochs?"),
        (["train", "--epochs"], "train: --epochs needs a value"),
        (["train", "--epochs", "many"], "train: --epochs must be int, got many"),
        (["train", "--image-size", "big"], "train: --image_size must be int, got big"),
        (["train", "--optimizer", "lion"], "train: --optimizer must be one of ['sgd', 'adamw'], got lion"),
        (["train", "--epochs", "0"], "train: epochs must be at least 1, got 0"),
        (["train", "photo.jpg"], "train: unknown option photo.jpg"),
        (["train", "--config", "nowhere.yaml"], "does not exist"),
        (["train", "--model", "resnet5"], "train: create_model: name must be one of"),
        (["train", "--insert", "sse"], "train: insert: block must be one of"),
        (["train", "--insert", "se(reduktion=4)"], "'reduktion'"),
        (["train", "--insert", "se@nowhere.*"], "nowhere"),
        (["train", "--insert", "se(reduction=64)"], "reduction must leave at least 1 hidden channel"),
        (["train", "--insert", "se(("], "parse_insertion"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--data-options.length", "none"], "length"),
        (["train", "--resume", "nowhere"], "train: resume must be the folder of a run"),
        (["eval"], "eval: "),
        (["eval", "--weights", "nowhere"], "nowhere"),
        (["predict", "--weights", "nowhere"], "predict: the following arguments are required: paths"),
        (["list", "*xyzzy*"], "list: pattern must match"),
        (["plan", "resnet18"], "plan: the following arguments are required: insert"),
        (["plan", "resnet18", "--insert", "sse"], "plan: block must be one of"),
        (["bench", "everything"], "bench: what must be one of ['ops'], got everything"),
        (["compare", "--seeds", "0"], "compare: "),
        (["look"], "look: the following arguments are required: source"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(said, words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = said(*words)
    assert (status, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- what it does


def test_train_ends_with_a_summary_on_the_standard_output(said, tmp_path):
    folder = tmp_path / "a"
    status, out, err = said("train", *SMALL, "--epochs", "1", "--insert", "se(reduction=4)", "--out", folder)
    assert status == 0
    assert f"foveal eval --weights {folder / 'weights' / 'best.safetensors'}" in out
    assert out.count("bn2.se") == 3
    assert "epoch 1/1" in err
    assert "Warning" not in err + out
    assert json.loads((folder / "environment.json").read_text())["seed"] == 0


def test_eval_prints_figures_and_writes_them(said, run, tmp_path):
    status, out, _ = said(
        "eval", "--weights", run / "weights/best.safetensors", "--out", tmp_path / "figures.json"
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert status == 0
    assert f"{100 * figures['accuracy']:.2f} %" in out
    assert figures["images"] == 64


def test_predict_writes_csv_to_a_pipe_and_complaints_beside_it(said, run, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    status, out, err = said("predict", tmp_path, "--weights", run / "weights/last.safetensors", "--top", "3")
    rows = list(csv.DictReader(out.splitlines()))
    assert status == 0
    assert [row["file"] for row in rows] == [str(tmp_path / "a.png")]
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"]) >= float(rows[0]["probability_3"])
    assert "b.png" in err
    assert err.endswith("predict: 1 of 2 files could not be read\n")


def test_predict_writes_json_to_a_file(said, run, tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    where = tmp_path / "labels.json"
    words = ["--format", "json", "--out", where, "--weights", run / "weights/best.safetensors"]
    assert said("predict", tmp_path / "a.png", *words) == (0, "", "")
    [one] = json.loads(where.read_text())["predictions"]
    assert sum(one["probabilities"]) <= 1 + 1e-6


def test_predict_with_nothing_readable_fails(said, run, tmp_path):
    (tmp_path / "b.png").write_bytes(b"no image")
    assert said("predict", tmp_path, "--weights", run / "weights/best.safetensors")[0] == 2


def test_list_prints_names(said):
    status, out, _ = said("list", "cifar_resnet*")
    assert status == 0
    assert "cifar_resnet8" in out.split()


def test_plan_shows_every_site_and_the_total(said):
    status, out, _ = said(
        "plan", "cifar_resnet8", "--insert", "se(reduction=4)@residual:2,3", "--image-size", "32"
    )
    assert status == 0
    assert "layer2.0.bn2" in out
    assert "layer3.0.bn2" in out


# ------------------------------------------------------------------------------------------------------ bad files


def test_a_foreign_pickle_is_refused_unread(said, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save(Trap(), tmp_path / "weights.pth")
    status, _, err = said("eval", "--weights", tmp_path / "weights.pth")
    assert status == 2
    assert "pickle" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


def test_a_file_in_place_of_the_run_folder_is_one_line(said, tmp_path):
    (tmp_path / "taken").write_text("")
    status, _, err = said("train", *SMALL, "--out", tmp_path / "taken" / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert "a file stands in the way" in err


def test_a_folder_that_cannot_be_written_is_one_line(said, tmp_path, run):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    words = ["predict", tmp_path / "a.png", "--weights", run / "weights/best.safetensors"]
    status, _, err = said(*words, "--out", tmp_path / "a.png" / "labels.csv")
    assert (status, err) == (2, f"predict: Not a directory: {tmp_path / 'a.png' / 'labels.csv'}\n")


def test_an_empty_class_folder_and_corrupt_images_are_one_line_each(said, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
    for part in ("train", "val"):
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / part / "cat" / "a.png")
    words = ["train", "--data", tmp_path / "data", "--out", tmp_path / "run", "--accelerator", "cpu"]
    status, _, err = said(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert "dog" in err
    for part in ("train", "val"):
        (tmp_path / "data" / part / "dog" / "b.png").write_bytes(b"no image")
    status, _, err = said(*words)
    assert status == 2
    assert "b.png" in err
    assert "Traceback" not in err


# --------------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_in_130_with_the_line_that_continues(tmp_path):
    folder = tmp_path / "a"
    words = ["train", *SMALL, "--epochs", "1000", "--checkpoint-steps", "1", "--out", str(folder)]
    child = subprocess.Popen(
        [sys.executable, "-m", "foveal.cli", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (folder / "checkpoint.ckpt").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert f"foveal train --resume {folder}" in err.splitlines()[-1]
    assert out == ""
    assert "Traceback" not in err
    assert not list(folder.rglob("*.part"))
