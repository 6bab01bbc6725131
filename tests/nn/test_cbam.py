import pytest
import torch
from pytorchcv.models.cbamresnet import CbamBlock
from timm.layers.cbam import CbamModule

from foveal.nn import CBAM, ChannelGate, SpatialGate
from foveal.nn.cbam import ARRANGEMENTS, VARIANTS
from foveal.ops import reference


def equations(block, x):
    """CBAM equations 1 to 3 for every arrangement, letter by letter; BatchNorm in eval mode."""

    def channel(x):
        mlp = block.channel
        hidden = [mlp.fc1(reference.squeeze(x, statistic)).clamp(min=0) for statistic in ("mean", "max")]
        gate = torch.sigmoid(mlp.fc2(hidden[0]) + mlp.fc2(hidden[1])) * mlp.gate_gain
        return gate.reshape(*gate.shape, *[1] * (x.ndim - 2))

    def spatial(x):
        mean, peak = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
        maps = torch.cat([peak, mean] if block.spatial.max_first else [mean, peak], 1)
        z = block.spatial.conv(maps)
        if block.spatial.norm is not None:
            norm = block.spatial.norm
            z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        return torch.sigmoid(z) * block.spatial.gate_gain

    if block.arrangement == "channel-spatial":
        refined = channel(x) * x
        return spatial(refined) * refined
    if block.arrangement == "spatial-channel":
        refined = spatial(x) * x
        return channel(refined) * refined
    if block.arrangement == "parallel":
        return channel(x) * spatial(x) * x
    return (channel(x) if block.arrangement == "channel" else spatial(x)) * x


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(5,), (5, 3), (2, 5, 3), (1, 1)])
def test_follows_the_papers_equations(arrangement, variant, size, randomise, assert_same):
    block = CBAM(12, reduction=4, kernel_size=3, arrangement=arrangement, variant=variant, dims=len(size))
    randomise(block.double().eval())
    weights = [(w, w) for w in block.parameters()]
    assert_same(block, lambda x: equations(block, x), torch.randn(2, 12, *size), weights)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_variant_timm_equals_timm(train, kernel_size, randomise, assert_same):
    theirs = randomise(CbamModule(32, spatial_kernel_size=kernel_size).double()).train(train)
    block = CBAM(32, kernel_size=kernel_size, variant="timm").double().train(train)
    block.channel.fc1.weight.data = theirs.channel.fc1.weight.data.flatten(1)
    block.channel.fc2.weight.data = theirs.channel.fc2.weight.data.flatten(1)
    block.spatial.conv.load_state_dict(theirs.spatial.conv.conv.state_dict())
    block.spatial.norm.load_state_dict(theirs.spatial.conv.bn.state_dict())
    weights = [
        (block.channel.fc1.weight, theirs.channel.fc1.weight),
        (block.spatial.conv.weight, theirs.spatial.conv.conv.weight),
        (block.spatial.norm.weight, theirs.spatial.conv.bn.weight),
    ]
    assert_same(block, theirs, torch.randn(2, 32, 9, 5), weights)
    assert torch.allclose(block.spatial.norm.running_var, theirs.spatial.conv.bn.running_var)


@pytest.mark.parametrize("train", [True, False])
def test_variant_official_equals_pytorchcv(train, randomise, assert_same):
    # maximum first, biased MLP, BatchNorm: the released code's form
    theirs = randomise(CbamBlock(32, 8).double()).train(train)
    block = CBAM(32, reduction=8, variant="official").double().train(train)
    block.channel.load_state_dict(theirs.ch_gate.mlp.state_dict())
    block.spatial.conv.load_state_dict(theirs.sp_gate.conv.conv.state_dict())
    block.spatial.norm.load_state_dict(theirs.sp_gate.conv.bn.state_dict())
    weights = [
        (block.channel.fc2.bias, theirs.ch_gate.mlp.fc2.bias),
        (block.spatial.conv.weight, theirs.sp_gate.conv.conv.weight),
    ]
    assert_same(block, theirs, torch.randn(2, 32, 9, 5), weights)


def test_variant_article_equals_the_articles_listing(randomise, assert_same):
    # channel gate of the mean plus that of the maximum, hidden width C/16, no bias; then a 7x7 convolution over
    # [mean, maximum] without bias; no BatchNorm
    block = randomise(CBAM(32, variant="article").double())
    down, up, kernel = block.channel.fc1.weight, block.channel.fc2.weight, block.spatial.conv.weight

    def listing(x):
        pooled = torch.stack([x.flatten(2).mean(2), x.flatten(2).max(2).values])
        gate = torch.einsum("ch,sbh->bc", up, torch.einsum("hc,sbc->sbh", down, pooled).relu()).sigmoid()
        x = torch.einsum("bc,bchw->bchw", gate, x)
        maps = torch.stack([x.mean(1), x.max(1).values], 1)
        windows = torch.nn.functional.pad(maps, (3, 3, 3, 3)).unfold(2, 7, 1).unfold(3, 7, 1)
        mask = torch.einsum("bshwij,sij->bhw", windows, kernel[0]).sigmoid()
        return torch.einsum("bhw,bchw->bchw", mask, x)

    assert_same(block, listing, torch.randn(2, 32, 9, 5), [(w, w) for w in (down, up, kernel)])


def test_pool_order_is_not_interchangeable(randomise):
    x = torch.randn(1, 8, 9, 5)
    paper, official = randomise(SpatialGate(8)), SpatialGate(8, variant="official").eval()
    official.conv.load_state_dict(paper.conv.state_dict())
    torch.nn.init.ones_(official.norm.weight)
    assert not torch.allclose(paper(x), official(x), atol=1e-3)
    official.conv.weight.data = paper.conv.weight.data.flip(1)
    assert torch.allclose(paper(x), official(x), atol=1e-4)  # BatchNorm's eps remains


def test_official_spatial_gate_starts_at_exactly_one_half():
    x = torch.randn(2, 16, 5, 3)
    assert (CBAM(16, variant="official").attention(x)["spatial_mask"] == 0.5).all()


def test_halves_are_the_whole(randomise):
    x = torch.randn(2, 16, 5, 3)
    block = randomise(CBAM(16, reduction=4))
    channel, spatial = ChannelGate(16, reduction=4), SpatialGate(16)
    channel.load_state_dict(block.channel.state_dict())
    spatial.load_state_dict(block.spatial.state_dict())
    torch.testing.assert_close(block(x), spatial(channel(x)))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_is_what_is_applied(arrangement, variant, randomise):
    block = randomise(CBAM(16, reduction=4, arrangement=arrangement, variant=variant))  # in train mode
    x = torch.randn(2, 16, 5, 3)
    seen = block.attention(x)
    y = x * seen["channel_gate"][:, :, None, None] if "channel_gate" in seen else x
    y = y * seen["spatial_mask"] if "spatial_mask" in seen else y
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CBAM(8), "reduction must leave at least 1 hidden channel"),
        (
            lambda: CBAM(32, arrangement="both"),
            "arrangement must be one of 'channel-spatial', .* got 'both'",
        ),
        (lambda: CBAM(32, variant="keras"), "variant must be one of .* got 'keras'"),
        (lambda: CBAM(32, kernel_size=4), "kernel_size must be odd, got 4"),
        (
            lambda: CBAM(32, kernel_size=-3),
            "kernel_size must be a whole number of at least 1, got -3",
        ),
        (lambda: CBAM(32, dims=4), "dims must be 1, 2 or 3, got 4"),
        (lambda: SpatialGate(0), "channels must be .* got 0"),
        (lambda: CBAM(32, start="one"), "start must be one of .* got 'one'"),
        (
            lambda: CBAM(32)(torch.randn(1, 16, 4, 4)),
            r"input must be \(batch, 32 channels, 2 spatial sizes\), got",
        ),
        (lambda: CBAM(32)(torch.randn(1, 32, 4)), r"input must be .* got shape \(1, 32, 4\)"),
        (
            lambda: SpatialGate(32, dims=1)(torch.randn(1, 32, 4, 4)),
            "input must be .* 1 spatial size",
        ),
    ],
)
def test_refuses_what_it_cannot_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
