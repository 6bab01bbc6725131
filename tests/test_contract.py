"""What every block promises, whatever it computes: one table of variants, one test per promise."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.nn import (
    BLOCKS,
    CBAM,
    ChannelAttention,
    ChannelGate,
    DualAttention,
    NonLocal,
    PositionAttention,
    SelfAttention,
    SpatialGate,
    SqueezeExcite,
)
from foveal.nn.batch_norm import BatchNorm
from foveal.nn.cbam import ARRANGEMENTS, VARIANTS
from foveal.nn.non_local import PAIRWISE
from foveal.nn.self_attention import FORMS, SIMILARITIES
from tests.marks import slow

CHANNELS = 16
VARIANTS_OF_BLOCKS = {
    "se": (SqueezeExcite, {"reduction": 4}),
    "se max hard no bias": (
        SqueezeExcite,
        {"reduction": 4, "squeeze": "max", "activation": "hard_sigmoid", "bias": False},
    ),
    "se both": (SqueezeExcite, {"hidden": 8, "squeeze": "both"}),
    "channel gate": (ChannelGate, {"reduction": 4}),
    "spatial gate": (SpatialGate, {"kernel_size": 3}),
    **{f"cbam {v}": (CBAM, {"reduction": 4, "variant": v}) for v in VARIANTS},
    **{f"cbam {a}": (CBAM, {"reduction": 4, "arrangement": a, "variant": "timm"}) for a in ARRANGEMENTS},
    **{f"nonlocal {p}": (NonLocal, {"pairwise": p}) for p in PAIRWISE},
    "nonlocal scaled before": (NonLocal, {"scaled": True, "subsample": "before", "norm": "none"}),
    "nonlocal mmdet scale": (NonLocal, {"scaled": "mmdet"}),
    "nonlocal gaussian after": (NonLocal, {"pairwise": "gaussian", "subsample": "after", "norm": "none"}),
    "nonlocal space": (NonLocal, {"over": "space", "subsample": "after", "pairwise": "concatenation"}),
    "nonlocal time": (NonLocal, {"over": "time", "subsample": "before", "pairwise": "dot_product"}),
    **{f"selfattention {s}": (SelfAttention, {"similarity": s}) for s in SIMILARITIES},
    **{f"selfattention {f} form": (SelfAttention, {"form": f}) for f in FORMS},
    "position paper": (PositionAttention, {"form": "paper"}),
    "channel code": (ChannelAttention, {}),
    "channel paper": (ChannelAttention, {"form": "paper"}),
    "dual code": (DualAttention, {}),
    "dual paper": (DualAttention, {"form": "paper"}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS_OF_BLOCKS)
# one of each kind of computation, where a case takes seconds
KINDS = (
    "se both",
    "cbam timm",
    "cbam parallel",
    "nonlocal concatenation",
    "nonlocal scaled before",
    "nonlocal space",
    "selfattention cosine",
    "selfattention official form",
    "dual code",
)
one_variant_of_a_kind = pytest.mark.parametrize(
    "variant", [*KINDS, *slow(name for name in VARIANTS_OF_BLOCKS if name not in KINDS)]
)
few = settings(max_examples=12, deadline=None, derandomize=True)


def build(variant, dims=2, start="identity", seed=0):
    torch.manual_seed(seed)
    block, options = VARIANTS_OF_BLOCKS[variant]
    if "dims" in inspect.signature(block).parameters:
        options = options | {"dims": dims}
    return block(CHANNELS, start=start, **options)


def build_narrow(variant, channels, dims):
    """The variant with so few channels, and every inner width as small as its own may be."""
    block, options = VARIANTS_OF_BLOCKS[variant]
    taken = inspect.signature(block).parameters
    options = {name: option for name, option in options.items() if name not in ("reduction", "hidden")}
    without_convolution = block is SelfAttention and not FORMS[options.get("form", "article")].out_conv
    widths = {
        "hidden": 1,
        "inner": max(channels // 2, 1),
        "key_width": 1,
        "value_width": channels if without_convolution else 1,
        "dims": dims,
    }
    torch.manual_seed(0)
    return block(channels, **options, **{name: width for name, width in widths.items() if name in taken})


def dims_of(variant):
    """Clips only where the attention is over space or over time."""
    return (3,) if "over" in VARIANTS_OF_BLOCKS[variant][1] else (1, 2, 3)


def wake(block, scale=0.5):
    """Random weights in place of the zeros a block starts with."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, scale)
    return block


@st.composite
def inputs(draw, variant):
    """A map from 1x1 on, odd and even sizes, any batch, dtype and dense memory format."""
    dims = draw(st.sampled_from(dims_of(variant)))
    shape = (
        draw(st.integers(1, 3)),
        CHANNELS,
        *(draw(st.integers(1, 7 if dims < 3 else 4)) for _ in range(dims)),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    memory_format = draw(st.sampled_from([torch.contiguous_format, *channels_last(x)]))
    return x.contiguous(memory_format=memory_format), memory_format


def channels_last(x):
    return {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.ndim, [])


def test_every_block_has_a_variant_here():
    tested = {block for block, _ in VARIANTS_OF_BLOCKS.values()}
    assert tested == {*BLOCKS.values(), ChannelGate, SpatialGate}


@every_variant
@few
@given(data=st.data())
def test_output_is_like_the_input_for_any_size_dtype_and_layout(variant, data):
    x, memory_format = data.draw(inputs(variant))
    train = data.draw(st.booleans())
    block = wake(build(variant, x.ndim - 2)).to(x.dtype).train(train)
    y = block(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.device == x.device
    assert y.is_contiguous(memory_format=memory_format)
    assert y.isfinite().all()


@every_variant
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_one_two_and_three_channels_are_enough(variant, channels, train):
    """Output and gradient are those in double precision, where other kernels run."""
    dims = dims_of(variant)[-1]
    block = wake(build_narrow(variant, channels, dims)).train(train)
    x = torch.randn(2, channels, *[4] * dims, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    double = copy.deepcopy(block).double()
    y, y_exact = block(x), double(exact)
    (gradient,), (gradient_exact,) = (
        torch.autograd.grad(z.square().sum(), leaf) for z, leaf in ((y, x), (y_exact, exact))
    )
    scale = y_exact.abs().max(), gradient_exact.abs().max()
    for found, wanted, largest in zip((y, gradient), (y_exact, gradient_exact), scale, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4 * largest.item())


@every_variant
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_passes_and_trains_nothing(variant, train, dtype):
    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims)).to(dtype).train(train)
    before = copy.deepcopy(block.state_dict())
    x = torch.randn(0, CHANNELS, *[5] * dims, dtype=dtype, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad.shape == x.shape
    assert all(p.grad is None or not p.grad.any() for p in block.parameters())
    running = {
        name: tensor for name, tensor in block.state_dict().items() if "running" in name or "tracked" in name
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in running.items())
    assert all(len(weights) == 0 for weights in block.attention(x).values())


@every_variant
@few
@given(data=st.data())
def test_identity_start_changes_no_bit(variant, data):
    x, _ = data.draw(inputs(variant))
    block = build(variant, x.ndim - 2).to(x.dtype).train(data.draw(st.booleans()))
    assert torch.equal(block(x), x)
    if x.dtype == torch.float32:
        with torch.autocast("cpu", data.draw(st.sampled_from([torch.bfloat16, torch.float16]))):
            assert torch.equal(block(x), x)


@every_variant
@few
@given(data=st.data())
def test_attention_has_the_promised_shapes_and_changes_no_state(variant, data):
    x, _ = data.draw(inputs(variant))
    block = wake(build(variant, x.ndim - 2)).to(x.dtype).train(data.draw(st.booleans()))
    spatial = x.shape[2:]
    points = [tuple(data.draw(st.integers(0, size - 1)) for size in spatial) for _ in range(2)]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    seen = block.attention(x, points)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert seen
    for name, weights in seen.items():
        assert weights.isfinite().all()
        if name == "channel_gate":
            assert weights.shape == x.shape[:2]
        elif name == "spatial_mask":
            assert weights.shape == (len(x), 1, *spatial)
        elif name == "channel_matrix":
            assert weights.shape == (len(x), CHANNELS, CHANNELS)
        else:
            assert name == "rows"
            assert weights.shape[:2] == (len(x), 2)
            assert all(k in (n, n // 2) for k, n in zip(weights.shape[2:], spatial, strict=True))
            assert weights.dtype in (torch.float32, torch.float64)
        if name in ("rows", "channel_matrix") and getattr(block, "pairwise", "gaussian") not in PAIRWISE[2:]:
            dims = tuple(range(2, weights.ndim))
            torch.testing.assert_close(weights.sum(dims), torch.ones_like(weights.sum(dims)))


@every_variant
def test_attention_looks_at_the_centre_by_default(variant):
    (dims,) = dims_of(variant)[-2:-1] or (3,)
    block = wake(build(variant, dims))
    x = torch.randn(2, CHANNELS, *[5] * dims)
    for name, weights in block.attention(x).items():
        assert torch.equal(weights, block.attention(x, [(2,) * dims])[name])


def cancelled(block):
    """Biases that their block's own equation cancels, so that no gradient can reach them."""
    softmax_of_products = getattr(block, "similarity", "") in ("dot", "scaled_dot") or (
        getattr(block, "pairwise", "") == "embedded_gaussian"
    )
    names = ["key.bias", "phi.bias"] if softmax_of_products else []  # the same for every score of a row
    if isinstance(block, NonLocal) and "gaussian" in block.pairwise and isinstance(block.norm, BatchNorm):
        names.append("g.bias")  # a constant in the context, which BatchNorm subtracts again
    return [parameter for name, parameter in block.named_parameters() if name in names]


@every_variant
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_first_step_has_a_gradient_and_then_everything_trains(variant, start):
    dims = dims_of(variant)[-1]
    block = build(variant, dims, start).double()
    if isinstance(block, NonLocal) and block.pairwise == "concatenation":
        block.pair_weight.data.abs_()  # with negative scores alone its ReLU would let no gradient through
    first = copy.deepcopy(block.state_dict())
    x, target = torch.randn(2, 4, CHANNELS, *[4] * dims, dtype=torch.float64)
    optimiser = torch.optim.Adam(block.parameters(), lr=0.01)
    for step in range(4):
        optimiser.zero_grad()
        (block(x) - target).square().mean().backward()
        gradients = [parameter.grad for parameter in block.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        if step == 0:
            assert any(gradient.abs().sum() > 0 for gradient in gradients)
        optimiser.step()
    idle = {id(p) for module in block.modules() for p in cancelled(module)}
    for name, parameter in block.named_parameters():
        assert id(parameter) in idle or (parameter - first[name]).abs().max() > 1e-5, name


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_and_stays_close(variant, dtype):
    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims), 0.2).eval()
    x = torch.randn(2, CHANNELS, *[5] * dims)
    with torch.autocast("cpu", dtype):
        y, y_half = block(x), block(x.to(dtype))
    assert y.dtype == x.dtype
    assert y_half.dtype == dtype
    torch.testing.assert_close(y, block(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "variant", ["selfattention dot", "selfattention scaled_dot", "nonlocal embedded_gaussian"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_logits_in_half_precision_use_float32_energies(variant, dtype):
    block = wake(build(variant)).eval()
    layers = ("query", "key", "value") if hasattr(block, "query") else ("theta", "phi", "g")
    getattr(block, layers[0]).weight.data.mul_(30)
    x = torch.randn(2, CHANNELS, 9, 7)
    with torch.autocast("cpu", dtype):
        q, k, v = (getattr(block, name)(x).flatten(2).transpose(1, 2) for name in layers)
        y = block(x) - x
    assert q.dtype == dtype
    # from the same rounded queries, keys and values: a score rounded to half would be off by up to 0.5 here
    q, k, v = q.double(), k.double(), v.double()
    scores = block.scale * q @ k.transpose(1, 2)
    assert scores.abs().max() > 30
    context = (torch.softmax(scores, -1) @ v).transpose(1, 2).unflatten(2, x.shape[2:])
    double = copy.deepcopy(block).double()
    expected = double.gamma * context if hasattr(block, "gamma") else double.norm(double.out(context))
    error = (y - expected).abs().max() / expected.abs().max()
    assert error < 4 * torch.finfo(dtype).eps


@every_variant
def test_gradients_are_finite_for_large_inputs_in_half_precision(variant):
    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims)).bfloat16()
    x = (30 * torch.randn(2, CHANNELS, *[5] * dims)).bfloat16().requires_grad_()
    block(x).float().square().mean().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters())


@every_variant
def test_deep_copy_pickle_and_state_dict_give_the_same_block(variant):
    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims)).eval()
    x = torch.randn(2, CHANNELS, *[5] * dims)
    fresh = build(variant, dims, seed=1).eval()
    fresh.load_state_dict(block.state_dict())
    for other in [copy.deepcopy(block), pickle.loads(pickle.dumps(block)), fresh]:
        assert torch.equal(other(x), block(x))


# operators for which PyTorch has no deterministic form on CUDA, by the list of torch.use_deterministic_algorithms
NON_DETERMINISTIC = re.compile(
    r"(avg_pool3d|adaptive_(avg|max)_pool\dd|max_pool3d_with_indices|fractional_max_pool\dd|max_unpool\dd"
    r"|(reflection|replication)_pad\dd|upsample_\w+|_?grid_sampler\w*|_ctc_loss|_embedding_bag\w*)_backward"
    r"|histc|_?bincount|kthvalue|median|put_|put|cumprod"
)


@every_variant
def test_takes_no_operator_that_has_no_deterministic_form_on_cuda(variant):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert not NON_DETERMINISTIC.fullmatch(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims))
    x = torch.randn(2, CHANNELS, *[4] * dims, requires_grad=True)
    with Watch():
        block(x).sum().backward()


@pytest.fixture
def without_type_checks(request):
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("run-time type checks break the graph; this test runs without them")


@every_variant
@pytest.mark.parametrize("train", [True, False])
def test_compiles_without_a_graph_break(variant, train, without_type_checks):
    torch.compiler.reset()
    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims)).train(train)
    x = torch.randn(2, CHANNELS, *[5] * dims)
    expected = copy.deepcopy(block)(x)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), expected)


def test_compiles_with_inductor(without_type_checks):
    torch.compiler.reset()
    block = wake(build("selfattention dot")).eval()
    x = torch.randn(2, CHANNELS, 6, 5, requires_grad=True)
    y = torch.compile(block, fullgraph=True)(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(y, block(x))
    # compiled code adds in another order, which differs between processors
    expected = torch.autograd.grad(block(x).square().sum(), x)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@one_variant_of_a_kind
def test_exports_and_agrees_at_another_size(variant, without_type_checks):
    dims = dims_of(variant)[-1]
    block = wake(build(variant, dims)).eval()
    sizes = {0: torch.export.Dim("batch")} | {2 + i: torch.export.Dim(f"size{i}", min=4) for i in range(dims)}
    program = torch.export.export(block, (torch.randn(2, CHANNELS, *[5] * dims),), dynamic_shapes=(sizes,))
    x = torch.randn(3, CHANNELS, *[4, 7, 6][:dims])
    torch.testing.assert_close(program.module()(x), block(x))


def test_a_whole_network_with_every_block_trains_one_image_at_a_time():
    blocks = [
        block(CHANNELS, start="identity", **({"reduction": 4} if name in ("se", "cbam") else {}))
        for name, block in BLOCKS.items()
    ]
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), *blocks, nn.AvgPool2d(4))
    net(torch.randn(1, 3, 4, 4)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
