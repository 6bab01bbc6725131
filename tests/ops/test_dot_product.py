"""The regrouped dot product equals the literal equation, with gradients, and takes the cheaper order."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.equal import assert_equal

from foveal.ops import reference
from foveal.ops.dot_product import dot_product

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.008, torch.float16: 0.001}


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 60),
    m=st.integers(1, 60),
    d=st.integers(1, 40),
    e=st.integers(1, 40),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
)
def test_dot_product_equals_the_equation_in_either_order(batch, n, m, d, e, dtype, transposed):
    def draw(size, width):
        if transposed:
            return torch.randn(batch, width, size, dtype=dtype).mT
        return torch.randn(batch, size, width, dtype=dtype)

    inputs = draw(n, d), draw(m, d), draw(m, e)
    fast, literal = (lambda *x, f=f: f(*x, scale=0.5) for f in (dot_product, reference.dot_product))
    assert_equal(fast, literal, inputs, TOLERANCE[dtype])


def test_dot_product_takes_the_cheaper_order():
    def multiplications(n, width):
        from torch.utils.flop_counter import FlopCounterMode

        x = torch.randn(1, n, width)
        with FlopCounterMode(display=False) as counter:
            dot_product(x, x, x)
        return counter.get_total_flops() // 2

    assert multiplications(500, 8) == 2 * 500 * 8 * 8
    assert multiplications(8, 500) == 2 * 8 * 8 * 500


def test_half_sums_do_not_overflow():
    x = torch.full((1, 5000, 4), 10.0, dtype=torch.float16)
    assert torch.allclose(dot_product(x, x, x), torch.full_like(x, 4000.0))


def test_autocast_leaves_the_sums_in_float32():
    theta, phi, g = torch.randn(3, 2, 20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        cast = dot_product(theta, phi, g)
    assert torch.equal(cast, dot_product(theta, phi, g))


def test_the_result_has_the_memory_order_of_the_values():
    theta, phi = torch.randn(2, 33, 4), torch.randn(2, 47, 4)
    assert dot_product(theta, phi, torch.randn(2, 5, 47).mT).mT.is_contiguous()
    assert dot_product(theta, phi, torch.randn(2, 47, 5)).is_contiguous()
