"""The whole comparison on a few tiny images: what it leaves, that it continues, and what it says when it cannot."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from tests.engine import InThisProcess

import foveal
from foveal.compare import compare
from foveal.compare.engines.local import LocalEngine
from foveal.compare.plan import plan_comparison
from foveal.compare.runner import finished_result, result_path
from foveal.errors import FovealError
from foveal.folders import locked
from foveal.insertion import inserted
from foveal.train.run import Interrupted

TINY = {
    "insert": ["cbam(reduction=4)@residual:3", "se(reduction=4)@residual:3"],
    "seeds": 2,
    "epochs": 1,
    "data_options": {"length": 64, "size": 16, "digit_size": (8, 8)},
    "accelerator": "cpu",
    "self_check": False,
    "quiet": True,
}


TRAINING = {"data_options": TINY["data_options"], "epochs": 1, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return compare(out=str(tmp_path_factory.mktemp("compare")), jobs=2, **TINY)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_kept_weights_of_every_variant_open_by_themselves(outcome):
    """The control's too, whatever block it was made after."""
    kept = sorted((outcome.folder / "runs").glob("*.safetensors"))
    plans = {path.name.split("-seed")[0]: inserted(foveal.load(path)) for path in kept}
    assert {name: len(plan) for name, plan in plans.items()} == {"none": 0, "control": 1, "cbam": 1, "se": 1}
    assert plans["control"][0].block == "PlainConvolution"
    assert list(plans["control"][0].options) == ["hidden"]


def test_every_variant_ran_with_every_seed(outcome):
    assert [row.name for row in outcome.rows] == ["none", "control", "cbam", "se"]
    results = read(outcome.folder, "results.json")
    assert sorted((run["variant"], run["seed"]) for run in results["runs"]) == sorted(
        (name, seed) for name in ("none", "control", "cbam", "se") for seed in (0, 1)
    )
    assert all(0 <= run["metric"] <= 1 for run in results["runs"])
    assert results["conclusion"] == outcome.conclusion
    assert outcome.conclusion.startswith(
        "Too few seeds to say whether attention helps on scenes: 2 where at least 6"
    )


def test_tables_have_a_row_a_variant_and_a_row_a_run(outcome):
    assert len((outcome.folder / "results.csv").read_text().splitlines()) == 1 + 4
    assert len((outcome.folder / "runs.csv").read_text().splitlines()) == 1 + 8


def test_only_blocks_with_a_map_have_a_share(outcome):
    rows = {row.name: row for row in outcome.rows}
    assert rows["cbam"].share is not None
    assert 0 < rows["cbam"].share.mean < 1
    assert 0.02 < rows["cbam"].chance < 0.5
    assert rows["se"].share is None
    assert rows["none"].share is None


def test_costs_are_measured(outcome):
    rows = {row.name: row.costs for row in outcome.rows}
    assert rows["control"].parameters > rows["cbam"].parameters > rows["none"].parameters
    assert rows["control"].macs > rows["none"].macs > 1e6
    assert all(costs.time_ms > 0 and costs.peak_bytes > 1e5 for costs in rows.values())


def test_the_report_is_one_file_that_asks_for_nothing(outcome):
    page = outcome.report.read_text(encoding="utf-8")
    assert outcome.conclusion.split(". ")[0] in page
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    assert loaded
    assert all(first.startswith("data:") for first, _ in loaded)
    assert "<script" not in page
    assert not re.search(r"https?://", page)
    assert "$" not in re.sub(r"data:[^\"]*", "", page)


def test_a_stopped_comparison_continues_to_the_same_result(outcome, tmp_path, in_this_process, monkeypatch):
    """And to that of two worker processes."""
    do = InThisProcess.run

    def stop_after_three(self, jobs, images):
        done = 0
        for event in do(self, jobs, images):
            yield event
            done += event.result is not None
            if done == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(InThisProcess, "run", stop_after_three)
    with pytest.raises(
        Interrupted, match=r"3 of 8 runs are finished and kept in .*the same command continues"
    ):
        compare(out=str(tmp_path), jobs=1, **TINY)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.json")}
    assert len(kept) == 3
    assert not list(tmp_path.glob(".images-*"))

    monkeypatch.setattr(InThisProcess, "run", do)
    (tmp_path / ".images-killed").mkdir()
    again = compare(out=str(tmp_path), jobs=1, **TINY)
    assert not list(tmp_path.glob(".images-*"))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    accuracies = [
        {(run["variant"], run["seed"]): run["metric"] for run in read(folder, "results.json")["runs"]}
        for folder in (again.folder, outcome.folder)
    ]
    assert accuracies[0] == accuracies[1]


def test_a_finished_comparison_trains_nothing_again(outcome, monkeypatch):
    monkeypatch.setattr(LocalEngine, "__init__", None)
    assert compare(out=str(outcome.folder), **TINY).conclusion == outcome.conclusion


def test_a_damaged_result_is_not_taken_for_a_finished_run(tmp_path):
    plan = plan_comparison(["se(reduction=4)@residual:3"], seeds=1, control=False, training=TRAINING)
    job = plan.jobs[0]
    path = result_path(tmp_path, job)
    path.parent.mkdir()
    assert finished_result(tmp_path, job) is None
    for text in ('{"metric": 0.', "[1]", '{"metric": 0.5, "settings": {"seed": 1}}'):
        path.write_text(text)
        assert finished_result(tmp_path, job) is None
    path.write_text(json.dumps({"metric": 0.5, "settings": job.settings}))
    assert finished_result(tmp_path, job)["metric"] == 0.5


@pytest.fixture
def coloured(tmp_path):
    """Eight training and eight validation images of each of two colours, and options that compare on them."""
    folder = tmp_path / "data"
    for part in ("train", "val"):
        for name, colour in (("blue", (20, 30, 200)), ("red", (200, 30, 20))):
            (folder / part / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (24, 24), colour).save(folder / part / name / f"{i}.png")
    options = {
        "insert": ["se(reduction=4)@residual:3"], "seeds": 1, "control": False, "data": str(folder), "epochs": 1,
        "batch_size": 8, "accelerator": "cpu", "out": str(tmp_path / "out"), "jobs": 1,
    }  # fmt: skip
    return folder, options


def test_runs_are_done_again_when_the_images_changed(tmp_path, coloured, in_this_process):
    """The same command on the same names: a corrected label must not get the old result."""
    folder, options = coloured
    compare(**options, quiet=True)
    first = {path.name for path in (tmp_path / "out" / "runs").glob("*.json")}
    Image.new("RGB", (24, 24), (200, 30, 20)).save(folder / "val" / "blue" / "0.png")
    os.utime(folder / "val" / "blue" / "0.png", ns=(1, 1))
    compare(**options, quiet=True)
    assert len({path.name for path in (tmp_path / "out" / "runs").glob("*.json")} - first) == 2


def test_a_report_of_the_test_images_calls_them_so(coloured, in_this_process):
    folder, options = coloured
    (folder / "val").rename(folder / "test")
    result = compare(**options, split="test", quiet=True)
    page = result.report.read_text(encoding="utf-8")
    assert "and 16 test images of 2 classes" in page
    assert "validation" not in page


def test_files_that_no_run_could_read_are_named_also_when_the_runs_are_finished(
    coloured, in_this_process, capsys
):
    folder, options = coloured
    broken = folder / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    Image.new("RGB", (24, 24)).save(folder / "stray.png")
    options["data_options"] = {"max_unreadable": 0.1}
    compare(**options)
    shown = " ".join(capsys.readouterr().err.split())
    assert "1 file or folder is left out, stray.png: an image in no class folder" in shown
    assert "unreadable and left out of all runs: 1" in shown
    assert "red/3.png" in shown
    again = compare(**options, quiet=True)
    (name,) = read(again.folder, "results.json")["unreadable"]
    assert name.endswith("red/3.png")
    assert "red/3.png" in again.report.read_text(encoding="utf-8")
    # mended: all runs are done anew, and with it
    Image.new("RGB", (24, 24)).save(broken)
    again = compare(**options, quiet=True)
    assert read(again.folder, "results.json")["unreadable"] == {}
    assert "red/3.png" not in again.report.read_text(encoding="utf-8")


def test_two_comparisons_never_work_in_one_folder(tmp_path):
    with locked(tmp_path, "a comparison"), pytest.raises(FovealError, match="already works in"):
        compare(out=str(tmp_path), **TINY)


def test_networks_by_name_are_compared_for_any_task(tmp_path, in_this_process):
    """Segmentation: a head with attention against one without, from the same backbone."""
    result = compare(
        models=["fcn_test_resnet", "danet_test_resnet(channel_form=paper)"], task="segment", seeds=1, epochs=1,
        data_options={"length": 24}, batch_size=8, accelerator="cpu", jobs=1, out=str(tmp_path), quiet=True,
        self_check=False,
    )  # fmt: skip
    assert [row.name for row in result.rows] == ["fcn_test_resnet", "danet_test_resnet(channel_form=paper)"]
    assert result.rows[1].to_none is not None
    document = read(tmp_path, "results.json")
    assert document["metric"] == "mIoU"
    assert all(0 <= run["metric"] <= 1 for run in document["runs"])
    page = result.report.read_text(encoding="utf-8")
    assert "mIoU" in page
    assert "Which network is better on scenes?" in page
    assert "attention help" not in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"insert": ["sse"]}, "block must be one of"),
        ({"models": ["cifar_resnet8", "cifar_resnet20"]}, "insert must be left out with models.*got cbam"),
        ({"insert": ["se(reduction=4)@residual:9"]}, "stage"),
        ({"model": "resnet_8"}, "resnet_8"),
        ({"accelerator": "tpu"}, "accelerator must be auto, cpu or cuda, got 'tpu'"),
        ({"data": "no/such/folder", "data_options": {}}, "no/such/folder"),
        ({"lr": -1.0}, "lr must be at least 0"),
    ],
)
def test_a_users_mistake_is_found_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compare(out=str(tmp_path / "out"), **{**TINY, **options})
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out must be a folder"):
        compare(out=str(tmp_path / "out"), **TINY)


@pytest.mark.parametrize("batch_size", [4, 16], ids=["in the steps that are timed", "by the last step"])
def test_runs_that_diverge_are_counted_as_failed_and_end_nothing(coloured, in_this_process, batch_size):
    """One that was broken by its last step has an accuracy, that of weights that are not finite: it is no value."""
    _, options = coloured
    options |= {"seeds": 2, "lr": 1e30, "batch_size": batch_size}
    result = compare(**options)
    assert [(row.seeds, sorted(row.failed)) for row in result.rows] == [(0, [0, 1])] * 2
    assert "none (2 of 2 seeds)" in result.conclusion
    assert all("finite" in reason for row in result.rows for reason in row.failed.values())
