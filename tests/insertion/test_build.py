"""From what the user names to a block."""

import functools

import pytest
import torch
from torch import nn

import foveal
from foveal.errors import FovealError
from foveal.nn import CBAM


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return foveal.create_model("cifar_resnet8", num_classes=10).eval()


def test_a_block_of_ones_own_keeps_the_name_of_its_class_and_what_a_partial_fixes():
    class ECA(nn.Module):
        def __init__(self, channels, kernel=3):
            super().__init__()

        def forward(self, x):
            return x

    (one,) = foveal.inserted(foveal.insert(small(), functools.partial(ECA, kernel=5), stages=(3,)))
    assert (one.block, one.options, one.path) == ("ECA", {"kernel": 5}, "layer3.0.bn2.eca")
    (one,) = foveal.inserted(
        foveal.insert(small(), functools.partial(CBAM, reduction=4, arrangement="parallel"), stages=(3,))
    )
    assert (one.block, one.options) == ("cbam", {"reduction": 4, "arrangement": "parallel"})


def test_a_block_of_ones_own_may_not_pass_for_one_of_ours():
    class se(nn.Identity):
        def __init__(self, channels):
            super().__init__()

    with pytest.raises(FovealError, match=r"must have another name than foveal's .*, got 'se'"):
        foveal.insert(small(), se)
