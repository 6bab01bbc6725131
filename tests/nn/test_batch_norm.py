import pytest
import torch
from torch import nn

from foveal.nn.batch_norm import BatchNorm


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("size", "builtin"), [((5,), nn.BatchNorm1d), ((5, 3), nn.BatchNorm2d), ((2, 5, 3), nn.BatchNorm3d)]
)
def test_is_pytorchs_own_where_that_is_defined(train, size, builtin, randomise):
    theirs = randomise(builtin(4)).train(train)
    ours = BatchNorm(4).train(train)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, *size)
    still = ours.without_update(x)
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(still, ours.without_update(x) if train else ours(x))
    assert torch.equal(ours.running_mean, theirs.running_mean)


def test_a_single_value_uses_the_running_statistics_and_keeps_them(randomise):
    norm = randomise(BatchNorm(4))
    kept = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 4, 1, 1)
    y = norm.train()(x)
    assert torch.equal(y, norm.eval()(x))
    assert torch.equal(norm.running_mean, kept[0])
    assert torch.equal(norm.running_var, kept[1])
