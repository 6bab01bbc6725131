"""Mistakes in options are refused in one line that states the rule and what came."""

import pytest
import torch

from foveal.errors import FovealError
from foveal.nn import check

UNTYPED = pytest.mark.skipif(
    hasattr(check.positive, "__wrapped__"),
    reason="under --jaxtyping-packages the annotations refuse first",
)


@pytest.mark.parametrize(
    "value", [0, -1, True, pytest.param(2.0, marks=UNTYPED), pytest.param("3", marks=UNTYPED)]
)
def test_a_width_is_a_whole_number_from_one(value):
    with pytest.raises(FovealError, match="inner must be a whole number of at least 1, got"):
        check.positive(inner=value)
    check.positive(inner=1)


def test_a_width_is_the_one_given_or_a_part_of_the_channels():
    assert check.default_width(16, 8, key_width=None) == 2
    assert check.default_width(16, 8, key_width=5) == 5
    assert check.reduced_width(64, 16, None) == 4
    assert check.reduced_width(8, 16, 1) == 1
    with pytest.raises(
        FovealError, match=r"channels must be at least 8 \(or key_width given.* got channels=7"
    ):
        check.default_width(7, 8, key_width=None)
    with pytest.raises(FovealError, match="at least 1 hidden channel, got channels=8, reduction=16"):
        check.reduced_width(8, 16, None)


@pytest.mark.parametrize("shape", [(2, 8), (2, 7, 3), (2, 8, 3), (2, 8, 3, 3, 3), (2, 8, 1, 1, 1, 1)])
def test_a_map_of_other_channels_or_sizes_is_refused(shape):
    with pytest.raises(FovealError, match=r"input must be \(batch, 8 channels, 2 spatial sizes\), got shape"):
        check.feature_map(torch.zeros(shape), 8, 2)


def test_a_choice_names_all_that_there_are():
    with pytest.raises(FovealError, match="start must be one of 'paper', 'identity', got 'half'"):
        check.choice("start", "half", ["paper", "identity"])
