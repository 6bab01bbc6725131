import functools

import pytest
import torch
from pytorchcv.models.danet import ChaAttBlock, PosAttBlock

from foveal.nn import ChannelAttention, DualAttention, PositionAttention


def position_equations(block, x):
    """DANet equations 1 and 2."""
    query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))
    s = torch.einsum("bdi,bdj->bij", query, key).exp()
    s = s / s.sum(-1, keepdim=True)
    return block.gamma * torch.einsum("bij,bcj->bci", s, value).reshape(x.shape) + x


def channel_equations(block, x, form):
    """DANet equations 3 and 4; the released code subtracts each energy from its row's maximum first."""
    a = x.flatten(2)
    energy = torch.einsum("bin,bjn->bij", a, a)
    if form == "code":
        energy = energy.max(-1, keepdim=True).values - energy
    weights = torch.softmax(energy, -1)
    return block.gamma * torch.einsum("bij,bjn->bin", weights, a).reshape(x.shape) + x


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("size", [(5,), (5, 3), (2, 5, 3)])
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_follows_the_papers_equations(form, size, start, randomise, assert_same):
    block = randomise(DualAttention(16, form=form, dims=len(size), start=start).double())
    x = 0.3 * torch.randn(2, 16, *size)
    position, channel = block.position, block.channel
    halves = [(position, position_equations), (channel, functools.partial(channel_equations, form=form))]
    for half, equations in halves:
        assert_same(half, lambda x, h=half, e=equations: e(h, x), x, [(w, w) for w in half.parameters()])
    added_once = 1 if start == "identity" else 0

    def total(x):
        return position_equations(position, x) + channel_equations(channel, x, form) - added_once * x

    assert_same(block, total, x, [(w, w) for w in block.parameters()])


def test_position_attention_equals_pytorchcv(randomise, assert_same):
    theirs = randomise(PosAttBlock(16).double())
    block = PositionAttention(16).double()
    for ours, name in [("query", "query_conv"), ("key", "key_conv"), ("value", "value_conv")]:
        getattr(block, ours).load_state_dict(getattr(theirs, name).state_dict())
    block.gamma.data = theirs.scale.alpha.data.clone()
    weights = [(block.key.weight, theirs.key_conv.weight), (block.gamma, theirs.scale.alpha)]
    assert_same(block, theirs, torch.randn(2, 16, 5, 3), weights)


def test_channel_attention_of_the_code_equals_pytorchcv(randomise, assert_same):
    # the released code's form, softmax(max - energy), which the paper does not write
    theirs = randomise(ChaAttBlock().double())
    block = ChannelAttention(16).double()
    block.gamma.data = theirs.scale.alpha.data.clone()
    assert_same(block, theirs, torch.randn(2, 16, 5, 3), [(block.gamma, theirs.scale.alpha)])


def test_the_two_channel_forms_weigh_a_channels_own_self_oppositely():
    x = torch.randn(1, 8, 9, 9)
    code, paper = (
        ChannelAttention(8, form=form).attention(x)["channel_matrix"] for form in ("code", "paper")
    )
    assert paper[0].diagonal().min() > 0.99
    assert code[0].diagonal().max() < 0.01
    torch.testing.assert_close(code.sum(-1), torch.ones(1, 8))


def test_key_width_follows_the_form():
    assert PositionAttention(32).key.out_channels == 4
    assert PositionAttention(32, form="paper").key.out_channels == 32
    assert DualAttention(32, key_width=5).position.query.out_channels == 5


def test_attention_rebuilds_the_output(randomise):
    block = randomise(DualAttention(16, start="identity").double())
    x = 0.3 * torch.randn(2, 16, 4, 3, dtype=torch.float64)
    everywhere = [(i, j) for i in range(4) for j in range(3)]
    seen = block.attention(x, everywhere)
    value = block.position.value(x).flatten(2)
    position = torch.einsum("brm,bcm->bcr", seen["rows"].flatten(2), value).reshape(x.shape)
    channel = (seen["channel_matrix"] @ x.flatten(2)).reshape(x.shape)
    torch.testing.assert_close(block(x), x + block.position.gamma * position + block.channel.gamma * channel)


def test_channel_energies_do_not_overflow_in_half_precision(randomise):
    # a 97x97 map of mean square 9: energies of 85,000 are infinite in float16
    x = (3 * torch.randn(1, 8, 97, 97)).half()
    block = randomise(ChannelAttention(8))
    matrix = block.attention(x)["channel_matrix"]
    assert matrix.isfinite().all()
    assert block.half()(x).isfinite().all()


def test_attention_is_of_float32_scores_under_autocast(randomise):
    """Energies of about 100, where a bfloat16 product is off by 0.5 and a weight by half its value."""
    block = randomise(DualAttention(16))
    x = 2 * torch.randn(1, 16, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        query, key = (layer(x).float().flatten(2) for layer in (block.position.query, block.position.key))
        seen = block.attention(x, [(1, 2)])
    energy = torch.einsum("bdr,bdj->brj", query[..., 7:8], key)
    torch.testing.assert_close(seen["rows"].flatten(2), energy.softmax(-1), rtol=1e-4, atol=1e-6)
    flat = x.flatten(2)
    energy = flat @ flat.mT
    assert energy.max() > 50
    expected = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
    torch.testing.assert_close(seen["channel_matrix"], expected, rtol=1e-4, atol=1e-6)
    assert {value.dtype for value in seen.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DualAttention(4), "channels must be at least 8 .*or key_width given"),
        (
            lambda: DualAttention(16, form="official"),
            "form must be one of 'code', 'paper', got",
        ),
        (lambda: DualAttention(16, start="half"), "start must be one of .* got 'half'"),
        (lambda: DualAttention(16, key_width=0), "key_width must be .* got 0"),
        (lambda: ChannelAttention(-1), "channels must be .* got -1"),
        (
            lambda: ChannelAttention(16, form="softmax"),
            "form must be one of .* got 'softmax'",
        ),
        (
            lambda: DualAttention(16)(torch.randn(1, 8, 3, 3)),
            r"input must be \(batch, 16 channels",
        ),
        (
            lambda: ChannelAttention(16)(torch.randn(1, 8, 3)),
            r"input must be \(batch, 16 channels",
        ),
    ],
)
def test_refuses_what_it_cannot_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
