import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from foveal.cli import COMMANDS, Command, main, overview

SMALL = ["--data-options.length", "64", "--data_options.size=24", "--workers", "0", "--accelerator", "cpu"]


# ---------------------------------------------------------------------------------------------------------- help


HELP = """
import contextlib, io, json, sys
from foveal.cli import main

for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        main(words)
    print(json.dumps([words, shown.getvalue(), "torch" in sys.modules]))
"""


def test_help_needs_no_torch():
    asked = [[], ["--help"], *([command, "--help"] for command in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(asked)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, _, _ in answers] == asked
    for words, shown, torch_is_there in answers:
        assert "usage: foveal" in shown, words
        assert not torch_is_there, words


def test_every_command_is_in_the_overview():
    assert all(f"\n  {command} " in overview() for command in COMMANDS)


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
        (["trian"], "foveal: the command must be one of"),
        (["train", "--epoch", "3"], "train: unknown option --epoch; did you mean --epochs?"),
        (["train", "--epochs"], "train: --epochs needs a value"),
        (["train", "--epochs", "many"], "train: --epochs must be int, got many"),
        (["train", "--image-size", "big"], "train: --image_size must be int, got big"),
        (["train", "--optimizer", "lion"], "train: --optimizer must be one of ['sgd', 'adamw'], got lion"),
        (["train", "--epochs", "0"], "train: epochs must be at least 1, got 0"),
        (
            ["look", "photo.jpg", "--model", "resnet50"],
            "look: unknown option --model; --weights takes the name of a model with published weights, too",
        ),
        (
            ["serve", "--model", "resnet50"],
            "serve: unknown option --model; --weights takes the name of a model with published weights, too",
        ),
        (
            ["train", "--weights", "w.safetensors"],
            "train: unknown option --weights; --from begins with the weights of a file",
        ),
        (["train", "photo.jpg"], "train: unknown option photo.jpg; options are written --name value"),
        (["train", "/"], "train: unknown option /; did you mean --data /?"),
        (
            ["plan", "--model", "resnet18"],
            "plan: unknown option --model; its value stands alone: foveal plan MODEL",
        ),
        (["train", "--config", "{typo}"], "train: unknown option --modle; did you mean --model?"),
        (["train", "--config", "{broken}"], "broken.yaml: while parsing a flow sequence, line 1, column 8"),
        (["train", "--config", "nowhere.yaml"], "does not exist"),
        (["train", "--model", "resnet5"], "train: name must be one of"),
        (["train", "--insert", "sse"], "train: block must be one of"),
        (["train", "--insert", "se(reduktion=4)"], "'reduktion'"),
        (["train", "--insert", "se@nowhere.*"], "nowhere"),
        (["train", "--insert", "se(reduction=64)"], "reduction must leave at least 1 hidden channel"),
        (["train", "--insert", "se(("], "an insertion must be written"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--data-options.length", "none"], "length"),
        (["train", "--resume", "nowhere"], "train: resume must be the folder of a run"),
        (["eval"], "eval: --weights must be given"),
        (["eval", "--weights", "nowhere"], "nowhere"),
        (["predict", "--weights", "nowhere"], "predict: weights must be a file"),
        (["predict", "a.jpg", "--weights", "nowhere"], "predict: a path must exist, got a.jpg"),
        (["list", "*xyzzy*"], "list: pattern must match"),
        (["plan", "resnet18"], "plan: --insert must be given"),
        (["plan", "resnet18", "--insert", "sse"], "plan: block must be one of"),
        (["bench", "everything"], "bench: what must be one of ['ops', 'export'], got everything"),
        (["compare", "--seeds", "many"], "compare: --seeds must be int or one of ['auto'], got many"),
        (
            ["compare", "--control", "no way"],
            "compare: --control must be bool or one of ['time'], got no way",
        ),
        (["compare", "--seeds", "0"], "compare: seeds must be at least 1, got 0"),
        (["look"], "look: source must be given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(said, words, line, tmp_path, tmp_path_factory, monkeypatch):
    files = {"typo": "modle: resnet18\n", "broken": "model: [resnet18\nlr: {\n"}
    places = {name: tmp_path_factory.mktemp("config") / f"{name}.yaml" for name in files}
    for name, path in places.items():
        path.write_text(files[name])
    monkeypatch.chdir(tmp_path)
    status, out, err = said(*(places.get(word.strip("{}"), word) for word in words))
    assert (status, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_a_bug_shows_its_traceback(monkeypatch):
    """A ValueError of ours is no mistake of the person's."""
    monkeypatch.setitem(COMMANDS, "bug", Command(f"{__name__}:bug"))
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(bug=bug))
    with pytest.raises(ValueError, match="not JSON compliant"):
        main(["bug"])


def bug():
    """Fail as code does that is wrong."""
    raise ValueError("Out of range float values are not JSON compliant")


# --------------------------------------------------------------------------------------------------- what it does


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
        [sys.executable, "-m", "foveal", *words],
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


@pytest.mark.skipif(sys.platform == "win32", reason="no pipe there breaks so")
def test_a_reader_that_has_seen_enough_of_the_help_ends_it_without_a_word():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "foveal", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
