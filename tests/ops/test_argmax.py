"""The fast maximum with its place is ``torch.max``, ties, NaN and all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.ops.argmax import max_and_argmax, smallest_int


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 200),
    positions=st.sampled_from([1, 7, 64, 100, 1023, 1024, 1031, 2500]),
    dim=st.sampled_from([1, 2]),
    last=st.booleans(),
    values=st.sampled_from(["distinct", "tied", "equal", "nan", "inf"]),
)
def test_maximum_and_argmax_are_torchs(batch, channels, positions, dim, last, values):
    generator = torch.Generator().manual_seed(positions + channels)
    x = torch.randn(batch, channels, positions, generator=generator)
    if values == "tied":
        x = x.round()
    elif values == "equal":
        x = torch.zeros_like(x)
    elif values in ("nan", "inf"):
        x[:, channels // 2, positions // 3] = float(values)
    if last:
        x = x.mT.contiguous().mT
    found = max_and_argmax(x, dim)
    wanted = x.max(dim)
    assert torch.equal(found[0].nan_to_num(99.0), wanted.values.nan_to_num(99.0))
    assert torch.equal(found[1], wanted.indices)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 2**15, 2**15 + 1, 2**31])
def test_the_smallest_integer_type_holds_the_last_index(size):
    index = torch.tensor([0, size - 1])
    assert torch.equal(smallest_int(index, size).long(), index)


def test_few_places_take_one_byte():
    assert smallest_int(torch.tensor([0]), 256).dtype == torch.uint8
