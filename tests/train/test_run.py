import json
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foveal
from foveal.data.loader import EpochBatchSampler
from foveal.folders import locked
from foveal.train import Interrupted, TrainConfig, fit, loop, run_folder
from foveal.train import prepare as prepare_module
from foveal.train.network import add_blocks, build_network

SMALL = {"length": 96, "size": 24}


def config(out, **changes):
    options = {
        "data_options": SMALL,
        "insert": ["cbam(reduction=4)@residual:3"],
        "epochs": 2,
        "batch_size": 16,
        "workers": 0,
        "accelerator": "cpu",
        "out": str(out),
    }
    return TrainConfig.from_dict({**options, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(config(tmp_path_factory.mktemp("runs") / "plain"), quiet=True)


def rows_without_time(folder):
    return [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def same_tensors(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_tensors, one, other))
    return one == other


# ------------------------------------------------------------------------------------------------- the run folder


def test_networks_for_other_than_grey_or_rgb_images_are_refused(tmp_path):
    for channels in (4, 0, "1"):
        rule = f"in_chans must be 3 .* or 1 .*, got {channels!r}"
        with pytest.raises(foveal.FovealError, match=rule):
            fit(config(tmp_path / "run", model="resnet18", model_options={"in_chans": channels}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_any_encoding_is_written_and_continued(latin_folder):
    result = fit(config(latin_folder, epochs=1), quiet=True)
    assert result.weights.exists()
    assert fit(resume=str(latin_folder), quiet=True).best["epoch"] == 1


def test_a_run_leaves_everything_in_its_folder_and_nothing_else(run):
    found = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    assert found == {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "blocks.json",
        "curves.png",
        "examples.png",
        "checkpoint.ckpt",
        "weights/best.safetensors",
        "weights/last.safetensors",
    }
    assert [row["epoch"] for row in run.rows] == [1, 2]
    assert run.best == max(run.rows, key=lambda row: row["val_accuracy"])
    assert json.loads((run.folder / "blocks.json").read_text()) == run.blocks
    assert [row["site"] for row in run.blocks] == ["layer3.0.bn2.cbam"]
    assert (run.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_weights_carry_what_using_them_needs(run):
    info = foveal.load(run.weights).foveal_info
    assert info["classes"] == [str(digit) for digit in range(10)]
    assert (info["task"], info["image_size"], len(info["mean"]), len(info["std"])) == ("classify", 24, 3, 3)
    assert info["val_accuracy"] == run.best["val_accuracy"]


def test_the_checkpoint_holds_no_code(run):
    torch.load(run.folder / "checkpoint.ckpt", weights_only=True)


def test_fit_shows_no_warning_and_prints_nothing_when_quiet(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(config(tmp_path / "a", epochs=1), quiet=True)
    assert capfd.readouterr() == ("", "")


def test_fit_leaves_random_numbers_and_signals_of_the_caller_alone(tmp_path):
    state, handlers = torch.get_rng_state(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    environment = dict(os.environ)
    fit(config(tmp_path / "a", epochs=1), quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert dict(os.environ) == environment


def test_fit_puts_back_the_random_numbers_of_every_gpu(tmp_path, monkeypatch):
    forked, fork = [], torch.random.fork_rng
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def note(devices=None):
        forked.append(list(devices))
        return fork(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", note)
    with pytest.raises(ValueError, match="accelerator=abacus"):
        fit(config(tmp_path / "a", accelerator="abacus"), quiet=True)
    assert forked == [[0, 1]]


def make_network(config):
    return add_blocks(build_network(config, list("abc")), config, 32)


def test_networks_of_one_seed_begin_alike_whatever_is_inserted():
    plain = make_network(TrainConfig(seed=4)).state_dict()
    blocked = make_network(TrainConfig(seed=4, insert=["se(reduction=4)"])).state_dict()
    assert all(torch.equal(blocked[name], value) for name, value in plain.items())


# ------------------------------------------------------------------------------------------- stopped and continued

HARD = {
    "epochs": 3,
    "batch_size": 8,
    "accumulate": 2,
    "ema": 0.9,
    "mixup": 0.3,
    "clip_norm": 1.0,
    "freeze_epochs": 1,
    "checkpoint_steps": 2,
}

KILLED = """
import os, signal
import torch
from foveal.train import TrainConfig, fit
from foveal.train import loop

torch.set_num_threads({threads})

step = loop.supervised_step
def supervised_step(training, *rest):
    if training.epoch == {epoch} and training.batch == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(training, *rest)
loop.supervised_step = supervised_step
fit(TrainConfig.from_dict({options!r}), quiet=True)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(config(tmp_path_factory.mktemp("runs") / "whole", **HARD), quiet=True)


@pytest.mark.parametrize(("epoch", "batch"), [(1, 7), (2, 0)], ids=["mid-epoch", "after an epoch"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path, uninterrupted, zygote, epoch, batch):
    folder = tmp_path / "killed"
    code = KILLED.format(
        epoch=epoch, batch=batch, options=config(folder, **HARD).to_dict(), threads=torch.get_num_threads()
    )
    child = zygote.run(tmp_path, code=code)
    assert child.status == -signal.SIGKILL, child.err
    done = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    assert (len(done["rows"]), done["training"]["batch"]) == ((1, 4) if epoch == 1 else (2, 0))

    resumed = fit(TrainConfig(workers=epoch % 2), resume=folder, quiet=True)  # how images are read may change
    whole = uninterrupted.folder
    assert (folder / "weights/last.safetensors").read_bytes() == (
        whole / "weights/last.safetensors"
    ).read_bytes()
    assert same_tensors(load_file(resumed.weights), load_file(uninterrupted.weights))
    states = [torch.load(f / "checkpoint.ckpt", weights_only=True) for f in (folder, whole)]
    assert same_tensors(states[0]["training"], states[1]["training"])
    assert rows_without_time(folder) == rows_without_time(whole)


def test_another_seed_gives_other_weights(tmp_path, uninterrupted):
    other = fit(config(tmp_path / "other", **{**HARD, "seed": 1}), quiet=True)
    assert not same_tensors(load_file(other.weights), load_file(uninterrupted.weights))


def test_a_finished_run_that_is_resumed_stays_as_it_is(run):
    before = (run.folder / "weights/last.safetensors").read_bytes()
    again = fit(resume=run.folder, quiet=True)
    assert again.rows == run.rows
    assert again.best == run.best
    assert (run.folder / "weights/last.safetensors").read_bytes() == before


def stop_after(folder, signals, number=signal.SIGINT):
    """Send signals once the first checkpoint is there."""

    def send():
        while not (folder / "checkpoint.ckpt").exists():
            time.sleep(0.01)
        for _ in range(signals):
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_says_how_to_continue(tmp_path, number):
    folder = tmp_path / "a"
    thread = stop_after(folder, 1, number)
    with pytest.raises(Interrupted, match=f"continue with: foveal train --resume {folder}"):
        fit(config(folder, epochs=500, checkpoint_steps=1), quiet=True)
    thread.join()
    kept = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    assert len(kept["rows"]) < 500
    assert not list(folder.rglob("*.part"))


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    """In the middle of a step that would never end."""
    folder = tmp_path / "a"
    step, asked = loop.supervised_step, threading.Event()

    def endless(training, *rest):
        if training.epoch == 1:
            asked.set()
            while True:
                time.sleep(0.01)
        return step(training, *rest)

    def send():
        asked.wait()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    monkeypatch.setattr(loop, "supervised_step", endless)
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    with pytest.raises(Interrupted, match="kept: epoch 1; continue with"):
        fit(config(folder), quiet=True)
    thread.join()
    monkeypatch.undo()
    assert len(fit(resume=folder, quiet=True).rows) == 2


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_the_rest_of_an_epoch_is_averaged_over_the_batches_it_has(tmp_path, accumulate):
    """Three batches: the last step of the epoch has fewer than ``accumulate``, and weighs them as the others do."""
    chosen = config(
        tmp_path / "a", epochs=1, batch_size=32, accumulate=accumulate, insert=[], momentum=0.0, weight_decay=0.0,
        schedule="constant", warmup_epochs=0.0, lr=0.05,
    )  # fmt: skip
    weights = load_file(fit(chosen, quiet=True).folder / "weights/last.safetensors")
    net = build_network(chosen, list("abcdefghij")).train()
    data = foveal.data.Scenes("train", **SMALL).as_tensors()
    batches = list(EpochBatchSampler(96, 32, seed=0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    normalize = foveal.data.JointTransform([]).normalize
    for start in range(0, 3, accumulate):
        group = batches[start : start + accumulate]
        optimizer.zero_grad()
        for batch in group:
            chosen_items = torch.tensor([i for _, i in batch])
            logits = net(normalize(data["image"][chosen_items]))
            (torch.nn.functional.cross_entropy(logits, data["label"][chosen_items]) / len(group)).backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_data_that_changed_while_a_run_was_stopped_are_refused(tmp_path):
    from PIL import Image

    for part, count in (("train", 6), ("val", 2)):
        for name, colour in (("red", "red"), ("blue", "blue")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (24, 24), colour).save(tmp_path / "data" / part / name / f"{i}.png")
    folder = tmp_path / "a"
    chosen = config(folder, data=str(tmp_path / "data"), data_options={}, epochs=1, batch_size=4)
    fit(chosen, quiet=True)
    assert fit(resume=folder, quiet=True).rows[-1]["epoch"] == 1
    Image.new("RGB", (24, 24), "red").save(tmp_path / "data" / "train" / "red" / "new.png")
    with pytest.raises(foveal.FovealError, match="files were added, removed or changed"):
        fit(resume=folder, quiet=True)


def test_resume_auto_begins_once_and_then_continues(tmp_path):
    chosen = config(tmp_path / "a", epochs=1)
    first = fit(chosen, resume="auto", quiet=True)
    assert fit(chosen, resume="auto", quiet=True).rows == first.rows
    with pytest.raises(foveal.FovealError, match="other values of epochs"):
        fit(config(tmp_path / "a", epochs=2), resume="auto", quiet=True)
    with pytest.raises(foveal.FovealError, match="resume auto needs out"):
        fit(TrainConfig(), resume="auto", quiet=True)


def test_two_runs_never_work_in_one_folder(run):
    with locked(run.folder, "a training run"), pytest.raises(foveal.FovealError, match="already works in"):
        fit(resume=run.folder, quiet=True)


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_not_a_number_names_epoch_batch_and_module(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    make = prepare_module.add_blocks

    def make_fragile(*args, **named):
        net = make(*args, **named)
        calls = iter(range(10**6))

        def break_late(module, inputs, output):
            # batches 1 to 6 of each epoch train, then 6 validate: break in the second epoch's third batch
            return output * float("nan") if module.training and next(calls) >= 8 else output

        net.layer2[0].conv2.register_forward_hook(break_late)
        return net

    monkeypatch.setattr(prepare_module, "add_blocks", make_fragile)
    with pytest.raises(
        ValueError, match=r"epoch 2, batch 3, first in module 'layer2\.0\.conv2' \(Conv2d\)"
    ) as caught:
        fit(config(folder), quiet=True)
    assert "kept: epoch 1" in str(caught.value)
    kept = torch.load(folder / "checkpoint.ckpt", weights_only=True)
    assert kept["training"]["epoch"] == 1
    assert all(v.isfinite().all() for v in load_file(folder / "weights/last.safetensors").values())


def test_a_rate_that_explodes_never_overwrites_good_weights(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(ValueError, match="must be finite") as caught:
        fit(config(folder, lr=1e30, warmup_epochs=1, checkpoint_steps=1, insert=[]), quiet=True)
    assert "epoch 1" in str(caught.value)
    if (folder / "checkpoint.ckpt").exists():
        kept = torch.load(folder / "checkpoint.ckpt", weights_only=True)["training"]["net"]
        assert all(v.isfinite().all() for v in kept.values() if v.is_floating_point())


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoint.ckpt", "curves.png"])
def test_a_full_disk_stops_the_run_and_keeps_what_was_whole(tmp_path, full_disk, name):
    folder = tmp_path / "a"
    (folder / "weights").mkdir(parents=True)
    chosen = config(folder, epochs=1)
    run_folder.write_config(folder, chosen)
    full_disk(name)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fit(resume=folder, quiet=True)
    assert caught.value.filename == str(folder / name)
    assert not (folder / name).exists()
    assert not list(folder.rglob("*.part"))
    full_disk(None)
    assert fit(resume=folder, quiet=True).rows[-1]["epoch"] == 1, "with space again, it continues"


def test_a_foreign_checkpoint_is_never_unpickled(tmp_path, run):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    for content in (Trap(), {"foveal": 1}, {"state_dict": {}}):
        torch.save(content, folder / "checkpoint.ckpt")
        with pytest.raises(ValueError, match="needs a checkpoint this library wrote"):
            fit(resume=folder, quiet=True)
    (folder / "checkpoint.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="needs a checkpoint this library wrote"):
        fit(resume=folder, quiet=True)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model": "resnet5"}, "name must be one of"),
        ({"insert": ["sse"]}, "block must be one of"),
        ({"insert": ["se(reduktion=4)"]}, "'reduktion'"),
        ({"insert": ["se(reduction=64)"]}, "reduction must leave at least 1 hidden channel"),
        ({"insert": ["se@layer9.*"]}, "layer9"),
        ({"data": "nowhere"}, "nowhere"),
        ({"data_options": {"sise": 24}}, "sise"),
        ({"accelerator": "abacus"}, "abacus"),
        ({"strategy": "chaos"}, "chaos"),
        ({"accelerator": "tpu"}, "accelerator=tpu"),
        ({"devices": 2, "accelerator": "cuda"}, "accelerator=cuda"),
    ],
)
def test_a_mistake_is_one_clear_error_and_leaves_no_folder(tmp_path, changes, rule):
    with pytest.raises((ValueError, FileNotFoundError), match=rule):
        fit(config(tmp_path / "a", **changes), quiet=True)
    assert not (tmp_path / "a").exists()


def test_one_class_is_refused(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        (tmp_path / "data" / part / "only").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / part / "only" / "a.png")
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit(config(tmp_path / "a", data=str(tmp_path / "data"), data_options={}), quiet=True)


def test_a_resumed_run_refuses_options_that_would_change_it(run):
    with pytest.raises(ValueError, match=r"takes its options from .* got epochs, lr"):
        fit(TrainConfig(epochs=9, lr=0.2), resume=run.folder, quiet=True)
    with pytest.raises(ValueError, match="must be the folder of a run"):
        fit(resume=run.folder / "weights", quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 is fine with a GPU")
def test_float16_without_a_gpu_is_refused_and_names_what_runs(tmp_path):
    with pytest.raises(ValueError, match="bfloat16 runs on any device"):
        fit(config(tmp_path / "a", precision="float16"), quiet=True)


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"channels_last": True}])
def test_options_of_speed_train_to_nearly_the_same_losses(run, tmp_path, changes):
    result = fit(config(tmp_path / "a", **changes), quiet=True)
    losses, expected = ([row["train_loss"] for row in one.rows] for one in (result, run))
    assert losses == pytest.approx(expected, rel=0.01)
    assert losses != expected


def test_adamw_learns(tmp_path):
    first, last = fit(config(tmp_path / "a", optimizer="adamw"), quiet=True).rows
    assert last["train_loss"] < first["train_loss"] - 0.1
