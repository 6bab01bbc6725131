"""Clips through the whole house: trained, continued, measured, answered for; and what direction needs."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from tests.data.videos import flat_frames, write_animation, write_frames, write_video

import foveal
from foveal.checkpoint import load
from foveal.cli import main
from foveal.cli.look import look
from foveal.compare import compare
from foveal.compare.plan import plan_comparison
from foveal.compare.variants import build
from foveal.data import open_dataset
from foveal.errors import FovealError
from foveal.evaluate import evaluate
from foveal.model_info import ModelInfo
from foveal.predict import predict
from foveal.tasks import task_named
from foveal.tasks.clips import ClipInference
from foveal.tasks.clips import prediction as run_of_views
from foveal.tasks.clips.prediction import ClipPrediction, film_strip, view_logits
from foveal.train import TrainConfig, fit

SMALL = {"length": 32, "size": 20, "frames": 4}


def config(out, **options):
    return TrainConfig.from_dict(
        {"task": "clips", "data_options": SMALL, "epochs": 2, "batch_size": 8, "out": str(out), **options}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(config(tmp_path_factory.mktemp("clips") / "run"), quiet=True)


def test_the_bundled_clips_train(run):
    assert run.metric == "val_accuracy"
    assert [row["step"] for row in run.rows] == [4, 8]
    assert run.blocks[0]["block"] == "nonlocal"
    assert (run.folder / "examples.png").stat().st_size > 1000
    info = ModelInfo.from_dict(load(run.weights).foveal_info)
    assert info.extra == {"frames": 4, "stride": 1, "short": "loop"}


def test_a_run_that_was_stopped_ends_with_the_same_bits(run, tmp_path):
    """Stopped within the first epoch and continued."""
    import foveal.train.run as runs

    real = runs.Run._after_step

    def stop(self, t):
        self.stop_asked = t.step == 3
        real(self, t)

    runs.Run._after_step = stop
    try:
        with pytest.raises(runs.Interrupted):
            fit(config(tmp_path / "run"), quiet=True)
    finally:
        runs.Run._after_step = real
    again = fit(resume=tmp_path / "run", quiet=True)
    one, other = (load(r.folder / "weights" / "last.safetensors").state_dict() for r in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_figures_name_their_views(run):
    one, many = evaluate(run.weights), evaluate(run.weights, inference={"clips": 2, "crops": 3})
    assert one.inference.views == "1 clip x 1 crop"
    assert many.inference.views == "2 clips x 3 crops"
    # a bundled clip has one place and one square
    assert one.figures["accuracy"] == many.figures["accuracy"] == pytest.approx(run.best["val_accuracy"])
    assert many.figures["loss"] == pytest.approx(one.figures["loss"], rel=1e-4)
    with pytest.raises(FovealError, match="clips must be from 1 to 100, got 0"):
        ClipInference(clips=0)


def test_views_are_averaged_as_probabilities():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    views = torch.randn(2, 5, 3, 1, 2, 2)
    wanted = torch.stack([net(views[:, v]).softmax(1) for v in range(5)]).mean(0)
    assert torch.allclose(view_logits(net, views).softmax(1), wanted, atol=1e-6)


def test_videos_are_answered_for(run, tmp_path):
    write_animation(tmp_path / "a.webp", flat_frames(9, 24, 40))
    write_frames(tmp_path / "b", flat_frames(3, 24, 40))
    write_animation(tmp_path / "one.gif", flat_frames(1, 24, 40))
    found = predict(run.weights, [tmp_path], inference={"top": 2, "clips": 3, "crops": 3})
    rows = list(csv.DictReader(io.StringIO(found.text)))
    assert [row["file"] for row in rows] == [str(tmp_path / "a.webp"), str(tmp_path / "b")]
    assert set(rows[0]) == {"file", "label", "probability", "label_2", "probability_2"}
    assert list(found.unreadable) == [str(tmp_path / "one.gif")]
    assert predict(run.weights, [tmp_path / "b"]).count == 1
    answers = json.loads(predict(run.weights, [tmp_path / "a.webp"], format="json").text)
    assert len(answers["predictions"][0]["labels"]) == 5


def test_a_predictor_takes_paths_and_tensors(run, tmp_path):
    predictor = foveal.predictor(run.weights)
    clip = open_dataset("scenes", "val", task="clips", **SMALL)[0]["image"]
    one, other = predictor([clip, clip[:, [0, 0, 0]]])
    assert one.label in predictor.info.classes
    assert one._repr_png_().startswith(b"\x89PNG")
    assert len(other.labels) == 5
    with pytest.raises(
        FovealError, match=r"clip must be a path or a tensor \(3, frames, h, w\) of uint8, got torch.uint8"
    ):
        predictor(clip[:, 0])
    write_animation(tmp_path / "one.gif", flat_frames(1))
    with pytest.raises(FovealError, match="at least 2 frames, got 1"):
        predictor(tmp_path / "one.gif")


def test_a_clip_and_its_reverse_are_one_to_attention_and_two_to_convolutions_over_time():
    """By construction, whatever the weights: the one can learn left from right, the other cannot."""
    torch.manual_seed(0)
    clips = open_dataset("scenes:direction", "val", task="clips", length=4)
    x = torch.stack([clips[i]["image"] for i in range(4)]).float() / 255

    def difference(name, **options):
        net = foveal.create_model(name, num_classes=2, **options).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                # scales that start at zero would hide what the blocks do
                parameter.add_(0.1 * torch.randn_like(parameter))
            return float((net(x) - net(x.flip(2))).abs().max() / net(x).abs().max())

    for over in ("time", "space", "spacetime"):
        assert difference("nonlocal_c2d_cifar_resnet8", blocks=2, over=over) < 1e-5
    assert difference("nonlocal_i3d_cifar_resnet8", blocks=0) > 1e-3


def test_stored_videos_train_from_random_places(tmp_path):
    for part, count in (("train", 6), ("val", 2)):
        for label in ("run", "walk"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                write_animation(tmp_path / part / label / f"{i}.webp", flat_frames(10 + i, 20, 30))
    result = fit(
        config(
            tmp_path / "run",
            data=str(tmp_path),
            data_options={},
            frames=4,
            stride=2,
            image_size=16,
            batch_size=4,
        ),
        quiet=True,
    )
    assert [row["step"] for row in result.rows] == [3, 6]
    assert evaluate(result.weights, inference={"clips": 2, "crops": 3}).images == 4


def test_too_many_bad_videos_are_one_line_also_from_reading_processes(tmp_path, capsys):
    for label in ("run", "walk"):
        (tmp_path / label).mkdir(parents=True)
        for i in range(8):
            write_animation(tmp_path / label / f"{i}.webp", flat_frames(1 if i < 4 else 9, 20, 20))
    words = ["train", "--task", "clips", "--data", str(tmp_path), "--frames", "2", "--stride", "1"]
    assert main([*words, "--image_size", "20", "--workers", "1", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(
        r"\ntrain: at most 0\.05 of the videos may be unreadable \(max_unreadable\), got \d of", said
    )


def test_what_a_task_of_clips_cannot_do_is_refused(tmp_path):
    task = task_named("clips")
    with pytest.raises(
        FovealError, match=r"task clips needs one of nonlocal_c2d_cifar_resnet8.*got resnet50"
    ):
        task.build("resnet50", 2)
    with pytest.raises(FovealError, match="frames must be at least 1, got 0"):
        config(tmp_path, frames=0)
    with pytest.raises(FovealError, match="frames must be a whole number from 1 to 1024, got 100000"):
        task.eval_transform(
            ModelInfo("clips", ["a", "b"], 20, extra={"frames": 10**5, "stride": 1, "short": "loop"})
        )
    with pytest.raises(FovealError, match="takes clips"):
        task_named("classify").build("nonlocal_c2d_cifar_resnet8", 2)


def test_the_default_size_is_the_data_s_up_to_96_pixels():
    task = task_named("clips")
    assert task.default_image_size(open_dataset("scenes", "val", task="clips", length=2)) == 28
    assert task.default_image_size(open_dataset("scenes", "val", task="clips", length=2, size=128)) == 224


def test_pictures_show_frames_spread_over_the_clip():
    clip = torch.arange(20, dtype=torch.uint8)[None, :, None, None].expand(3, -1, 4, 4)
    strip = film_strip(clip, most=3)
    assert strip.shape == (80, 3 * 80 + 4, 3)
    assert strip[0, [0, 82, 164], 0].tolist() == [0, 9, 19]
    assert ClipPrediction([("a", 0.5)]).draw(clip).shape[2] == 3


def test_a_clip_is_looked_at(run, tmp_path, capsys):
    look("scenes", str(run.weights), images=2, out=str(tmp_path / "out"), query="1,4,6")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "index.html",
        *(f"scenes-val-{i}--{kind}.png" for i in (0, 16) for kind in ("clip", "net.layer2.nonlocal_--row")),
    ]
    write_frames(tmp_path / "v", flat_frames(5, 24, 24))
    look(str(tmp_path / "v"), str(run.weights), out=str(tmp_path / "more"))
    assert (tmp_path / "more" / "v--clip.png").exists()
    assert "v: 2 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"query": "3,4"}, "query must be t,y,x in frames and pixels of the clip"),
     ({"query": "4,0,0"}, "query must lie inside the clip of 4 frames of 20x20 that the network sees, got 4,0,0"),
     ({"grad_cam": True}, "grad_cam is drawn over images, got weights of clips")],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_refused(run, tmp_path, given, reason):
    with pytest.raises(FovealError, match=reason):
        look("scenes", str(run.weights), images=1, out=str(tmp_path / "out"), **given)


def test_attention_over_clips_is_scored(run, tmp_path):
    look("scenes", str(run.weights), images=6, score=True, out=str(tmp_path / "scores"))
    (site,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["sites"]
    assert site["site"] == "net.layer2.nonlocal_"
    values = {name: one["mean"] for name, one in site["values"].items()}
    # over time a row has one cell of each frame, so that rows of two places share none
    assert 0 < values["entropy"] <= np.log(4) / np.log(4 * 10 * 10) + 1e-6
    assert values["query_dependence"] > 0.9
    assert {"deletion_vs_random", "insertion_vs_grad_cam"} <= values.keys()


def test_many_views_are_evaluated_in_smaller_batches(run, monkeypatch):
    seen = []
    real = run_of_views.view_logits

    def spy(net, clips):
        seen.append(clips.shape[:2])
        return real(net, clips)

    monkeypatch.setattr(run_of_views, "view_logits", spy)
    evaluate(run.weights, inference={"clips": 4, "crops": 2}, data_options={"length": 8})
    assert seen == [(4, 8), (4, 8)]


@pytest.mark.slow
def test_the_question_and_the_control_are_compared(tmp_path):
    """With attention, without, and with a convolution over time in its place; on either data set."""
    for data in ("scenes", "scenes:direction"):
        found = compare(
            seeds=2, engine="local", jobs=1, out=str(tmp_path / data[-4:]), self_check=False, quiet=True,
            task="clips", data=data, data_options={"length": 32},
        )  # fmt: skip
        assert [row.name for row in found.rows] == ["none", "control", "nonlocal"]
        assert found.report.stat().st_size > 10_000


@pytest.mark.slow
def test_a_convolution_over_time_learns_the_side_and_attention_stays_at_chance(tmp_path):
    found = compare(
        seeds=1, engine="local", jobs=1, out=str(tmp_path / "out"), self_check=False, quiet=True,
        task="clips", data="scenes:direction", data_options={"length": 1000},
    )  # fmt: skip
    accuracy = {row.name: row.metric.mean for row in found.rows}
    assert accuracy["control"] > 0.95
    assert max(accuracy["none"], accuracy["nonlocal"]) < 0.6


def test_blocks_are_compared_in_a_network_without_its_own(tmp_path):
    """On any data and in any network: what is called "none" has no block."""
    for label in ("run", "walk"):
        for i in range(10):
            (tmp_path / label).mkdir(exist_ok=True)
            write_animation(tmp_path / label / f"{i}.webp", flat_frames(6, 20, 20))
    own = {"task": "clips", "data": str(tmp_path), "frames": 4, "stride": 1, "image_size": 20}
    bundled = {"task": "clips", "data": "scenes", "data_options": SMALL}
    for training, insertions in (
        (own, None),
        (own, ["nonlocal(over=time)@stage:2"]),
        (
            {**own, "model_options": {"over": "space"}, "model": "nonlocal_i3d_cifar_resnet8"},
            ["nonlocal@stage:2"],
        ),
        ({**bundled, "model": "nonlocal_i3d_cifar_resnet8"}, None),
    ):
        plan = plan_comparison(insertions, seeds=1, control=True, training={**training, "accelerator": "cpu"})
        none = build(plan.variants[0], plan.job.config, plan.job.info.classes, plan.job.info.image_size)
        assert foveal.inserted(none) == []
        assert len(plan.variants) == (7 if training is own and insertions is None else 3)


def test_clips_are_called_clips(run, tmp_path, capsys):
    fit(config(tmp_path / "run", epochs=1))
    assert "scenes: 32 train and 32 val clips of 10 classes" in capsys.readouterr().err
    weights, few = ["--weights", str(run.weights)], ["--data_options.length", "8", "--out"]
    for words in (
        ["eval", *weights, *few, str(tmp_path / "e.json")],
        ["check", "scenes", "--task", "clips", *few, str(tmp_path / "c")],
        ["look", "scenes", *weights, "--score", "--images", "4", "--out", str(tmp_path / "s")],
    ):
        assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "split val, 8 clips",
        "train: 8 clips",
        "4 clips, spread over the 32",
        "on 4 clips of scenes",
    ):
        assert words in said
    assert not re.search(r"\d images", said)


def test_check_reads_every_video_to_its_end(tmp_path):
    pytest.importorskip("av")
    frames = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for part, label in ((part, label) for part in ("train", "val") for label in ("run", "walk")):
        (tmp_path / part / label).mkdir(parents=True)
        write_animation(tmp_path / part / label / "short.webp", flat_frames(5, 20, 20))
    times = [*range(10), *range(10, 50, 4)]
    write_video(tmp_path / "train" / "run" / "uneven.mp4", frames, times=times)
    write_video(tmp_path / "train" / "run" / "damaged.mp4", frames)
    data = bytearray((tmp_path / "train" / "run" / "damaged.mp4").read_bytes())
    at = data.index(b"mdat") + 4
    data[at + len(data) // 2 : at + len(data) // 2 + 8000] = b"\xff" * 8000
    (tmp_path / "train" / "run" / "damaged.mp4").write_bytes(data)
    found = task_named("clips").check(str(tmp_path), "train", {})
    told = {(f.kind, f.where) for f in found.findings}
    assert ("a variable frame rate", "train/run/uneven.mp4") in told
    assert ("videos that cannot be read", "train/run/damaged.mp4") in told
    assert ("videos of fewer than 16 frames", "train/walk/short.webp") in told
    assert found.classes == {"run": 2, "walk": 1}
    assert found.pictures["train/walk/short.webp"]([]).shape[2] == 3
