"""The sorted sums equal the literal equations, with gradients, on hard inputs too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.equal import assert_equal

from foveal.measure import peak_bytes
from foveal.ops import concatenation, dot_product, reference


def leaky(slope):
    return (
        lambda a, b, v: concatenation.concatenation_attention(a, b, v, negative_slope=slope),
        lambda a, b, v: reference.concatenation_attention(a, b, v, negative_slope=slope),
    )


SORTED = {
    "concatenation": (concatenation.concatenation, reference.concatenation),
    "attention, ReLU": leaky(0.0),
    "attention, leaky": leaky(0.2),
    "attention, linear": leaky(1.0),
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.008, torch.float16: 0.001}
BOTH = pytest.mark.parametrize(("fast", "literal"), SORTED.values(), ids=SORTED)


def scores(batch=2, n=33, m=47, e=5, dtype=torch.float64, transposed=False, scale=1.0):
    a, b = (scale * torch.randn(batch, size, dtype=dtype) for size in (n, m))
    value = torch.randn(batch, e, m, dtype=dtype).mT if transposed else torch.randn(batch, m, e, dtype=dtype)
    return a, b, value


@BOTH
@pytest.mark.parametrize(("batch", "n"), [(0, 5), (2, 0)])
def test_no_query_gives_an_empty_result_and_gradients_of_zero(fast, literal, batch, n):
    inputs = [x.requires_grad_() for x in scores(batch, n, 7)]
    y = fast(*inputs)
    assert y.shape == literal(*inputs).shape
    y.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in inputs)


@BOTH
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 80),
    m=st.integers(1, 80),
    e=st.integers(1, 9),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_sorted_sums_equal_the_equation_at_any_size_dtype_and_layout(
    fast, literal, batch, n, m, e, dtype, transposed, scale, seed
):
    torch.manual_seed(seed)
    inputs = scores(batch, n, m, e, dtype, transposed, scale)
    assert_equal(fast, literal, inputs, TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 1, 3), (2, 1, 6, 2), (1, 9, 70, 3)])
def test_gradients_pass_gradcheck(fast, literal, shape):
    assert torch.autograd.gradcheck(fast, [x.requires_grad_() for x in scores(*shape)])


@BOTH
def test_ties_and_thresholds_that_meet_exactly(fast, literal):
    # every sum a_i + b_j is one of -1, 0, 1, and ReLU's derivative at 0 is 0, as PyTorch has it
    a, b = torch.randint(0, 2, (2, 20)).double(), -torch.randint(0, 2, (2, 40)).double()
    assert_equal(fast, literal, (a, b, torch.randn(2, 40, 3, dtype=torch.float64)), 1e-14)


@BOTH
def test_no_key_is_seen_when_every_b_is_far_below(fast, literal):
    a, b, value = scores()
    assert_equal(fast, literal, (a, b - 100, value), 1e-12)
    assert_equal(fast, literal, (a, b + 100, value), 1e-12)


@BOTH
def test_a_large_common_offset_costs_no_precision(fast, literal):
    a, b, value = scores(1, 300, 300, 4, torch.float32)
    assert_equal(fast, literal, (a + 4096, b - 4096, value), 4e-6)


@BOTH
def test_large_scores_do_not_overflow(fast, literal):
    a, b, value = scores(dtype=torch.float32)
    assert_equal(fast, literal, (1e4 * a, 1e4 * b, value), 4e-6)


def test_a_missing_key_score_shows():
    a, b, value = scores(batch=1)
    b[0, 3] = float("nan")
    for fast, _ in SORTED.values():
        assert fast(a, b, value).isnan().all()


@BOTH
def test_rounding_does_not_grow_with_the_number_of_positions(fast, literal):
    # against the same function in float64, which the tests above hold to the equation
    torch.manual_seed(0)
    inputs = scores(1, 40000, 40000, 2, torch.float32)
    a, b, value = (x.double() for x in inputs)
    error = fast(*inputs) - fast(a, b, value)
    assert (error.abs() <= 1e-6 * fast(a, b, value.abs()).max()).all()


def test_autocast_leaves_the_sums_in_float32():
    a, b, value = scores(dtype=torch.float32)
    plain = concatenation.concatenation(a, b, value)
    with torch.autocast("cpu", torch.bfloat16):
        cast = concatenation.concatenation(a, b, value)
    assert torch.equal(plain, cast)


# ----------------------------------------------------------------------------------------------------- promises


def test_the_result_has_the_memory_order_of_the_values():
    a, b, value = scores(transposed=True)
    for fast, _ in list(SORTED.values())[:3]:
        assert fast(a, b, value).mT.is_contiguous()


@pytest.mark.parametrize("fast", [fast for fast, _ in SORTED.values()], ids=SORTED)
def test_memory_grows_with_n_and_not_with_its_square(fast):
    n = 4096
    inputs = [x.requires_grad_() for x in scores(1, n, n, 8, torch.float32)]
    peak = peak_bytes(lambda: fast(*inputs).sum().backward())
    assert peak < 40 * n * 8 * 4 < n * n * 4 / 10


def test_a_second_derivative_raises():
    a, b, value = (x.requires_grad_() for x in scores())
    (grad,) = torch.autograd.grad(concatenation.concatenation(a, b, value).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_a_slope_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"negative_slope must be in \[0, 1\], got 1.5"):
        concatenation.concatenation_attention(*scores(), negative_slope=1.5)


# opcheck itself looks at the gradients of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_operators_are_registered_as_pytorch_wants():
    a, b, value = (x.requires_grad_() for x in scores(n=6, m=7, e=3, transposed=True))
    torch.library.opcheck(torch.ops.foveal.concatenation_attention.default, (a, b, value, 0.2))
    torch.library.opcheck(torch.ops.foveal.concatenation.default, (a, b, value))


class Pairwise(torch.nn.Module):
    def forward(self, theta, phi, g):
        a, b = theta[..., 0], phi[..., 0]
        sums = dot_product.dot_product(theta, phi, g) + concatenation.concatenation(a, b, g)
        return sums + concatenation.concatenation_attention(a, b, g, negative_slope=0.2)


def positions(n, m):
    return torch.randn(2, n, 4), torch.randn(2, m, 4), torch.randn(2, m, 8)


def test_compiles_into_one_graph_at_any_size():
    torch.compiler.reset()
    net = Pairwise()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in [(20, 10), (21, 13)]:
        inputs = [x.requires_grad_() for x in positions(*sizes)]
        ours = torch.autograd.grad(compiled(*inputs).sum(), inputs)
        theirs = torch.autograd.grad(net(*inputs).sum(), inputs)
        torch.testing.assert_close(ours, theirs)


def test_exports_with_dynamic_sizes_and_operators_every_runtime_knows():
    n, m = torch.export.Dim("n", min=2), torch.export.Dim("m", min=2)
    program = torch.export.export(Pairwise(), positions(20, 10), dynamic_shapes=({1: n}, {1: m}, {1: m}))
    assert not any("foveal" in str(node.target) for node in program.graph.nodes)
    other = positions(7, 33)
    torch.testing.assert_close(program.module()(*other), Pairwise()(*other), atol=1e-5, rtol=1e-5)


def test_symbolic_tracing_keeps_each_function_as_one_node():
    graph = torch.fx.symbolic_trace(Pairwise()).graph
    names = {getattr(node.target, "__name__", "") for node in graph.nodes}
    assert {"dot_product", "concatenation", "concatenation_attention"} <= names
