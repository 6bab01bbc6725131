"""Every variant gets the same tuning, on training images that are held out for it."""

import json
from dataclasses import replace

import pytest

from foveal.compare import compare
from foveal.compare.arrays import ArrayDataset, fold, store_images
from foveal.compare.plan import plan_comparison
from foveal.compare.tuning import SHARE, Tuning, factors_of, rate_of, trial_job, tune, with_factor
from foveal.compare.worker import parts_of
from foveal.errors import FovealError

TRAINING = {
    "data_options": {"length": 64, "size": 16, "digit_size": (8, 8)},
    "epochs": 1,
    "accelerator": "cpu",
}
BLOCKS = ["se(reduction=4)@residual:3"]


@pytest.fixture(scope="module")
def plan():
    return plan_comparison(BLOCKS, seeds=2, control=True, trials=3, training=TRAINING)


def simulated(values):
    """Trials whose metric is a function of variant, factor and seed, and a record of what was asked for."""
    asked = []

    def do(jobs):
        found = {}
        for job in jobs:
            factor, seed = job.settings["trial"]["factor"], job.config.seed
            asked.append((job.variant.name, factor, seed))
            value = values(job.variant.name, factor, seed)
            found[job.key] = {"failed": "infinite"} if value is None else {"metric": value}
        return found

    return do, asked


def test_the_best_rate_is_taken_and_every_variant_gets_as_many_trials(plan):
    best = {"none": 0.5, "control": 2.0, "se": 3.0}
    do, asked = simulated(
        lambda name, factor, seed: 0.9 if factor == best[name] else 0.5 + 0.001 * (seed % 3)
    )
    tuning = tune(plan.variants, plan.job, 3, do)
    assert tuning.chosen == best
    counts = {name: sum(1 for one, *_ in asked if one == name) for name in best}
    assert set(counts.values()) == {3 + 2 * 2}, "three rates once, the better half of them twice more"
    assert {seed for *_, seed in asked} == {1000, 1001, 1002}, "seeds of their own, shared by all"


def test_among_equals_the_default_rate_stays(plan):
    do, _ = simulated(lambda *_: 0.5)
    assert set(tune(plan.variants, plan.job, 3, do).chosen.values()) == {1.0}


def test_a_rate_that_becomes_infinite_is_out(plan):
    do, _ = simulated(lambda name, factor, seed: None if factor == 1.0 else 0.5 - factor / 100)
    assert set(tune(plan.variants, plan.job, 3, do).chosen.values()) == {0.5, 0.1}
    do, _ = simulated(lambda *_: None)
    assert set(tune(plan.variants, plan.job, 3, do).chosen.values()) == {1.0}, "nothing is known: the default"


def test_a_rate_that_was_lucky_once_does_not_win(plan):
    """Ahead with the first seed only: the repetitions decide, and the default is always among those repeated."""
    do, _ = simulated(lambda name, factor, seed: 0.6 if factor == 1 else (0.65 if seed == 1000 else 0.4))
    assert set(tune(plan.variants, plan.job, 4, do).chosen.values()) == {1.0}


def test_it_is_the_block_s_rate_that_is_tuned_and_of_others_the_network_s(plan):
    config = plan.job.config
    none, control, se = plan.variants
    assert with_factor(config, se, 0.1).lr == config.lr
    assert with_factor(config, se, 0.1).inserted_lr == pytest.approx(0.1 * config.block_lr)
    for variant in (none, control):
        tuned = with_factor(config, variant, 0.5)
        assert tuned.lr == pytest.approx(0.5 * config.lr)
        assert tuned.block_lr == pytest.approx(0.5 * config.block_lr)
        assert rate_of(config, variant, 0.5) == tuned.lr
    assert len(factors_of(se, 3)) == len(factors_of(none, 3)) == 3
    for variant in (se, none):
        assert min(factors_of(variant, 3)) < 1 < max(factors_of(variant, 3)), "on both sides of the default"


def test_trials_see_no_validation_image_and_their_parts_are_apart(plan, tmp_path):
    store_images(plan.data, plan.job, tmp_path)
    job = trial_job(plan.job, plan.variants[2], 0.1, 1000)
    train, held = parts_of(job, tmp_path)
    assert (len(train), len(held)) == (48, 16)
    assert not set(train.indices) & set(held.indices)
    whole = ArrayDataset(tmp_path, "train")
    assert len(whole) == 64
    assert (held.as_tensors()["image"] == whole.as_tensors()["image"][held.indices]).all()
    assert job.key != replace(job, settings={**job.settings, "trial": {"factor": 1.0, "share": SHARE}}).key


def test_a_fold_is_the_same_for_everybody():
    assert fold(100, 0.25) == fold(100, 0.25)
    first, second = fold(2, 0.01)
    assert (len(first), len(second)) == (1, 1)


def test_runs_take_the_rate_that_was_chosen(plan):
    tuning = Tuning({"none": 1.0, "control": 1.0, "se": 0.1}, {}, {})
    tuned = replace(plan, tuning=tuning)
    rates = {job.variant.name: job.config.block_lr for job in tuned.jobs}
    assert rates["se"] == pytest.approx(0.1 * rates["none"])
    assert {job.key for job in tuned.jobs}.isdisjoint(job.key for job in plan.jobs)


def test_the_report_shows_what_was_tried_and_the_same_command_tries_nothing_again(
    tmp_path, monkeypatch, in_this_process
):
    options = {
        **TRAINING,
        "seeds": 1,
        "control": False,
        "tune": 2,
        "jobs": 2,
        "out": str(tmp_path),
        "self_check": False,
        "quiet": True,
    }
    result = compare(BLOCKS, **options)
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(document["tuning"]["chosen"]) == {"none", "se"}
    page = result.report.read_text(encoding="utf-8")
    assert "Bold: " in page
    assert ", 3 ×</small>" in page
    monkeypatch.setattr("foveal.compare.runner.make_engine", None)
    assert compare(BLOCKS, **options).conclusion == result.conclusion
    assert {row.name: row.rate for row in result.rows}["none"] is not None


@pytest.mark.parametrize("trials", [1, -1, 99])
def test_a_number_of_trials_that_tunes_nothing_is_refused(trials):
    with pytest.raises(FovealError, match="tune must be 0, or 2 to 6"):
        plan_comparison(BLOCKS, seeds=2, control=True, trials=trials, training=TRAINING)
