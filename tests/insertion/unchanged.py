"""That a network is what it was."""

import torch
from torch import nn


def fingerprint(net: nn.Module) -> tuple:
    """Everything that must not change: names, values, hooks, flags."""
    return (
        [(name, value.clone()) for name, value in net.state_dict().items()],
        [
            (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in net.named_modules()
        ],
    )


def assert_unchanged(net: nn.Module, before: tuple) -> None:
    state, flags = fingerprint(net)
    assert [name for name, _ in state] == [name for name, _ in before[0]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(state, before[0], strict=True))
    assert flags == before[1]
