from dataclasses import fields

import pytest

from foveal.cli.options import field_docs
from foveal.tasks import TASKS
from foveal.train.config import RESUMABLE_OPTIONS, TrainConfig


@pytest.mark.parametrize(
    "kind", [TrainConfig, *(kind for t in TASKS.values() for kind in (t.Options, t.InferenceOptions))]
)
def test_every_option_explains_itself(kind):
    described = field_docs(kind)
    assert [field.name for field in fields(kind) if not described.get(field.name)] == []


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"mixup": -1.0}, "mixup must be at least 0, got -1.0"),
        ({"task": "segment", "mixup": 0.1}, "task segment only, got mixup"),
        ({"task": "sing"}, "task must be one of classify, segment, detect, generate, clips, got sing"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, got lion"),
        ({"ema": 1.0}, "ema must be below 1"),
        ({"image_size": 4}, "image_size must be at least 8, got 4"),
        ({"image_size": 100_000}, "image_size must be at most 8192, got 100000"),
        ({"devices": 0}, "devices must be at least 1, or -1 for all, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused_with_the_rule(options, rule):
    with pytest.raises(ValueError, match=rule):
        TrainConfig.from_dict(options)


def test_names_that_are_no_option_are_refused():
    with pytest.raises(ValueError, match="task classify only, got epoks, lrr"):
        TrainConfig.from_dict({"lrr": 1, "epoks": 3, "lr": 0.2})


def test_resumable_options_exist():
    assert set(RESUMABLE_OPTIONS) <= {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn"])
def test_a_strategy_that_is_not_held_here_is_refused_and_ddp_named(strategy):
    with pytest.raises(ValueError, match=f"strategy must be one of auto, ddp, .* got {strategy}: .*take ddp"):
        TrainConfig(strategy=strategy)


def test_the_rate_suits_the_optimizer_unless_it_is_given():
    assert TrainConfig(optimizer="sgd").lr == 0.1
    assert TrainConfig(optimizer="adamw").lr == 1e-3
    assert TrainConfig(optimizer="adamw", lr=0.5).lr == 0.5


def test_what_must_be_the_same_on_every_node_says_nothing_of_places():
    here = TrainConfig(data="/a", out="/b", workers=2, data_options={"root": "/a", "split_seed": 1})
    there = TrainConfig(data="/c", out="/d", data_options={"cache": "/c", "split_seed": 1})
    assert here.of_all_nodes == there.of_all_nodes
    for other in (
        {"lr": 0.5},
        {"seed": 1},
        {"task_options": {"mixup": 0.2}},
        {"data_options": {"split_seed": 2}},
    ):
        assert TrainConfig(**{"data_options": {"split_seed": 1}, **other}).of_all_nodes != here.of_all_nodes


def test_a_config_is_flat_in_a_file_and_comes_back_the_same():
    config = TrainConfig.from_dict({"task": "segment", "ohem": True, "epochs": 3})
    assert config.options.ohem
    assert TrainConfig.from_dict(config.to_dict()) == config
