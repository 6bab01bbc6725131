"""``train``, ``eval`` and ``predict`` with networks that classify; tasks/segment/test_run.py has those that segment."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveal.cli import commands, main

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


def test_train_ends_with_a_summary_on_the_standard_output(said, tmp_path):
    folder = tmp_path / "a"
    status, out, err = said("train", *SMALL, "--epochs", "1", "--insert", "se(reduction=4)", "--out", folder)
    assert status == 0
    assert f"foveal eval --weights {folder / 'weights' / 'best.safetensors'}" in out
    assert out.count("bn2.se") == 3
    assert "epoch 1/1" in err
    assert "parameters, at 24 pixels, on cpu" in err
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


def test_a_table_with_a_name_of_another_encoding_is_printed(monkeypatch):
    """Terminals that take UTF-8 alone get the bytes escaped, where Python would end in a traceback."""

    def list_names(pattern: str = "*") -> None:
        """Print a table.

        Args:
            pattern: Not used.
        """
        commands._print("class caf\udce9")

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8", errors="strict"))
    monkeypatch.setattr(commands, "list_names", list_names)
    assert main(["list"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"class caf\\udce9\n"


def test_every_command_may_print_what_the_terminal_cannot_write(monkeypatch):
    def list_names(pattern: str = "*") -> None:
        """Print odd names.

        Args:
            pattern: Not used.
        """
        print("caf\udce9 \u4e2d")

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    monkeypatch.setattr(commands, "list_names", list_names)
    assert main(["list"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"caf\\udce9 \\u4e2d\n"


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


def test_predict_takes_a_pattern_that_no_shell_has_replaced(said, run, tmp_path):
    for name in ("a1.png", "a2.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    weights = run / "weights/last.safetensors"
    _, out, _ = said("predict", tmp_path / "a*.png", "--weights", weights)
    assert [Path(row["file"]).name for row in csv.DictReader(out.splitlines())] == ["a1.png", "a2.png"]
    status, _, err = said("predict", tmp_path / "c*.png", "--weights", weights)
    assert (status, err) == (2, f"predict: a path must exist, got {tmp_path / 'c*.png'}\n")


def test_predict_writes_json_to_a_file(said, run, tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    where = tmp_path / "labels.json"
    words = ["--format", "json", "--out", where, "--weights", run / "weights/best.safetensors"]
    assert said("predict", tmp_path / "a.png", *words) == (0, f"1 files labelled: {where}\n", "")
    [one] = json.loads(where.read_text())["predictions"]
    assert sum(one["probabilities"]) <= 1 + 1e-6


def test_predict_with_nothing_readable_fails(said, run, tmp_path):
    (tmp_path / "b.png").write_bytes(b"no image")
    assert said("predict", tmp_path, "--weights", run / "weights/best.safetensors")[0] == 2


def test_a_folder_that_cannot_be_written_is_one_line(said, tmp_path, run):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    words = ["predict", tmp_path / "a.png", "--weights", run / "weights/best.safetensors"]
    out = tmp_path / "a.png" / "labels.csv"
    status, _, err = said(*words, "--out", out)
    assert status == 2
    assert err == f"predict: out must lie in a folder, got {out}, where a file stands in the way\n"


def test_what_is_warned_of_is_one_line_once(said, tmp_path, monkeypatch):
    import warnings

    import numpy as np
    from PIL import Image

    for kind in "ab":
        (tmp_path / "xrays" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 1000 * i, np.uint16)).save(tmp_path / "xrays" / kind / f"{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, _, error = said("check", tmp_path / "xrays", "--out", tmp_path / "found")
    lines = [line for line in error.splitlines() if "sixteenth" in line]
    assert len(lines) == 1
    assert lines[0].startswith("check: a 16-bit image uses at most a sixteenth of its range")
    assert "decode.py" not in error


def test_eval_writes_no_json_into_a_page(said, tmp_path):
    status, _, error = said(
        "eval", "--weights", tmp_path / "none.safetensors", "--out", tmp_path / "found.html"
    )
    assert (status, error.count("\n")) == (2, 1)
    assert "option html writes a page" in error
