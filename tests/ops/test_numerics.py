"""Dtypes of sums and memory orders are what the operators rely on."""

import pytest
import torch

from foveal.ops import numerics


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (1, 7, 2), (3, 1, 4), (0, 5, 3)])
def test_results_are_stored_as_their_values_are(shape, dtype):
    plain = torch.randn(shape).to(dtype)
    transposed = plain.mT.contiguous().mT
    for value in (plain, transposed):
        y = torch.randn(shape[0], 6, shape[2], dtype=numerics.sum_dtype(value))
        stored = numerics.stored_like_value(y, value)
        assert torch.equal(stored, y.to(dtype))
        assert numerics.empty_like_value(value, 6).shape == y.shape
        assert numerics.empty_like_value(value, 6).dtype == dtype
        if min(shape) > 1:
            assert stored.is_contiguous() is (value is plain)
            assert numerics.empty_like_value(value, 6).is_contiguous() is (value is plain)
        rows = numerics.contiguous_rows(value)
        assert rows.is_contiguous()
        assert torch.equal(rows, value.to(numerics.sum_dtype(value)))


def test_only_float64_is_summed_in_float64():
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    sums = [numerics.sum_dtype(torch.zeros(1, dtype=dtype)) for dtype in dtypes]
    assert sums == [torch.float32] * 3 + [torch.float64]


def test_autocast_is_off_inside_and_on_again_after():
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with numerics.autocast_disabled(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    with numerics.autocast_disabled(torch.device("meta")):
        pass


def test_exporting_is_true_while_a_graph_is_recorded_and_not_otherwise():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append(numerics.exporting())
            return x + 1

    Net()(torch.zeros(2))
    torch.export.export(Net(), (torch.zeros(2),))
    assert seen[0] is False
    assert seen[1:]
    assert all(seen[1:])


def test_a_query_without_values_is_empty():
    assert numerics.is_empty(torch.zeros(0, 3))
    assert not numerics.is_empty(torch.zeros(1, 3))
