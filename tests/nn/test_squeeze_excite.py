import pytest
import torch
from timm.layers import SEModule
from torchvision.ops import SqueezeExcitation

from foveal.nn import SqueezeExcite
from foveal.ops import reference


def load_pointwise(linear, conv):
    """A 1x1 convolution's weights into a linear layer."""
    linear.load_state_dict(
        {name: tensor.reshape(linear.state_dict()[name].shape) for name, tensor in conv.items()}
    )


def equations(block, x):
    """SENet equations 2 to 4, letter by letter."""
    statistics = {"mean": ["mean"], "max": ["max"], "both": ["mean", "max"]}[block.squeeze]
    s = 0
    for statistic in statistics:
        z = reference.squeeze(x, statistic)
        hidden = (z @ block.fc1.weight.T + (0 if block.fc1.bias is None else block.fc1.bias)).clamp(min=0)
        s = s + hidden @ block.fc2.weight.T + (0 if block.fc2.bias is None else block.fc2.bias)
    gate = (1 / (1 + (-s).exp())) if block.activation == "sigmoid" else ((s + 3).clamp(0, 6) / 6)
    return reference.channel_scale(x, block.gate_gain * gate)


@pytest.mark.parametrize("size", [(5,), (5, 3), (2, 5, 3), (1, 1)])
@pytest.mark.parametrize("squeeze", ["mean", "max", "both"])
@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_follows_the_papers_equations(size, squeeze, activation, bias, start, randomise, assert_same):
    block = SqueezeExcite(
        12, reduction=4, squeeze=squeeze, activation=activation, bias=bias, start=start
    ).double()
    randomise(block)
    weights = [(w, w) for w in block.parameters()]
    tolerance = 1e-10 if activation == "sigmoid" else 1e-6  # PyTorch's hard sigmoid divides by a float32 six
    assert_same(block, lambda x: equations(block, x), torch.randn(2, 12, *size), weights, tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_timm(bias, randomise, assert_same):
    # timm rounds the hidden width to a multiple of 8: 8 for 64 channels, where the paper has 4
    theirs = randomise(SEModule(64, bias=bias).double())
    block = SqueezeExcite(64, hidden=8, bias=bias).double()
    load_pointwise(block.fc1, theirs.fc1.state_dict())
    load_pointwise(block.fc2, theirs.fc2.state_dict())
    weights = [(block.fc1.weight, theirs.fc1.weight), (block.fc2.weight, theirs.fc2.weight)]
    assert_same(block, theirs, torch.randn(2, 64, 5, 3), weights)


def test_equals_torchvision(randomise, assert_same):
    theirs = randomise(SqueezeExcitation(32, 8, scale_activation=torch.nn.Hardsigmoid).double())
    block = SqueezeExcite(32, reduction=4, activation="hard_sigmoid").double()
    load_pointwise(block.fc1, theirs.fc1.state_dict())
    load_pointwise(block.fc2, theirs.fc2.state_dict())
    assert_same(block, theirs, torch.randn(2, 32, 5, 3), [(block.fc1.weight, theirs.fc1.weight)])


def test_equals_the_articles_listing(randomise, assert_same):
    # no biases, reduction 16: mean over the map, two matrices with a ReLU between, sigmoid, product
    block = randomise(SqueezeExcite(32, bias=False).double())
    down, up = block.fc1.weight, block.fc2.weight

    def listing(x):
        y = torch.einsum("bchw->bc", x) / (x.shape[2] * x.shape[3])
        y = torch.einsum("ch,bh->bc", up, torch.einsum("hc,bc->bh", down, y).clamp_min(0))
        return torch.einsum("bc,bchw->bchw", y.sigmoid(), x)

    assert_same(block, listing, torch.randn(2, 32, 5, 3), [(down, down), (up, up)])


def test_attention_is_the_gate_that_is_applied(randomise):
    block = randomise(SqueezeExcite(16, reduction=4, start="identity"))
    x = torch.randn(2, 16, 5, 3)
    gate = block.attention(x)["channel_gate"]
    assert torch.equal(block(x), x * gate[:, :, None, None])
    assert gate.max() > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"channels": 8},
            r"reduction must leave at least 1 hidden channel, got channels=8, reduction=16",
        ),
        (
            {"channels": 8, "reduction": 0},
            "reduction must be a whole number of at least 1, got 0",
        ),
        ({"channels": 8, "reduction": -4}, "reduction must be .* got -4"),
        ({"channels": 0}, "channels must be .* got 0"),
        ({"channels": 8, "hidden": 0}, "hidden must be .* got 0"),
        (
            {"channels": 32, "squeeze": "median"},
            "squeeze must be one of 'mean', .* got 'median'",
        ),
        ({"channels": 32, "activation": "tanh"}, "activation must be one of .* got 'tanh'"),
        (
            {"channels": 32, "start": "zero"},
            "start must be one of 'paper', 'identity', got 'zero'",
        ),
    ],
)
def test_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(**options)


@pytest.mark.parametrize("shape", [(2, 32, 4, 4), (2, 16), (2, 16, 1, 1, 1, 1)])
def test_refuses_an_input_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"input must be \(batch, 16 channels, 1 to 3 spatial sizes\)"):
        SqueezeExcite(16)(torch.randn(shape))
