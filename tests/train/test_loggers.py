"""Figures for programs that watch runs: the rows of metrics.csv, once, also after a run was resumed."""

import csv

import pytest

from foveal.errors import FovealError
from foveal.train import TrainConfig, fit, loggers

SMALL = {
    "data_options": {"length": 96, "size": 24},
    "batch_size": 32,
    "epochs": 2,
    "workers": 0,
    "accelerator": "cpu",
}


def events(folder):
    """name -> {step: value} over all event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {name: {one.step: one.value for one in found.Scalars(name)} for name in found.Tags()["scalars"]}


def test_tensorboard_has_the_rows_of_metrics_csv(tmp_path):
    fit(TrainConfig(**SMALL, out=str(tmp_path / "run"), logger="tensorboard"), quiet=True)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    found = events(tmp_path / "run")
    assert {"train/loss", "val/loss", "val/accuracy", "lr", "seconds"} <= set(found)
    for row in rows:
        assert found["val/accuracy"][int(row["step"])] == pytest.approx(float(row["val_accuracy"]), rel=1e-5)
    assert len(found["val/accuracy"]) == len(rows) == 2
    # a run that is opened again logs the rows that are done, at the same steps
    fit(resume=str(tmp_path / "run"), quiet=True)
    assert events(tmp_path / "run")["val/accuracy"] == found["val/accuracy"]


def test_wandb_has_the_rows_of_metrics_csv(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(TrainConfig(**SMALL | {"epochs": 1}, out=str(tmp_path / "run"), logger="wandb"), quiet=True)
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines())
    (kept,) = (tmp_path / "run" / "wandb").rglob("*.wandb")
    # its records hold names and values as text
    record = kept.read_bytes()
    for name in ("train/loss", "val/accuracy"):
        assert name.encode() in record
        assert row[name.replace("/", "_")][:6].encode() in record


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.EXTRAS, "wandb", "no_such_package_here")
    with pytest.raises(FovealError, match=r'logger wandb needs .* pip install "foveal\[wandb\]"'):
        fit(TrainConfig(**SMALL, out=str(tmp_path / "run"), logger="wandb"), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(FovealError, match="logger must be one of csv, tensorboard, wandb, got mlflow"):
        TrainConfig(logger="mlflow")  # pyright: ignore[reportArgumentType]


def test_a_logger_that_does_not_begin_is_one_line(tmp_path, monkeypatch):
    """Nobody is logged in, or the server does not answer."""
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(FovealError, match=r"must be able to begin, got No API key.*WANDB_MODE=offline"):
        loggers.open_logger("wandb", tmp_path, {}, [])
