import math
from itertools import pairwise

import pytest

import foveal
from foveal.train.optim import lr_scale, make_optimizer, set_lr


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_rates_rise_to_the_highest_and_never_rise_again(schedule):
    factors = [lr_scale(step, steps=50, warmup_steps=5, schedule=schedule) for step in range(50)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(a >= b for a, b in pairwise(factors[4:]))
    assert (factors[-1] < 0.05) == (schedule != "constant")


@pytest.mark.parametrize(
    ("schedule", "share"),
    [("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2), ("poly", lambda t: (1 - t) ** 0.9)],
)
def test_rates_are_those_of_the_schedule_s_equation(schedule, share):
    found = [lr_scale(step, steps=50, warmup_steps=5, schedule=schedule) for step in range(5, 50)]
    assert found == pytest.approx([share(step / 45) for step in range(45)])


def test_set_lr_scales_each_groups_own_rate_again_and_again():
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=2), "se", reduction=4)
    optimizer = make_optimizer(net, lr=0.1, inserted_lr=0.5)
    for factor in (0.5, 0.1):
        set_lr(optimizer, factor)
        assert {g["lr"] for g in optimizer.param_groups} == {0.1 * factor, 0.5 * factor}


def test_wrong_names_are_refused_with_the_rule():
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    with pytest.raises(foveal.FovealError, match="optimizer must be sgd or adamw, got lion"):
        make_optimizer(net, optimizer="lion", lr=0.1)
    with pytest.raises(foveal.FovealError, match="schedule must be"):
        lr_scale(1, steps=2, schedule="step")
