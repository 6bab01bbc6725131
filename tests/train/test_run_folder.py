import pytest

from foveal import machine
from foveal.train import run_folder
from foveal.train.config import TrainConfig


def test_a_config_reads_back_as_it_was(tmp_path):
    config = TrainConfig(
        insert=["se(reduction=8)@block:1,2"], data_options={"size": 24}, lr=0.3, out="elsewhere"
    )
    run_folder.write_config(tmp_path, config)
    assert run_folder.read_config(tmp_path) == TrainConfig(**{**vars(config), "out": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("epochs: [", "must be YAML"),
        ("- a", "must map options"),
        ("epoks: 3", "options of training with task classify only, got epoks"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, text, rule):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rule):
        run_folder.read_config(tmp_path)


def test_runs_without_a_name_get_the_first_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(run_folder.make_run_folder(TrainConfig(insert=["se(reduction=4)@block"]))) for _ in range(3)]
    assert names == [f"runs/train/cifar_resnet8-se{end}" for end in ("", "-2", "-3")]


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        run_folder.make_run_folder(TrainConfig(out=str(tmp_path)))
    run_folder.make_run_folder(TrainConfig(out=str(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"continue it with --resume .*run"):
        run_folder.make_run_folder(TrainConfig(out=str(tmp_path / "run")))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="a file stands in the way"):
        run_folder.make_run_folder(TrainConfig(out=str(tmp_path / "taken" / "run")))
    with pytest.raises(ValueError, match="a file stands in the way"):
        run_folder.make_run_folder(TrainConfig(out=str(tmp_path / "taken")))


def test_the_environment_says_what_one_needs_to_run_it_again():
    found = machine.environment()
    assert set(machine.PACKAGES) < set(found["versions"])
    assert all(found["versions"][name] for name in ("foveal", "torch", "python"))
    assert found["command"]
    assert found["threads"] >= 1
