"""Whole comparisons with simulated runs: what is tuned, when it stops, what it says of itself and before it starts."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import foveal
from foveal.compare import compare
from foveal.compare.engines import Event
from foveal.compare.estimate import estimate_seconds, run_seconds
from foveal.compare.experiment import Comparison
from foveal.compare.plan import plan_comparison
from foveal.compare.sentences import before_start
from foveal.compare.sequential import LOOKS
from foveal.compare.summary import Costs
from foveal.errors import FovealError

SCHEMA = json.loads(
    (Path(foveal.__file__).parent / "compare" / "results.schema.json").read_text(encoding="utf-8")
)
SE = "se(reduction=4)@residual:3"
TRAINING = {
    "data_options": {"length": 64, "size": 16, "digit_size": (8, 8)},
    "epochs": 1,
    "accelerator": "cpu",
}
OPTIONS = {**TRAINING, "control": False, "self_check": False, "tune": 0, "quiet": True}


class SimulatedEngine:
    """Runs whose metric is a function of the job, and which take no time."""

    description, workers = "simulated", 2

    def __init__(self, metric, done):
        self.metric, self.done = metric, done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, jobs, images):
        for job in jobs:
            if job.only_time:
                parts = {"build": 1.0, "step": 0.5, "validate": 2.0, "report": 3.0}
                yield Event(job, result={"variant": job.variant.name, **parts})
                continue
            self.done.append(job)
            result = {"variant": job.variant.name, "seed": job.config.seed, "seconds": 1.0}
            value = self.metric(job)
            rest = {
                "figures": {"accuracy": value},
                "curve": [value],
                "clock": [1.0],
                "per_class": {"0": value},
            }
            change = {"change": {"site": 0.5}} if job.variant.insert else {}
            # the report would open those of the comparison itself
            checked = job.keep_weights and job.config.data != "scenes"
            weights = b"weights" if checked and job.config.data.startswith("scenes") else None
            yield Event(job, result={**result, "metric": value, **rest, **change}, weights=weights)


@pytest.fixture
def simulate(monkeypatch, tmp_path):
    """``simulate(metric)`` compares in a folder with runs of that metric; the jobs that were done, and the result."""

    def run(metric, insert=(SE,), **options):
        done = []
        monkeypatch.setattr(
            "foveal.compare.runner.make_engine", lambda *_, **__: SimulatedEngine(metric, done)
        )
        costs = Costs(1, 1, 1.0, 1.0, 1.0, 1.0, 1)
        monkeypatch.setattr(
            "foveal.compare.experiment.measure_costs",
            lambda plan, folder, advance: {variant.name: costs for variant in plan.variants},
        )
        result = compare(list(insert), **{"out": str(tmp_path / "out"), **OPTIONS, **options})
        document = json.loads((result.folder / "results.json").read_text(encoding="utf-8"))
        jsonschema.validate(document, SCHEMA)
        return result, done

    return run


def noise(job, size=0.004):
    return random.Random(f"{job.variant.name}{job.config.seed}{job.config.block_lr}").gauss(0.0, size)


# ------------------------------------------------------------------------------------------------- planted unfairness


def hurt_by_a_rate_that_is_too_high(job):
    """A block that is as good as none up to a rate of 0.001, and loses ten points with ten times that."""
    too_high = job.variant.insert is not None and job.config.block_lr > 0.0011
    return 0.8 - 0.1 * too_high + noise(job)


def test_a_rate_ten_times_too_high_for_one_variant_is_said_to_be_the_rate(simulate):
    result, _ = simulate(hurt_by_a_rate_that_is_too_high, inserted_lr=0.01)
    assert result.rows[1].to_none.finding == "worse"
    assert (
        "Worse than no attention at this learning rate (another may do better: tune): se" in result.conclusion
    )


def test_and_is_tuned_away(simulate):
    result, _ = simulate(hurt_by_a_rate_that_is_too_high, inserted_lr=0.01, tune=2)
    assert result.rows[1].rate == pytest.approx(0.001)
    assert result.rows[1].to_none.finding == "no evidence"
    assert "Worse" not in result.conclusion


def test_what_no_rate_cures_is_worse(simulate):
    result, _ = simulate(lambda job: 0.8 - 0.1 * (job.variant.insert is not None) + noise(job), tune=2)
    assert "Worse than no attention: se" in result.conclusion


def test_every_variant_is_tuned_unless_told_otherwise_where_there_are_seeds_for_a_verdict(
    simulate, coloured_folder
):
    own = {"data": str(coloured_folder), "data_options": {}, "batch_size": 12, "image_size": 24}
    tried = {}
    for name, options in {
        "own data": own,
        "few seeds": {**own, "seeds": 5},
        "told": {**own, "tune": 0},
        "scenes": {},
    }.items():
        options = {"tune": None, **options}
        _, done = simulate(lambda job: 0.8 + noise(job), **options)
        tried[name] = len({job.settings["trial"]["factor"] for job in done if job.trial_share is not None})
    # 1 and 0.1 of a block, 1 and 0.5 of the network
    assert tried == {"own data": 3, "few seeds": 0, "told": 0, "scenes": 3}


# ---------------------------------------------------------------------------------------- seeds are added until known


@pytest.mark.parametrize(
    ("effect", "finding", "seeds"), [(0.05, "better", 8), (-0.05, "worse", 8), (0.0, "smaller", 8)]
)
def test_seeds_stop_when_every_variant_is_decided(simulate, effect, finding, seeds):
    result, done = simulate(
        lambda job: 0.8 + effect * (job.variant.insert is not None) + noise(job), seeds="auto", detect=2.0
    )
    assert result.rows[1].to_none.finding == finding
    assert {job.config.seed for job in done} == set(range(seeds))
    if finding == "smaller":
        assert "A difference of 2.0 points or more is excluded for se." in result.conclusion


def test_seeds_go_on_while_it_is_open_and_end_at_the_last_look(simulate):
    result, done = simulate(
        lambda job: 0.8 + 0.01 * (job.variant.insert is not None) + noise(job, 0.03), seeds="auto", detect=1.0
    )
    seeds = len({job.config.seed for job in done})
    assert seeds in LOOKS
    assert seeds > LOOKS[0]
    assert len(done) == 2 * seeds, "no run is done twice"
    document = json.loads((result.folder / "results.json").read_text())
    assert (document["seeds"], document["looks"], document["detectable_difference"]) == (
        seeds,
        list(LOOKS),
        0.01,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": "auto"}, "seeds auto needs detect, the difference that matters, in points, got none"),
        ({"seeds": "many", "detect": 1.0}, "seeds must be a number or auto, got 'many'"),
        ({"detect": 0.0}, r"detect must be above 0, got 0\.0"),
    ],
)
def test_what_cannot_decide_is_refused(options, message):
    with pytest.raises(FovealError, match=message):
        plan_comparison([SE], control=False, training=TRAINING, **{"seeds": 8, **options})


# --------------------------------------------------------------------------------------------------- its own check


def known_answer(helped):
    """Only attention answers the cue, by so much; the local question is answered by all."""

    def metric(job):
        data = job.config.data
        if data == "scenes:cue":
            return 0.5 + helped * (job.variant.insert is not None) + noise(job)
        return (0.97 if data == "scenes:local" else 0.7) + noise(job)

    return metric


def test_the_check_stands_before_the_verdict_and_says_both(simulate):
    result, done = simulate(known_answer(0.4), self_check=True)
    assert [job.config.data for job in done] == ["scenes:cue"] * 12 + ["scenes:local"] * 12 + ["scenes"] * 16
    assert result.self_check.passed
    said = result.self_check.sentence()
    assert re.search(
        r"only attention can answer, DANet's channel attention was found to help \(5\d\.\d % without, 9", said
    )
    assert "where the answer is local, nothing was found" in said
    page = result.report.read_text(encoding="utf-8")
    assert page.index("only attention can answer") < page.index("No evidence that attention helps on scenes")


def test_an_instrument_that_misses_the_effect_says_not_to_trust_it(simulate):
    result, _ = simulate(known_answer(0.0), self_check=True)
    assert not result.self_check.passed
    assert "did not pass its own check: do not trust what follows" in result.report.read_text(
        encoding="utf-8"
    )


def to_which_side(attention):
    """A convolution over time tells the side, and attention by ``attention``; of the bundled question nothing helps."""

    def metric(job):
        if job.config.data != "scenes:direction":
            return 0.7 + noise(job)
        return {"none": 0.5, "control": 0.98}.get(job.variant.name, 0.5 + attention) + noise(job)

    return metric


def test_clips_are_checked_on_the_side_that_attention_cannot_tell(simulate):
    clips = {
        "task": "clips", "insert": ("nonlocal(over=time)@stage:2",), "control": True, "self_check": None,
        "data_options": {"length": 32},
    }  # fmt: skip
    result, done = simulate(to_which_side(attention=0.0), **clips)
    assert [job.config.data for job in done] == ["scenes:direction"] * 18 + ["scenes"] * 24
    assert result.self_check.passed
    said = result.self_check.sentence()
    assert re.search(
        r"a convolution over time was found to tell \(\d\d\.\d % without, 9\d\.\d % with it, 6 seeds\)", said
    )
    assert "and attention over time, which knows no order and cannot tell, was not" in said
    assert said in result.report.read_text(encoding="utf-8")
    result, _ = simulate(to_which_side(attention=0.2), **clips, out=str(result.folder / "other"))
    assert not result.self_check.passed
    assert "which it cannot, for it knows no order" in result.self_check.sentence()


def test_the_check_is_run_with_the_bundled_scenes_alone_unless_asked_for(simulate, coloured_folder):
    _, done = simulate(known_answer(0.4), self_check=None)
    assert {job.config.data for job in done} == {"scenes", "scenes:cue", "scenes:local"}
    own = {"data": str(coloured_folder), "data_options": {}, "batch_size": 12, "image_size": 24}
    _, done = simulate(known_answer(0.4), self_check=None, **own)
    assert {job.config.data for job in done} == {str(coloured_folder)}


# ----------------------------------------------------------------------------------------------- control of equal time


def test_the_control_of_equal_time_is_wider_and_stays_the_same(simulate, monkeypatch):
    """The block takes 16 ms, the control 10 and 1 for each width: six times as wide."""
    monkeypatch.setattr(
        "foveal.compare.time_control._times",
        lambda plan, variants: {v.name: 9.0 + v.width if v.control else 15.0 for v in variants},
    )
    result, done = simulate(known_answer(0.4), control="time")
    widths = {job.variant.name: job.variant.width for job in done}
    assert widths == {"none": 1.0, "control": 6.0, "se": 1.0}
    assert "the slowest variant, and is as wide as makes a batch" in result.report.read_text(encoding="utf-8")
    monkeypatch.setattr("foveal.compare.time_control._times", None)
    _, again = simulate(known_answer(0.4), control="time")
    assert again == []


def test_the_width_multiplies_the_channels_of_the_control():
    plan = plan_comparison([SE], control=True, seeds=1, training=TRAINING)
    wide = [replace(plan.job, variant=replace(plan.variants[1], width=w)).build() for w in (1.0, 6.0)]
    hidden = [next(m for n, m in net.named_modules() if n.endswith(".mix")).out_channels for net in wide]
    assert hidden[1] == 6 * hidden[0]


# --------------------------------------------------------------------------------------------- before anything is run


def sentences(seeds, earlier=None, **options):
    return before_start(
        plan_comparison([SE], control=True, seeds=seeds, training=TRAINING, **options), earlier or {}
    )


def test_what_the_seeds_cannot_decide_is_said_before_they_run():
    assert sentences(4)[0].startswith("4 seeds cannot decide anything")
    assert sentences(6)[0].startswith("6 seeds cannot show a difference for 2 comparisons at once")
    assert sentences(8)[0].startswith("8 seeds can show a difference between 2 comparisons")
    assert "Seeds are added at 8, 10, 12" in sentences("auto", detect=1.0)[0]


def test_what_one_image_is_worth_is_said_where_the_metric_counts_images():
    plan = plan_comparison([SE], control=True, seeds=8, training=TRAINING)
    images = plan.job.settings["images"]["val"]
    assert sentences(8)[-1] == (
        f"One of the {images:,} validation images is {100 / images:.2g} points of a run."
    )


def test_how_many_seeds_a_difference_takes_is_known_from_a_pilot():
    none = dict.fromkeys(range(4), 0.7)
    pilot = {"none": none, "control": {s: 0.70 + d for s, d in enumerate((0.02, -0.02, 0.01, -0.01))}}
    pilot["se"] = pilot["control"]
    said = sentences(8, pilot, detect=1.0)[-1]
    wanted = int(
        re.search(r"about (\d+) seeds \(from 4 seeds finished here, whose differences spread by 1\.8", said)[
            1
        ]
    )
    assert 25 < wanted < 45
    assert "is known once a few are finished" in sentences(8, {}, detect=1.0)[-1]


def test_the_time_is_that_of_every_run_and_trial_over_the_workers(monkeypatch, tmp_path, capsys):
    sizes = []

    def make(*_, runs, **__):
        sizes.append(runs)
        return SimulatedEngine(None, [])

    monkeypatch.setattr("foveal.compare.runner.make_engine", make)
    plan = plan_comparison([SE], control=False, seeds=8, training={**TRAINING, "epochs": 3, "batch_size": 16})
    comparison = Comparison(plan, {}, tmp_path, "local", None, "en", quiet=False)
    with comparison.runner as runner:
        seconds = estimate_seconds(runner, {"comparison": (plan, tmp_path)})
        comparison._say_what_is_to_come()
    # 4 steps and a validation an epoch
    one = 1.0 + 3 * (4 * 0.5 + 2.0) + 3.0
    assert run_seconds(plan.jobs[0], {"build": 1.0, "step": 0.5, "validate": 2.0, "report": 3.0}) == one
    assert seconds == {"comparison": 16 * one / 2}
    said = capsys.readouterr().err
    assert "about 2 min 8 s for all seeds" in said
    assert said.index("8 seeds can show") < said.index("about 2 min")
    # made for the runs, not for the few that are timed: fewer workers would have more threads, and other last bits
    assert sizes == [16]


def test_a_tuned_comparison_that_continues_is_told_what_is_left_and_has_its_runs_for_a_pilot(
    simulate, capsys
):
    """Its runs are named by the rates that were chosen, which are known from the finished trials."""
    options = {"seeds": 8, "tune": 2, "detect": 1.0}
    simulate(noise, **options)
    _, done = simulate(noise, **options, quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert not done
    assert "from a few steps" not in said
    assert "(from 8 seeds finished here" in said
    _, done = simulate(noise, **{**options, "seeds": 10})
    assert len(done) == 4


def test_nothing_is_timed_where_each_job_waits_in_a_queue(tmp_path, capsys):
    plan = plan_comparison([SE], control=False, seeds=8, training=TRAINING)
    comparison = Comparison(plan, {}, tmp_path, "slurm", None, "en", quiet=False)
    comparison._say_what_is_to_come()
    assert comparison.runner.workers is None
    assert "for all seeds" not in capsys.readouterr().err
