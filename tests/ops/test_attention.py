"""Every backend equals the literal equation, outputs and gradients, and stores nothing of size n x m."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.measure import peak_bytes
from foveal.ops import attention, reference
from foveal.ops.kernels import streamed

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.008, torch.float16: 0.001}
DTYPES = st.sampled_from(list(TOLERANCE))
FAST = {
    "streamed": lambda q, k, v: attention.softmax_attention(q, k, v, scale=0.7, backend="streamed"),
    "sdpa": lambda q, k, v: attention.softmax_attention(q, k, v, scale=0.7, backend="sdpa"),
    "reference": lambda q, k, v: attention.softmax_attention(q, k, v, scale=0.7, backend="reference"),
}


UNTYPED = pytest.mark.skipif(
    hasattr(attention.explain, "__wrapped__"),
    reason="under --jaxtyping-packages the annotations refuse first",
)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles small enough that a test's few positions need several of every kind, uneven ones too."""
    monkeypatch.setattr(
        streamed, "_tiles", lambda batch, n, m, width=1: (min(batch, 2), min(n, 7), min(m, 10))
    )


def qkv(batch=2, n=33, m=47, d=4, e=6, dtype=torch.float64, transposed=False, scale=1.0):
    def draw(size, width):
        if transposed:
            return torch.randn(batch, width, size, dtype=dtype).mT
        return torch.randn(batch, size, width, dtype=dtype)

    return scale * draw(n, d), draw(m, d), draw(m, e)


def assert_equal(fast, literal, inputs, tolerance):
    """Output and every gradient against the equation in float64, relative to the largest magnitude among them."""
    mine = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, z = fast(*mine), literal(*exact)
    assert y.dtype == inputs[-1].dtype
    assert y.shape == z.shape
    u = torch.randn_like(z).to(y.dtype)
    ours = y, *torch.autograd.grad(y, mine, u)
    theirs = z, *torch.autograd.grad(z, exact, u.double())
    scale = max(x.abs().max().item() for x in theirs)
    for x, exact_x in zip(ours, theirs, strict=True):
        assert (x.double() - exact_x).abs().max().item() <= tolerance * scale


def literal_softmax(q, k, v):
    return reference.softmax_attention(q, k, v, scale=0.7)


# ------------------------------------------------------------------------------------------------------- softmax


@pytest.mark.usefixtures("small_tiles")
class TestSoftmaxAttention:
    @settings(max_examples=40, deadline=None)
    @given(
        batch=st.integers(1, 5),
        n=st.integers(1, 40),
        m=st.integers(1, 40),
        d=st.integers(1, 9),
        e=st.integers(1, 9),
        dtype=DTYPES,
        transposed=st.booleans(),
        scale=st.sampled_from([0.0, 1.0, 30.0]),
        seed=st.integers(0, 2**16),
    )
    def test_streamed_equals_the_equation_at_any_size_dtype_and_layout(
        self, batch, n, m, d, e, dtype, transposed, scale, seed
    ):
        torch.manual_seed(seed)
        inputs = qkv(batch, n, m, d, e, dtype, transposed, scale)
        # a score of magnitude s is rounded by s eps, and so is its weight; the output, saved for backward in its
        # own dtype, comes times the query in the gradient of the key
        largest = max(
            (inputs[0].double() @ inputs[1].double().mT).abs().max().item(), inputs[0].abs().max().item()
        )
        assert_equal(FAST["streamed"], literal_softmax, inputs, TOLERANCE[dtype] * max(largest / 4, 1))

    @pytest.mark.parametrize("backend", FAST)
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("widths", [(4, 4), (3, 8), (8, 3), (1, 1), (1, 5), (5, 1), (2, 2), (3, 3)])
    def test_every_backend_equals_the_equation(self, backend, transposed, widths):
        d, e = widths
        assert_equal(FAST[backend], literal_softmax, qkv(d=d, e=e, transposed=transposed), 1e-12)
        assert_equal(
            FAST[backend], literal_softmax, qkv(d=d, e=e, transposed=transposed, dtype=torch.bfloat16), 0.02
        )

    @pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 9, 11, 2, 3), (1, 2, 23, 3, 1)])
    @pytest.mark.parametrize("backend", ["streamed", "sdpa"])
    def test_gradients_pass_gradcheck(self, backend, shape):
        assert torch.autograd.gradcheck(FAST[backend], [x.requires_grad_() for x in qkv(*shape)])

    @pytest.mark.parametrize("mask_shape", [(2, 33, 47), (1, 33, 47), (2, 1, 47), (1, 1, 47)])
    @pytest.mark.parametrize("scale", [1.0, 100.0])
    def test_a_mask_of_any_broadcast_shape_hides_keys(self, mask_shape, scale):
        mask = torch.rand(mask_shape) > 0.4
        assert_equal(
            lambda *x: attention.softmax_attention(*x, mask=mask),
            lambda *x: reference.softmax_attention(*x, mask=mask),
            qkv(scale=scale),
            1e-12,
        )

    def test_a_query_without_a_key_gives_zero_and_no_gradient(self):
        mask = torch.ones(1, 33, 47, dtype=torch.bool)
        mask[:, 5] = False
        q, k, v = (x.requires_grad_() for x in qkv())
        y = attention.softmax_attention(q, k, v, mask=mask)
        y.sum().backward()
        assert y[:, 5].eq(0).all()
        assert q.grad[:, 5].eq(0).all()
        assert not any(x.grad.isnan().any() for x in (q, k, v))

    def test_a_hidden_key_with_the_largest_score_does_not_starve_the_others(self):
        q, k, v = qkv(n=9, m=30, dtype=torch.float32)
        k[:, 12] *= 1000
        mask = torch.ones(1, 1, 30, dtype=torch.bool)
        mask[..., 12] = False
        y = attention.softmax_attention(q, k, v, mask=mask)
        kept = torch.arange(30) != 12
        torch.testing.assert_close(y, reference.softmax_attention(q, k[:, kept], v[:, kept]))

    def test_scores_from_minus_to_plus_a_million_neither_overflow_nor_vanish(self):
        for sign in (1, -1):
            q, k, v = qkv(dtype=torch.float32)
            k[..., 0], q[..., 0] = 1e3 + k[..., 0], sign * 1e3
            exact = reference.softmax_attention(q.double(), k.double(), v.double())
            # a score of 1e6 is known to 0.06 in float32, its weight to 6 %
            torch.testing.assert_close(
                attention.softmax_attention(q, k, v).double(), exact, rtol=0.2, atol=0.3
            )

    def test_a_missing_value_shows(self):
        q, k, v = qkv(batch=1)
        k[0, 3, 0] = float("nan")
        assert attention.softmax_attention(q, k, v).isnan().all()


@pytest.mark.parametrize("backend", ["auto", "reference", "streamed", "sdpa"])
@pytest.mark.parametrize(("batch", "n"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("e", [4, 6])
def test_no_query_gives_an_empty_result_and_gradients_of_zero(backend, batch, n, e):
    inputs = [x.requires_grad_() for x in qkv(batch, n, 7, 4, e)]
    y = attention.softmax_attention(*inputs, backend=backend)
    assert y.shape == (batch, n, e)
    y.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in inputs)


@pytest.mark.parametrize(("batch", "n"), [(0, 5), (2, 0)])
def test_no_query_suits_the_other_similarities_too(batch, n):
    q, k, v = (x.requires_grad_() for x in qkv(batch, n, 7))
    weight = torch.ones(4, dtype=torch.float64)
    for y in (attention.cosine_attention(q, k, v), attention.perceptron_attention(q, k, weight, v)):
        assert y.shape == (batch, n, 6)
        y.sum().backward()


def test_energies_stay_in_float32_for_half_inputs_and_under_autocast():
    # two scores 0.1 apart near 100: one in bfloat16, where their weights would be equal
    q = torch.full((1, 1, 2), 1.0)
    k, v = torch.tensor([[[100.0, 0.0], [100.0, 0.1]]]), torch.tensor([[[0.0], [1.0]]])
    expected = torch.sigmoid(torch.tensor(0.1)).item()
    half = attention.softmax_attention(*(x.bfloat16() for x in (q, k, v)), backend="streamed")
    assert half.item() == pytest.approx(expected, abs=2e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.softmax_attention(q, k, v, backend="streamed").item() == pytest.approx(
            expected, abs=1e-4
        )
        assert attention.softmax_attention(q, k, v, backend="reference").item() == pytest.approx(
            expected, abs=1e-4
        )


def test_the_result_has_the_memory_order_of_the_values():
    assert attention.softmax_attention(*qkv(transposed=True)).mT.is_contiguous()
    assert attention.softmax_attention(*qkv()).is_contiguous()


@pytest.mark.parametrize("backend", ["streamed", "sdpa"])
def test_peak_memory_is_independent_of_n_times_m(backend):
    n, width = 4096, 8
    inputs = [x.requires_grad_() for x in qkv(1, n, n, width, width, torch.float32)]
    peak = peak_bytes(lambda: attention.softmax_attention(*inputs, backend=backend).sum().backward())
    assert peak < 3 * 4 * streamed.TILE_ELEMENTS + 20 * n * width * 4 < n * n * 4 / 4


# -------------------------------------------------------------------------------------------- choosing a backend


def test_explain_names_the_backend_that_runs_and_a_reason_for_every_other():
    q, k, v = qkv()
    unequal, equal, masked = (
        attention.explain(q, k, v),
        attention.explain(q, k, k),
        attention.explain(q, k, k, mask=torch.ones(1, 1, 47, dtype=torch.bool)),
    )
    assert [choice.backend for choice in (unequal, equal, masked)] == ["streamed", "sdpa", "streamed"]
    assert "keys are all masked" in masked.others["sdpa"]
    for choice in (unequal, equal, masked):
        assert {choice.backend, *choice.others} == set(attention.BACKENDS)
        assert all(choice.others.values())


def test_auto_is_what_explain_says():
    for inputs in (qkv(), qkv(d=6)):
        choice = attention.explain(*inputs)
        auto = attention.softmax_attention(*inputs)
        assert torch.equal(auto, attention.softmax_attention(*inputs, backend=choice.backend))


def test_a_backend_that_cannot_run_says_why_and_names_one_that_can():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r'backend "triton" cannot run, Triton .*; "streamed" can'):
        attention.softmax_attention(q, k, v, backend="triton")
    with pytest.raises(ValueError, match=r"want one dtype, got torch\.float32"):
        attention.softmax_attention(q.float(), k, v, backend="sdpa")
    with pytest.raises(
        ValueError, match="must be one of auto, reference, streamed, sdpa, triton, got 'flash'"
    ):
        attention.softmax_attention(q, k, v, backend="flash")


@UNTYPED
def test_shapes_and_masks_that_do_not_fit_are_refused():
    q, k, v = qkv()
    for function in (attention.softmax_attention, attention.cosine_attention, attention.explain):
        with pytest.raises(
            ValueError, match=r"must share b, d and m, got \(2, 33, 4\), \(2, 47, 3\), \(2, 47, 6\)"
        ):
            function(q, k[..., 1:], v)
    with pytest.raises(
        ValueError, match=r"mask must be bool, True where a key may be attended to, got torch.int64"
    ):
        attention.explain(q, k, v, mask=torch.ones(1, 1, 47, dtype=torch.int64))


# ------------------------------------------------------------------------- cosine, perceptron, channel attention


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True])
def test_cosine_and_perceptron_attention_equal_their_equations(dtype, transposed):
    q, k, v = qkv(3, 20, 27, dtype=dtype, transposed=transposed)
    q[0, 3] = 0
    tolerance = TOLERANCE[dtype] * 4
    if dtype in (torch.float64, torch.float32):  # at a zero vector the gradient is 1e12, in every precision
        assert_equal(
            lambda *x: attention.cosine_attention(*x, scale=5.0),
            lambda *x: reference.cosine_attention(*x, scale=5.0),
            (q, k, v),
            tolerance,
        )
    weight = torch.randn(4, dtype=dtype)
    assert_equal(attention.perceptron_attention, reference.perceptron_attention, (q, k, weight, v), tolerance)


@pytest.mark.usefixtures("small_tiles")
def test_perceptron_gradients_pass_gradcheck():
    q, k, v = qkv(2, 9, 12, 3, 2)
    inputs = [x.requires_grad_() for x in (q, k, torch.randn(3, dtype=torch.float64), v)]
    assert torch.autograd.gradcheck(attention.perceptron_attention, inputs)


def test_perceptron_attention_stores_nothing_of_size_n_times_m():
    n = 2048
    q, k, v = qkv(1, n, n, 4, 8, torch.float32)
    inputs = [x.requires_grad_() for x in (q, k, torch.randn(4), v)]
    peak = peak_bytes(lambda: attention.perceptron_attention(*inputs).sum().backward())
    assert peak < 3 * 4 * streamed.TILE_ELEMENTS + 20 * n * 8 * 4 < n * n * 4


@UNTYPED
def test_perceptron_attention_refuses_a_weight_of_another_width():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"must be as wide as the keys, 4, got \(3,\)"):
        attention.perceptron_attention(q, k, torch.randn(3).double(), v)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_channel_attention_equals_its_equation(form):
    for scale, dtype in [(1, torch.float64), (3, torch.float64), (1, torch.float32)]:
        x = scale * torch.randn(2, 7, 33, dtype=dtype)
        fast, literal = (
            lambda x, f=f: f(x, form) for f in (attention.channel_attention, reference.channel_attention)
        )
        assert_equal(fast, literal, (x,), 1e-12 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_channel_energies_do_not_overflow_in_half_precision(form):
    x = 4 * torch.randn(1, 8, 97 * 97, dtype=torch.float16)
    assert (x[0, 0].float() @ x[0, 0].float()) > torch.finfo(torch.float16).max
    y = attention.channel_attention(x, form)
    exact = reference.channel_attention(x.double(), form)
    assert (y - exact).abs().max() <= 2e-3 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            attention.channel_attention(x.float(), form).double(), exact, rtol=1e-3, atol=1e-2
        )


def test_channel_attention_refuses_an_unknown_form():
    with pytest.raises(ValueError, match='form must be "code" or "paper", got \'reversed\''):
        attention.channel_attention(torch.randn(1, 2, 3), "reversed")


# ----------------------------------------------------------------------------------- compiling, exporting, tracing


class Attentions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, q, k, v):
        y = attention.softmax_attention(q, k, v) + attention.cosine_attention(q, k, v)
        y = y + attention.perceptron_attention(q, k, self.weight, v)
        equal = attention.softmax_attention(q, k, k)
        return y + F.pad(equal, (0, v.shape[-1] - equal.shape[-1])) + attention.channel_attention(y.mT).mT


def test_compiles_into_one_graph_at_any_size():
    torch.compiler.reset()
    net = Attentions()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, m in [(20, 10), (21, 13)]:
        inputs = [x.requires_grad_() for x in qkv(2, n, m, dtype=torch.float32)]
        ours = torch.autograd.grad(compiled(*inputs).sum(), inputs)
        theirs = torch.autograd.grad(net(*inputs).sum(), inputs)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_exports_with_dynamic_sizes_and_operators_every_runtime_knows():
    n, m = torch.export.Dim("n", min=2), torch.export.Dim("m", min=2)
    inputs = qkv(dtype=torch.float32)
    program = torch.export.export(Attentions(), inputs, dynamic_shapes=({1: n}, {1: m}, {1: m}))
    assert not any("foveal" in str(node.target) for node in program.graph.nodes)
    other = qkv(2, 7, 60, dtype=torch.float32)
    torch.testing.assert_close(program.module()(*other), Attentions()(*other), atol=1e-5, rtol=1e-4)


class Scaled(torch.nn.Module):
    def forward(self, q, k, v):
        return attention.softmax_attention(q, k, v, scale=0.7)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("for_pytorch", [False, True])
def test_recorded_attention_is_what_other_runtimes_compute_in_tiles(for_pytorch, transposed):
    n, m = torch.export.Dim("n", min=2), torch.export.Dim("m", min=2)
    inputs = qkv(dtype=torch.float32, transposed=transposed)
    with attention.recording_for_pytorch() if for_pytorch else nullcontext():
        program = torch.export.export(Scaled(), inputs, dynamic_shapes=({1: n}, {1: m}, {1: m}))
    called = {str(node.target).removeprefix("aten.").partition(".")[0] for node in program.graph.nodes}
    assert ("scaled_dot_product_attention" in called) == for_pytorch
    assert ("softmax" in called) != for_pytorch
    assert (
        not {"exp", "amax", "sub", "div"} & called
    )  # the pieces of a softmax, which no runtime puts together
    other = qkv(2, 7, 60, dtype=torch.float32, transposed=transposed)
    torch.testing.assert_close(program.module()(*other), Scaled()(*other), atol=1e-5, rtol=1e-4)


# opcheck itself looks at the gradients of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_operators_are_registered_as_pytorch_wants():
    q, k, v = (x.requires_grad_() for x in qkv(1, 4, 5, 2, 3, transposed=True))
    mask = torch.rand(1, 4, 5) > 0.2
    torch.library.opcheck(torch.ops.foveal.softmax_attention.default, (q, k, v, mask, 0.5))
    weight = torch.randn(2, dtype=torch.float64).requires_grad_()
    torch.library.opcheck(torch.ops.foveal.perceptron_attention.default, (q, k, weight, v))


def test_a_second_derivative_raises():
    q, k, v = (x.requires_grad_() for x in qkv())
    (grad,) = torch.autograd.grad(attention.softmax_attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_few_scores_are_written_out_and_more_go_in_tiles(monkeypatch):
    monkeypatch.setattr(attention, "FEW_SCORES", 2 * 33 * 47)
    q, k, v = qkv()
    assert attention.explain(q, k, v).backend == "reference"
    more_keys = torch.cat([k, k[:, :1]], 1), torch.cat([v, v[:, :1]], 1)
    assert attention.explain(q, *more_keys).backend == "streamed"
    assert_equal(attention.softmax_attention, reference.softmax_attention, (q, k, v), 1e-13)
    transposed = attention.softmax_attention(*qkv(transposed=True))
    assert transposed.mT.is_contiguous()
