"""Generation through the command line: training with samples, a stop and a continuation, evaluation, images."""

import itertools
import json
import re
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from foveal.checkpoint import load
from foveal.cli import main
from foveal.compare.costs import measure_costs
from foveal.compare.plan import plan_comparison
from foveal.data.scenes import Digits
from foveal.evaluate import evaluate
from foveal.measure import count_macs
from foveal.model_info import ModelInfo
from foveal.models import create_model
from foveal.tasks.generate import Generate
from foveal.tasks.generate.features import feature_network, frechet_distance
from foveal.tasks.generate.metric import VALIDATION_SEED, GenerationQuality
from foveal.tasks.generate.prediction import noise_of
from foveal.train import TrainConfig, fit
from foveal.train import run as run_module
from foveal.train.run_folder import write_curves

SMALL = {
    "task": "generate", "data": "digits", "data_options": {"length": 192}, "batch_size": 32, "epochs": 2, "workers": 0,
    "accelerator": "cpu", "ema": 0.9, "model_options": {"width": 8},
}  # fmt: skip


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(TrainConfig.from_dict({**SMALL, "out": str(tmp_path_factory.mktemp("g") / "run")}), quiet=True)


def test_a_run_keeps_its_losses_its_figures_and_a_grid_of_samples(run):
    row = run.rows[-1]
    assert {
        "train_discriminator",
        "train_generator",
        "val_frechet",
        "val_kernel",
        "val_spread",
        "val_gamma",
    } <= set(row)
    assert 0 <= row["val_confirmed"] <= 1
    for epoch in (1, 2):
        with Image.open(run.folder / "samples" / f"epoch-{epoch:03}.png") as picture:
            assert picture.size == (10 * 34 + 2, 7 * 34 + 2)
    assert run.best == min(run.rows, key=lambda row: row["val_frechet"])


def test_the_curves_show_spread_gamma_and_confirmed_labels_beside_the_distance(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr("foveal.train.run_folder.atomic_write", lambda path, write: write(path))
    write_curves(tmp_path / "c.png", run.rows, "frechet", Generate.curves_beside)
    losses, distance, beside = drawn[0].axes
    assert {line.get_label() for line in losses.lines} >= {"discriminator", "generator"}
    assert len(distance.lines) == 1
    assert [line.get_label() for line in beside.lines] == ["spread", "gamma", "confirmed"]
    assert list(beside.lines[1].get_ydata()) == [row["val_gamma"] for row in run.rows]


def test_a_run_that_is_stopped_continues_to_the_same_bits(run, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stopping(self, training):
        after(self, training)
        if training.step == 8:
            self.save_checkpoint()
            raise Stop

    after = run_module.Run._after_step
    monkeypatch.setattr(run_module.Run, "_after_step", stopping)
    with pytest.raises(Stop):
        fit(TrainConfig.from_dict({**SMALL, "out": str(tmp_path / "run")}), quiet=True)
    monkeypatch.undo()
    again = fit(resume=str(tmp_path / "run"), quiet=True)
    one, other = (load_file(r.folder / "weights" / "last.safetensors") for r in (run, again))
    assert all((one[name] == other[name]).all() for name in one)


def test_predict_writes_images_that_the_seed_fixes(run, tmp_path, capsys):
    for name, count in (("a", 12), ("b", 5)):
        words = ["predict", "--weights", str(run.weights), "--count", str(count), "--seed", "3"]
        assert main([*words, "--device", "cpu", "--out", str(tmp_path / name)]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files[:2] == ["0000-0.png", "0001-1.png"]
    assert {"grid.png", "images.json"} < set(files)
    assert json.loads((tmp_path / "a" / "images.json").read_text())["seed"] == 3
    # the first images do not depend on how many are made
    one, other = (pixels(tmp_path / name / "0004-4.png") for name in ("a", "b"))
    assert abs(one - other).max() <= 1
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "a"), "--weights", str(run.weights)]) == 2
    assert "makes images from noise and takes none" in capsys.readouterr().err
    assert main(["predict", "--weights", str(run.weights), "--label", "x", "--out", str(tmp_path / "c")]) == 2
    assert "label must be one of 0, 1, 2" in capsys.readouterr().err


def test_every_image_of_a_seed_has_noise_of_its_own():
    found = {tuple(noise_of(seed, number, 4).tolist()) for seed in (0, 1, 7) for number in range(100)}
    assert len(found) == 300


def test_a_chosen_pixel_of_a_generated_image_shows_what_it_attended_to(run, tmp_path, capsys):
    words = ["look", "seed:3", "--weights", str(run.weights), "--device", "cpu"]
    assert main([*words, "--images", "2", "--query", "10,12", "--out", str(tmp_path / "look")]) == 0
    files = {path.name for path in (tmp_path / "look").iterdir()}
    rows = {name for name in files if name.endswith("--row.png")}
    assert {name.partition("--")[0] for name in rows} == {"0000-0", "0001-1"}
    assert all("generator." in name for name in rows)
    assert "index.html" in files
    page = tmp_path / "page.html"
    assert main([*words, "--images", "1", "--html", str(page)]) == 0
    assert '"made": true' in page.read_text()
    capsys.readouterr()
    for given, said in (
        (["look", "photo.jpg"], "by a seed, such as seed:0, got photo.jpg"),
        (["look", "seed:0", "--score"], "score and grad_cam are for images that are there"),
        (["look", "seed:0", "--query", "40,1"], "query must lie inside the image of 32x32, got 40,1"),
    ):
        out = ["--out", str(tmp_path / "no")] if "--query" in given else []
        assert main([*given, "--weights", str(run.weights), "--device", "cpu", *out]) == 2
        assert said in capsys.readouterr().err


def test_eval_names_the_features_and_gives_floor_and_ceiling(run, tmp_path, capsys):
    out = tmp_path / "figures.json"
    words = ["eval", "--weights", str(run.weights), "--data_options.length", "192", "--device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["frechet"] == pytest.approx(run.best["val_frechet"], rel=1e-3)
    details = found["details"]
    assert details["features"].startswith("digits.safetensors")
    assert 0 < details["floor"]["frechet"] < details["ceiling"]["frechet"]
    assert details["images"] == details["ceiling"]["images"] == 192
    assert 120 < details["floor"]["images"] < 192, "as many of each class as both parts have"
    assert 0 <= details["precision"] <= 1
    told = " ".join(capsys.readouterr().out.split())
    assert "features: digits.safetensors (bundled, trained on digits)" in told
    assert "192 real and as many generated images" in told
    assert f"{details['floor']['frechet']:.4g}" in told
    assert f"{details['ceiling']['kernel']:.4g}" in told


def test_the_floor_is_between_images_of_two_parts(run):
    """Of one part alone it would be the distance of halves, of half as many images."""
    found = evaluate(run.weights, data_options={"length": 64}).details["floor"]
    network = feature_network(None, Digits("val"))
    val, train = (Digits(part, length=64).as_tensors() for part in ("val", "train"))
    counts = [min(int((part["label"] == label).sum()) for part in (val, train)) for label in range(10)]
    assert found["images"] == sum(counts) < 64
    chosen = []
    for part in (val, train):
        of_class = [(part["label"] == label).nonzero()[:, 0] for label in range(10)]
        which = [o[i * len(o) // n] for o, n in zip(of_class, counts, strict=True) for i in range(n)]
        chosen.append(network(part["image"][which].float() / 255)[0])
    assert found["frechet"] == pytest.approx(frechet_distance(*chosen), rel=1e-4)
    assert found["between"] == "real images and real images of another part, of the same classes"


def test_the_ceiling_is_of_a_generator_as_it_was_before_training(run):
    found = evaluate(run.weights, data_options={"length": 64}).details["ceiling"]
    network, tensors = feature_network(None, Digits("val")), Digits("val", length=64).as_tensors()
    made = load(run.weights).foveal_model
    torch.manual_seed(0)
    net = create_model(made["name"], **made["kwargs"]).eval()
    noise = torch.stack([noise_of(VALIDATION_SEED, number, net.latent) for number in range(64)])
    with torch.no_grad():
        start = network((net.generate(noise, tensors["label"]) / 2 + 0.5).expand(-1, 3, -1, -1))[0]
    wanted = frechet_distance(network(tensors["image"].float() / 255)[0], start)
    assert found["frechet"] == pytest.approx(wanted, rel=1e-3)


def test_without_another_part_the_floor_is_between_halves():
    features = types.SimpleNamespace(name="x", is_inception=False)
    metric = GenerationQuality(features, ModelInfo("generate", ["a", "b"], 32), ["a", "b"], full=True)
    generator = torch.Generator().manual_seed(0)
    metric.real = [torch.randn(41, 5, generator=generator, dtype=torch.float64)]
    metric.made = metric.untrained = metric.real
    floor = metric.report()["details"]["floor"]
    assert (floor["images"], floor["between"]) == (20, "one half of the real images and the other")
    ordered = torch.arange(40, dtype=torch.float64)[:, None]
    metric.real = [ordered]
    here, there, _ = metric._floor(ordered)
    assert here[:, 0].tolist() == list(range(0, 40, 2)), "each half of all classes"
    assert there[:, 0].tolist() == list(range(1, 40, 2))
    metric.real = [torch.randn(41, 5, generator=generator, dtype=torch.float64)]
    metric.others, metric.conditional = [torch.zeros(30, 5, dtype=torch.float64)], False
    assert metric.report()["details"]["floor"]["images"] == 30, "as many of each"


def test_a_run_says_in_whose_features_it_measures(capsys, tmp_path):
    fit(TrainConfig.from_dict({**SMALL, "epochs": 1, "out": str(tmp_path / "run")}))
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "distances in the features of digits.safetensors (bundled, trained on digits), over 192 images"
        in said
    )


def test_the_page_of_an_evaluation_has_distances_beside_their_bounds(run, tmp_path):
    page = tmp_path / "page.html"
    words = ["eval", "--weights", str(run.weights), "--data_options.length", "64", "--device", "cpu"]
    assert main([*words, "--html", str(page)]) == 0
    text = page.read_text()
    assert "Floor and ceiling" in text
    assert "digits.safetensors" in text
    assert " %" not in re.sub(r"data:image[^\"]*", "", text).partition("</style>")[2], (
        "a distance is no share"
    )


def test_images_that_are_all_alike_are_said_to_be():
    assert "collapse" in Generate().remarks([{"val_spread": 0.02}], None)[0]
    assert Generate().remarks([{"val_spread": 0.8}], None) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bfloat16"}, "precision must be float32"),
        ({"accumulate": 2}, "accumulate=1"),
        ({"discriminator_steps": 0}, "discriminator_steps must be at least 1, got 0"),
        ({"model": "resnet18"}, "needs one of sagan_128"),
        ({"data": "scenes:cue"}, "feature_weights must be given for these data"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, options, words):
    from foveal.errors import FovealError

    with pytest.raises(FovealError, match=words):
        fit(TrainConfig.from_dict({**SMALL, "out": str(tmp_path / "run"), **options}), quiet=True)


def test_the_bundled_data_have_their_recipe_by_either_name():
    for data in ("scenes", "digits"):
        config = TrainConfig(task="generate", data=data)
        assert (config.lr, config.epochs, config.ema, config.model_options["width"]) == (4e-3, 8, 0.99, 16)
    assert "width" not in TrainConfig(task="generate", data="photos").model_options


def test_the_discriminator_has_twice_the_rate_and_on_the_digits_the_same():
    net = create_model("sagan_dcgan_32", width=8)
    for data, told, rates in (
        ("photos", {}, [1e-4, 2e-4]),
        ("digits", {}, [4e-3, 4e-3]),
        ("digits", {"discriminator_lr": 1e-3}, [4e-3, 1e-3]),
        ("digits", {"model": "sagan_32"}, [1e-3, 2e-3]),
    ):
        config = TrainConfig.from_dict({"task": "generate", "data": data, **told})
        assert [one.param_groups[0]["lr"] for one in Generate().make_optimizers(net, config)] == rates


def test_own_data_are_compared_without_naming_the_networks(run, tmp_path):
    """What is obvious to type: the network of the task, or one that is named, with and without attention."""
    for part, label in itertools.product(("train", "val"), ("a", "b")):
        (tmp_path / part / label).mkdir(parents=True)
        for n in range(16):
            Image.new("RGB", (32, 32), (16 * n, 0, 0)).save(tmp_path / part / label / f"{n}.png")
    classifier = fit(
        TrainConfig.from_dict(
            {"data": str(tmp_path), "model": "cifar_resnet8", "epochs": 1, "out": str(tmp_path / "run")}
        ),
        quiet=True,
    )
    options = {
        "task": "generate", "data": str(tmp_path), "feature_weights": str(classifier.weights),
        "accelerator": "cpu", "model_options": {"width": 8},
    }  # fmt: skip
    for model, names in (
        ({}, ["sagan_dcgan_32(attention=none)", "sagan_dcgan_32"]),
        ({"model": "sagan_32", "attention": "se"}, ["sagan_32(attention=none)", "sagan_32"]),
    ):
        plan = plan_comparison(None, seeds=1, control=False, training={**options, **model})
        assert [variant.name for variant in plan.variants] == names
        none, attends = (variant.model_options["attention"] for variant in plan.variants)
        assert (none or "none", attends) == ("none", model.get("attention", "selfattention"))
        assert all(variant.model_options["width"] == 8 for variant in plan.variants)


def test_a_comparison_is_of_attention_and_none_and_costs_are_of_both_networks(tmp_path):
    small = {"task": "generate", "data_options": {"length": 64}, "batch_size": 8, "accelerator": "cpu"}
    plan = plan_comparison(None, seeds=1, control=False, training=small)
    assert [variant.name for variant in plan.variants] == ["sagan_dcgan_32(attention=none)", "sagan_dcgan_32"]
    assert plan.job.config.epochs == 3
    none, with_attention = measure_costs(plan, tmp_path).values()
    assert with_attention.parameters > none.parameters
    judged = count_macs(replace(plan.job, variant=plan.variants[0]).build(), torch.zeros(1, 3, 32, 32))
    assert with_attention.macs > none.macs > judged, "an image is made, then judged"
