"""Gates give the oracle's output and gradients, on any layout, and keep no map but the input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from foveal.nn import CBAM, SqueezeExcite
from foveal.ops import gate, reference

# from one value to sizes that are searched in windows, along positions (1024 up) and along channels (64 up)
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1),
    (3, 8, 5, 7),
    (2, 70, 11),
    (1, 4, 3, 5, 2),
    (2, 5, 33, 37),
    (1, 97, 40, 27),
]
LAYOUTS = ["contiguous", "channels-last", "sliced", "transposed"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels-last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "transposed":
        return x.mT.contiguous().mT
    return x


def excite(squeezed: Tensor, weight: Tensor, batch: int) -> Tensor:
    return torch.sigmoid(torch.tanh(squeezed @ weight).view(-1, batch, weight.shape[1]).sum(0))


def attend(statistics: Tensor, mix: Tensor) -> Tensor:
    return torch.sigmoid((statistics * mix.view(2, *[1] * (statistics.ndim - 2))).sum(1, keepdim=True))


def fast(x: Tensor, weight: Tensor, mix: Tensor, kind: str) -> Tensor:
    shared = gate.GateInput(x)
    channel = None
    if kind != "spatial":
        channel = excite(shared.squeeze(["mean", "max"]), weight, len(x))
    if channel is not None and kind == "channel":
        return shared.scale(channel)
    statistics, _ = shared.spatial_statistics(None if kind == "parallel" else channel)
    return shared.scale(channel, attend(statistics, mix))


def literal(x: Tensor, weight: Tensor, mix: Tensor, kind: str) -> Tensor:
    squeezed = torch.cat([reference.squeeze(x, "mean"), reference.squeeze(x, "max")])
    channel = torch.ones_like(squeezed[: len(x)]) if kind == "spatial" else excite(squeezed, weight, len(x))
    if kind == "channel":
        return reference.channel_scale(x, channel)
    spatial = attend(reference.spatial_statistics(x, None if kind == "parallel" else channel), mix)
    return reference.dual_scale(x, channel, spatial)


KINDS = ["channel", "spatial", "parallel", "channel-spatial"]


def inputs(shape, dtype, layout="contiguous", factor=1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator).to(dtype) * factor
    weight = torch.randn(shape[1], shape[1], generator=generator).to(dtype) / shape[1] ** 0.5
    mix = torch.randn(2, generator=generator).to(dtype)
    return lay_out(values, layout).requires_grad_(), weight.requires_grad_(), mix.requires_grad_()


def run(function, tensors, kind, dy=None) -> list[Tensor]:
    y = function(*tensors, kind)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) if dy is None else dy
    used = [t for t in tensors if kind != "channel" or t is not tensors[2]]
    used = [t for t in used if kind != "spatial" or t is not tensors[1]]
    return [y.detach(), *torch.autograd.grad(y, used, dy)]


def close(found, wanted, dtype) -> None:
    for one, other in zip(found, wanted, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, atol=TOLERANCE[dtype] * scale, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_the_oracles(shape, layout, kind):
    tensors = inputs(shape, torch.float32, layout)
    close(run(fast, tensors, kind), run(literal, tensors, kind), torch.float32)
    with torch.no_grad():
        close([fast(*tensors, kind)], [literal(*tensors, kind)], torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_half_precision_is_as_near_to_double_as_the_oracle(kind, layout):
    # seeded: the gradient of a single number may nearly cancel, and then no relative error means anything
    torch.manual_seed(1)
    tensors = inputs((2, 70, 33, 37), torch.bfloat16, layout)
    # equal values are common among so few digits, and ties go to other places: one clear winner everywhere
    with torch.no_grad():
        flat = torch.randn(2, 70, 33 * 37).clamp(-0.5, 0.5)
        position = torch.arange(33 * 37)
        flat[:, position % 70, position] = 5.0
        flat[:, torch.arange(70), torch.arange(70)] = 9.0
        tensors[0].copy_(flat.view(2, 70, 33, 37))
    exact = run(literal, [t.detach().double().requires_grad_() for t in tensors], kind)
    for found, plain, wanted in zip(
        run(fast, tensors, kind), run(literal, tensors, kind), exact, strict=True
    ):
        scale = wanted.abs().max()
        error, allowed = (found - wanted).abs().max() / scale, (plain - wanted).abs().max() / scale
        assert found.dtype == torch.bfloat16
        assert error <= max(2 * allowed, 0.02)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_values_stay_finite(dtype, layout):
    x = lay_out(torch.randn(1, 70, 33, 37).mul(30).add(200).to(dtype), layout).requires_grad_()
    shared = gate.GateInput(x)
    squeezed = shared.squeeze(["mean", "max"])
    statistics, _ = shared.spatial_statistics(torch.full((1, 70), 2.0, dtype=dtype))
    torch.testing.assert_close(squeezed[:1].double(), x.double().mean((2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(statistics[:, 0].double(), 2 * x.double().mean(1), rtol=1e-3, atol=0)
    (squeezed.sum() + statistics.sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_are_right(kind):
    tensors = [t.double().detach().requires_grad_() for t in inputs((2, 3, 4, 3), torch.float64)]
    used = [t for t, unused in zip(tensors, [None, "spatial", "channel"], strict=True) if kind != unused]

    def index(t):
        return next(i for i, u in enumerate(used) if u is t)

    def by_identity(*given):
        return fast(*[given[index(t)] if any(t is u for u in used) else t for t in tensors], kind)

    assert gradcheck(by_identity, used)
    assert gradgradcheck(by_identity, used)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 150),
    spatial=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(KINDS),
)
def test_any_shape_and_layout(batch, channels, spatial, layout, kind):
    tensors = inputs((batch, channels, *spatial), torch.float64, layout if len(spatial) > 1 else "contiguous")
    close(run(fast, tensors, kind), run(literal, tensors, kind), torch.float64)


def test_a_tie_sends_its_gradient_to_one_place():
    x = torch.zeros(1, 70, 40, 40, requires_grad=True)
    gate.GateInput(x).squeeze(["max"]).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.flatten(2)[..., 0], torch.ones(1, 70))
    assert x.grad.count_nonzero() == 70


# -------------------------------------------------------------------------------------------- one buffer, no surprises


def test_x_may_be_used_elsewhere_too():
    x = torch.randn(2, 4, 5, 5, requires_grad=True)

    def both(fast: bool) -> Tensor:
        shared = gate.GateInput(x)
        weights = torch.sigmoid(shared.squeeze() if fast else reference.squeeze(x))
        return (shared.scale(weights) if fast else reference.channel_scale(x, weights)) + x * 3 + x

    dy = torch.randn(2, 4, 5, 5)
    kept = dy.clone()
    found, wanted = (torch.autograd.grad(both(fast), x, dy)[0] for fast in (True, False))
    torch.testing.assert_close(found, wanted)
    assert torch.equal(dy, kept)


def test_the_gradient_that_comes_in_is_never_changed():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    for produced in (gate.GateInput(x).squeeze(["mean", "max"]), gate.spatial_statistics(x)):
        gradient = torch.randn_like(produced)
        kept = gradient.clone()
        torch.autograd.grad(produced, x, gradient)
        assert torch.equal(gradient, kept)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_map_may_be_read_any_number_of_times(layout):
    """Twice each, by gates of one's own too: no read may take what another left behind."""
    tensors = inputs((2, 6, 5, 4), torch.float64, layout)

    class Literal:
        def __init__(self, x):
            self.x = x

        def squeeze(self, statistics):
            return torch.cat([reference.squeeze(self.x, statistic) for statistic in statistics])

        def spatial_statistics(self, channel):
            return reference.spatial_statistics(self.x, channel), None

        def scale(self, channel, spatial=None):
            spatial = torch.ones_like(self.x[:, :1]) if spatial is None else spatial
            return reference.dual_scale(self.x, channel, spatial)

    def twice(make) -> Tensor:
        x, weight, mix = tensors
        shared = make(x)
        y = torch.zeros_like(x)
        for factor in (1.0, 2.0):
            channel = excite(shared.squeeze(["mean", "max"]), weight * factor, 2)
            spatial = attend(shared.spatial_statistics(channel)[0], mix * factor)
            for one in (channel * 2, channel, channel):
                y = y + shared.scale(one) + shared.scale(one, spatial)
        return y

    dy = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    found, wanted = ([y, *torch.autograd.grad(y, tensors, dy)] for y in map(twice, (gate.GateInput, Literal)))
    close(found, wanted, torch.float64)
    with torch.no_grad():
        close([twice(gate.GateInput)], [twice(Literal)], torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_without_gradients_leave_the_product_its_own(layout):
    x, _, mix = inputs((2, 6, 5, 4), torch.float64, layout)
    channel = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)

    def product(fast: bool) -> Tensor:
        shared = gate.GateInput(x)
        with torch.no_grad():
            statistics, _ = shared.spatial_statistics(channel)
        scale = shared.scale if fast else lambda *gates: reference.dual_scale(x, *gates)
        return scale(channel, attend(statistics.clone(), mix))

    found, wanted = (torch.autograd.grad(product(f).square().sum(), [x, mix, channel]) for f in (True, False))
    close(found, wanted, torch.float64)


def test_a_product_with_no_gate_is_refused():
    with pytest.raises(ValueError, match="a channel gate, a spatial gate or both, got none"):
        gate.GateInput(torch.ones(1, 2, 3)).scale()


def test_backward_twice_and_bit_for_bit():
    tensors = inputs((2, 70, 33, 37), torch.float32)
    y = fast(*tensors, "channel-spatial")
    first = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    second = torch.autograd.grad(y.sum(), tensors)
    third = torch.autograd.grad(fast(*tensors, "channel-spatial").sum(), tensors)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, third))


def test_changing_x_before_backward_is_refused():
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    source = x * 1
    y = gate.channel_scale(source, torch.rand(1, 4))
    source.add_(1)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        y.sum().backward()


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen):
    tensors = inputs((2, 6, 5, 5), torch.float32)
    tensors[frozen].requires_grad_(False)
    others = [t for t in tensors if t.requires_grad]
    found, wanted = (
        torch.autograd.grad(f(*tensors, "channel-spatial").sum(), others) for f in (fast, literal)
    )
    close(found, wanted, torch.float32)


def test_recomputed_activations_give_the_same_gradients():
    tensors = inputs((2, 6, 5, 5), torch.float32)
    wanted = torch.autograd.grad(fast(*tensors, "channel-spatial").sum(), tensors)
    y = checkpoint(fast, *tensors, "channel-spatial", use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(y.sum(), tensors), wanted))


def test_autocast_rounds_no_sum_over_the_map():
    tensors = inputs((2, 70, 33, 37), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        shared = gate.GateInput(tensors[0])
        channel = torch.sigmoid(shared.squeeze(["mean", "max"])).view(2, 2, 70).sum(0)
        statistics, _ = shared.spatial_statistics(channel)
        y = shared.scale(channel, attend(statistics, tensors[2]))
        found = torch.autograd.grad(y.sum(), tensors[0])
    x = tensors[0]
    channel = torch.sigmoid(torch.stack([reference.squeeze(x), reference.squeeze(x, "max")])).sum(0)
    y = reference.dual_scale(x, channel, attend(reference.spatial_statistics(x, channel), tensors[2]))
    close(found, torch.autograd.grad(y.sum(), x), torch.float32)


def test_compiled_and_functional_transforms_agree():
    tensors = inputs((2, 6, 5, 5), torch.float32)
    wanted = run(fast, tensors, "channel-spatial")
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    close(run(compiled, tensors, "channel-spatial"), wanted, torch.float32)
    gradient = torch.func.grad(lambda x: fast(x, *tensors[1:], "channel-spatial").sum())(tensors[0])
    torch.testing.assert_close(
        gradient, torch.autograd.grad(fast(*tensors, "channel-spatial").sum(), tensors[0])[0]
    )


# -------------------------------------------------------------------------------------------- choosing a backend


def test_explain_names_the_backend_and_a_reason_for_every_other():
    x, channel, spatial = torch.ones(1, 8, 4, 4), torch.ones(1, 8), torch.ones(1, 1, 4, 4)
    for operation, gates, backend in [
        ("squeeze", (), "plain"),
        ("scale", (channel,), "plain"),
        ("spatial_statistics", (channel,), "eager"),
        ("dual_scale", (channel, spatial), "eager"),
    ]:
        choice = gate.explain(operation, x, *gates)
        assert choice.backend == backend
        assert {choice.backend, *choice.others} == set(gate.BACKENDS)
        assert choice.why
        assert all(choice.others.values())
        assert "CUDA" in choice.others["triton"]
        assert gate.explain(operation, x.requires_grad_(), *gates).backend == "eager"
        x = x.detach()


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones(1, 8, 4, 4).mT, "neither contiguous nor channels-last"),
        (torch.ones(0, 8, 4, 4), "empty"),
        (torch.ones(1, 8, 4, 4).half(), "another dtype"),
    ],
)
def test_explain_says_why_only_the_literal_equations_will_do(x, reason):
    x = torch.ones(1, 8, 5, 4).mT if "neither" in reason else x
    choice = gate.explain("dual_scale", x, torch.ones(len(x), 8), torch.ones(len(x), 1, 4, 4))
    assert choice.backend == "plain"
    assert reason in choice.why


def test_explain_refuses_an_unknown_operation():
    with pytest.raises(ValueError, match=r"operation must be one of squeeze, .*, got 'excite'"):
        gate.explain("excite", torch.ones(1, 2, 3))


# ----------------------------------------------------------------------------------------------------------- memory


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Bytes of the storages kept for backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x)
    total = sum(storage.nbytes() for storage in storages.values())
    del y
    return total


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cbam_keeps_its_input_where_timm_keeps_two_maps(memory_format):
    """The input alone is 49.5 % of what timm keeps; with a map of one channel and indices less than half."""
    from timm.layers.cbam import CbamModule

    x = torch.randn(1, 256, 56, 56).contiguous(memory_format=memory_format).requires_grad_()
    ours, theirs = saved_bytes(CBAM(256, variant="timm"), x), saved_bytes(CbamModule(256), x)
    assert ours <= 0.5 * theirs


def test_se_keeps_its_input_and_a_thousandth():
    x = torch.randn(1, 256, 56, 56, requires_grad=True)
    assert saved_bytes(SqueezeExcite(256), x) <= 1.001 * x.nbytes
