"""The state of a block: the same where nothing changed, and the first change by name."""

import torch
from torch import nn

from foveal.look.changes import block_state


def test_nothing_differs_where_nothing_changed() -> None:
    block = nn.Sequential(nn.Linear(300, 7), nn.BatchNorm1d(7)).eval()
    before = block_state(block)
    block(torch.rand(2, 300))
    assert before.difference(block_state(block)) is None


def test_one_value_of_many_is_noticed_wherever_it_is() -> None:
    block = nn.Linear(300, 7)
    for place in (0, 127, 128, 2099):
        before = block_state(block)
        block.weight.data.view(-1)[place] += 1e-6
        assert before.difference(block_state(block)) == "the values of its weight changed"


def test_running_statistics_count_in_eval_mode_only() -> None:
    block = nn.BatchNorm1d(7)
    before = block_state(block)
    block(torch.rand(3, 7))
    assert before.difference(block_state(block)) is None
    before = block_state(block, {"": False})
    block(torch.rand(3, 7))
    difference = before.difference(block_state(block, {"": False}))
    assert difference == "the values of its running_mean changed"


def test_complex_empty_and_scalar_values_are_taken_down_too() -> None:
    block = nn.Module()
    block.register_buffer("wave", torch.ones(3, dtype=torch.complex64))
    block.register_buffer("none", torch.ones(0, 3))
    block.register_buffer("one", torch.tensor(1.0))
    before = block_state(block)
    assert before.difference(block_state(block)) is None
    block.wave *= 1j
    assert before.difference(block_state(block)) == "the values of its wave changed"


def test_values_that_change_places_or_all_double_are_noticed() -> None:
    """Sums and parities of the bits would miss these."""
    block = nn.Linear(256, 600)
    for change in (
        lambda w: w.flip(0),
        lambda w: w.flip(1),
        lambda w: w * 2,
        lambda w: w.roll(2**16),
        lambda w: -w,
    ):
        before = block_state(block)
        block.weight.data = change(block.weight.data)
        assert before.difference(block_state(block)) == "the values of its weight changed"


def test_every_precision_is_taken_down() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn):
        block = nn.Module()
        block.register_buffer("values", torch.ones(5).to(dtype))
        before = block_state(block)
        assert before.difference(block_state(block)) is None
        block.values = torch.zeros(5).to(dtype)
        assert before.difference(block_state(block)) == "the values of its values changed"
