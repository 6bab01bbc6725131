from dataclasses import fields

import pytest

from foveal.train.config import MOVABLE, TrainConfig


def test_every_option_explains_itself():
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser()
    parser.add_class_arguments(TrainConfig)
    helps = {action.dest: action.help for action in parser._actions}
    assert [field.name for field in fields(TrainConfig) if not helps.get(field.name)] == []


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1, got 1.0"),
        ({"ema": 1.0}, "ema must be below 1"),
        ({"image_size": 4}, "image_size must be at least 8, got 4"),
        ({"devices": 0}, "devices must be at least 1, or -1 for all, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused_with_the_rule(options, rule):
    with pytest.raises(ValueError, match=rule):
        TrainConfig(**options)


def test_names_that_are_no_option_are_refused():
    with pytest.raises(ValueError, match="options of train only, got epoks, lrr"):
        TrainConfig.from_dict({"lrr": 1, "epoks": 3, "lr": 0.2})


def test_movable_options_exist():
    assert set(MOVABLE) <= {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn"])
def test_a_strategy_that_is_not_held_here_is_refused_and_ddp_named(strategy):
    with pytest.raises(ValueError, match=f"strategy must be one of auto, ddp, .* got {strategy}: .*take ddp"):
        TrainConfig(strategy=strategy)
