import pytest
import torch
from torch import nn

from foveal.nn import SelfAttention
from foveal.nn.self_attention import FORMS, SIMILARITIES

SIZE = {1: (7,), 2: (5, 4), 3: (2, 5, 4)}
POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def spectral(layer):
    """The layer's weight as it is used: divided by its largest singular value (after convergence) if it has one."""
    return (
        layer.weight / torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        if hasattr(layer, "u")
        else layer.weight
    )


def project(layer, x):
    y = torch.einsum("ec,bcn->ben", spectral(layer).flatten(1), x)
    return y if layer.bias is None else y + layer.bias[:, None]


def equations(block, x):
    """SAGAN equations 1 to 3 with each of the four similarities, letter by letter."""
    flat = x.flatten(2)
    pool = POOL[block.dims](block.pool)
    query = project(block.query, flat)
    key, value = (pool(project(layer, flat).unflatten(2, x.shape[2:])) for layer in (block.key, block.value))
    key_spatial = key.shape[2:]
    key, value = key.flatten(2), value.flatten(2)
    q, k = query.transpose(1, 2)[:, :, None], key.transpose(1, 2)[:, None]  # (b, n, 1, d), (b, 1, m, d)
    if block.similarity == "concatenation":
        pair = torch.cat(torch.broadcast_tensors(q, k), -1)
        scores = nn.functional.leaky_relu(pair @ block.pair_weight.flatten(), block.negative_slope)
    elif block.similarity == "perceptron":
        scores = torch.tanh(q + k) @ block.pair_weight
    else:
        scores = (q * k).sum(-1)
        if block.similarity == "scaled_dot":
            scores = scores / q.shape[-1] ** 0.5
        if block.similarity == "cosine":
            scores = scores / (q.norm(dim=-1) * k.norm(dim=-1))
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    y = torch.einsum("bij,bej->bei", weights, value)
    if not isinstance(block.out, nn.Identity):
        y = project(block.out, y)
    return x + block.gamma * y.unflatten(2, x.shape[2:]), weights.unflatten(2, key_spatial)


def converge(block):
    """Power iteration until the estimates of the singular values are exact."""
    for layer in [block.query, block.key, block.value, block.out]:
        if hasattr(layer, "u"):
            layer.u.copy_(torch.linalg.svd(layer.weight.detach().flatten(1)).U[:, 0])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_follows_the_equations(similarity, form, dims, randomise, assert_same):
    block = SelfAttention(16, similarity=similarity, form=form, dims=dims)
    randomise(block.double().eval())
    converge(block)
    weights = [(w, w) for w in block.parameters()]
    assert_same(
        block, lambda x: equations(block, x)[0], torch.randn(2, 16, *SIZE[dims]), weights, tolerance=1e-8
    )


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_weights_of_the_equation(similarity, form, randomise):
    block = SelfAttention(16, similarity=similarity, form=form)
    randomise(block.double().eval())
    converge(block)
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    points = [(0, 0), (4, 3), (2, 1)]
    rows = block.attention(x, points)["rows"]
    literal = equations(block, x)[1].unflatten(1, x.shape[2:])
    for r, (i, j) in enumerate(points):
        torch.testing.assert_close(rows[:, r], literal[:, i, j])


def test_form_article_equals_the_articles_listing(randomise, assert_same):
    # query and key of C/8, value of C, all biased; softmax over keys of q^T k; gamma times the result, plus x
    block = randomise(SelfAttention(16).double())

    def listing(x):
        b, c, w, h = x.shape
        query, key, value = (
            layer(x).reshape(b, -1, w * h) for layer in (block.query, block.key, block.value)
        )
        attention = torch.softmax(torch.einsum("bdi,bdj->bij", query, key), dim=2)
        return block.gamma * torch.einsum("bcj,bij->bci", value, attention).reshape(b, c, w, h) + x

    assert block.query.out_channels == 2
    assert_same(block, listing, torch.randn(2, 16, 5, 4), [(w, w) for w in block.parameters()])


@pytest.mark.parametrize(
    ("form", "widths", "out_conv", "pool", "bias", "spectral_norm"),
    [
        ("paper", (4, 4, 4), True, 1, False, False),
        ("official", (4, 4, 16), True, 2, False, True),
        ("article", (4, 4, 32), False, 1, True, False),
    ],
)
def test_forms_differ_as_published(form, widths, out_conv, pool, bias, spectral_norm):
    block = SelfAttention(32, form=form)
    layers = [block.query, block.key, block.value]
    assert tuple(len(layer.weight) for layer in layers) == widths
    assert isinstance(block.out, nn.Identity) is not out_conv
    assert block.pool == pool
    assert all((layer.bias is not None) is bias and hasattr(layer, "u") is spectral_norm for layer in layers)
    assert block.scale == 1


def test_options_override_the_form():
    block = SelfAttention(
        32, form="official", value_width=8, pool=1, spectral_norm=False, bias=True, key_width=3
    )
    assert block.value.weight.shape[:2] == (8, 32)
    assert block.key.weight.shape[:2] == (3, 32)
    assert block.pool == 1
    assert block.out.bias is not None
    assert not hasattr(block.out, "u")


def test_a_linear_concatenation_score_gives_every_position_the_same_row(randomise):
    block = randomise(SelfAttention(16, similarity="concatenation", negative_slope=1.0))
    rows = block.attention(torch.randn(1, 16, 5, 4), [(0, 0), (4, 3)])["rows"]
    torch.testing.assert_close(rows[:, 0], rows[:, 1])
    block.negative_slope = 0.2
    rows = block.attention(torch.randn(1, 16, 5, 4), [(0, 0), (4, 3)])["rows"]
    assert not torch.allclose(rows[:, 0], rows[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SelfAttention(4),
            "channels must be at least 8 .*or key_width given.* got channels=4",
        ),
        (
            lambda: SelfAttention(4, form="paper", key_width=1),
            "channels must be at least 8 .*or value_width given",
        ),
        (lambda: SelfAttention(16, key_width=-1), "key_width must be .* got -1"),
        (
            lambda: SelfAttention(16, similarity="euclid"),
            "similarity must be one of .* got 'euclid'",
        ),
        (lambda: SelfAttention(16, form="code"), "form must be one of .* got 'code'"),
        (lambda: SelfAttention(16, pool=0), "pool must be .* got 0"),
        (lambda: SelfAttention(16, dims=5), "dims must be 1, 2 or 3, got 5"),
        (
            lambda: SelfAttention(16, value_width=8),
            "value_width must equal channels=16 without .* got 8",
        ),
        (
            lambda: SelfAttention(16)(torch.randn(1, 8, 3, 3)),
            r"input must be \(batch, 16 channels",
        ),
        (
            lambda: SelfAttention(16).attention(torch.randn(1, 16, 3, 3), [(0, -1)]),
            "positions must lie",
        ),
    ],
)
def test_refuses_what_it_cannot_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
