"""The oracle itself: each equation again as loops over indices, and what must hold for any of them."""

import math

import pytest
import torch

from foveal.ops import reference

B, N, M, D, E = 2, 4, 3, 5, 2


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "q": (B, N, D),
        "k": (B, M, D),
        "v": (B, M, E),
        "a": (B, N),
        "b": (B, M),
        "w": (D,),
        "x": (B, N, D),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def pairs(score):
    """(b, n, m) filled one number at a time."""
    return torch.tensor(
        [[[float(score(b, i, j)) for j in range(M)] for i in range(N)] for b in range(B)],
        dtype=torch.float64,
    )


def normalised(scores):
    return torch.stack(
        [torch.stack([row.exp() / sum(s.exp() for s in row) for row in image]) for image in scores]
    )


def weighted(weights, v):
    return torch.stack(
        [torch.stack([sum(weights[b, i, j] * v[b, j] for j in range(M)) for i in range(N)]) for b in range(B)]
    )


def dot(t, b, i, j):
    return sum(t["q"][b, i, d] * t["k"][b, j, d] for d in range(D))


def cosine(t, b, i, j):
    return dot(t, b, i, j) / (math.hypot(*t["q"][b, i].tolist()) * math.hypot(*t["k"][b, j].tolist()))


def perceptron(t, b, i, j):
    return sum(t["w"][d] * math.tanh(t["q"][b, i, d] + t["k"][b, j, d]) for d in range(D))


def leaky(t, b, i, j, slope=0.2):
    s = t["a"][b, i] + t["b"][b, j]
    return s if s > 0 else slope * s


SOFTMAX = {
    "dot": (dot, lambda t: reference.softmax_attention(t["q"], t["k"], t["v"])),
    "scaled dot": (
        lambda t, b, i, j: 0.3 * dot(t, b, i, j),
        lambda t: reference.softmax_attention(t["q"], t["k"], t["v"], scale=0.3),
    ),
    "cosine": (cosine, lambda t: reference.cosine_attention(t["q"], t["k"], t["v"])),
    "scaled cosine": (
        lambda t, b, i, j: 4 * cosine(t, b, i, j),
        lambda t: reference.cosine_attention(t["q"], t["k"], t["v"], scale=4.0),
    ),
    "perceptron": (perceptron, lambda t: reference.perceptron_attention(t["q"], t["k"], t["w"], t["v"])),
    "concatenation": (
        leaky,
        lambda t: reference.concatenation_attention(t["a"], t["b"], t["v"], negative_slope=0.2),
    ),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_attention_of_every_similarity(name, tensors):
    score, attend = SOFTMAX[name]
    weights = normalised(pairs(lambda b, i, j: score(tensors, b, i, j)))
    torch.testing.assert_close(attend(tensors), weighted(weights, tensors["v"]))


def test_pairwise_functions_without_softmax_divide_by_the_number_of_keys(tensors):
    t = tensors
    expected = weighted(pairs(lambda b, i, j: 0.5 * dot(t, b, i, j)) / M, t["v"])
    torch.testing.assert_close(reference.dot_product(t["q"], t["k"], t["v"], scale=0.5), expected)
    expected = weighted(pairs(lambda b, i, j: leaky(t, b, i, j, slope=0)) / M, t["v"])
    torch.testing.assert_close(reference.concatenation(t["a"], t["b"], t["v"]), expected)


def test_concatenation_score_is_the_product_with_the_concatenated_pair(tensors):
    q, k = tensors["q"], tensors["k"]
    w = torch.linspace(-1, 1, 2 * D, dtype=torch.float64)
    expected = pairs(lambda b, i, j: w @ torch.cat([q[b, i], k[b, j]]))
    torch.testing.assert_close(reference.concatenation_scores(q @ w[:D], k @ w[D:]), expected)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_channel_attention(form, tensors):
    x = tensors["x"]
    energy = torch.tensor(
        [
            [[float(sum(x[b, i, n] * x[b, j, n] for n in range(D))) for j in range(N)] for i in range(N)]
            for b in range(B)
        ],
        dtype=torch.float64,
    )
    if form == "code":
        energy = torch.stack([torch.stack([row.max() - row for row in image]) for image in energy])
    weights = normalised(energy)
    torch.testing.assert_close(reference.channel_attention_weights(x, form), weights)
    expected = torch.stack([sum(weights[:, :, j, None] * x[:, j, None] for j in range(N))])[0]
    torch.testing.assert_close(reference.channel_attention(x, form), expected)


@pytest.mark.parametrize("size", [(4,), (3, 2), (2, 3, 2)])
def test_gates(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    channel, spatial = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 1, *size, dtype=torch.float64)
    flat, mask = x.flatten(2).tolist(), spatial.flatten(2).tolist()
    mean = [[sum(c) / len(c) for c in image] for image in flat]
    peak = [[max(c) for c in image] for image in flat]
    assert torch.allclose(reference.squeeze(x), torch.tensor(mean, dtype=torch.float64))
    assert torch.equal(reference.squeeze(x, "max"), torch.tensor(peak, dtype=torch.float64))

    both = torch.tensor(
        [
            [
                [g * m * value for value, m in zip(c, mask[b][0], strict=True)]
                for c, g in zip(image, gates, strict=True)
            ]
            for b, (image, gates) in enumerate(zip(flat, channel.tolist(), strict=True))
        ],
        dtype=torch.float64,
    )
    gated = both / spatial.flatten(2)
    torch.testing.assert_close(reference.channel_scale(x, channel).flatten(2), gated)
    torch.testing.assert_close(reference.dual_scale(x, channel, spatial).flatten(2), both)
    statistics = torch.stack([sum(gated.unbind(1)) / 3, gated.max(1).values], 1).unflatten(2, size)
    torch.testing.assert_close(reference.spatial_statistics(x, channel), statistics)
    torch.testing.assert_close(
        reference.spatial_statistics(x), reference.spatial_statistics(x, torch.ones_like(channel))
    )


def test_masked_keys_weigh_nothing_and_a_row_without_keys_is_zero():
    scores = torch.randn(1, 3, 4, requires_grad=True)
    mask = torch.tensor([[[True, False, True, True], [False] * 4, [True] * 4]])
    weights = reference.softmax_weights(scores, mask)
    torch.testing.assert_close(weights[0, 0, mask[0, 0]], torch.softmax(scores[0, 0, mask[0, 0]], 0))
    assert (weights[~mask] == 0).all()
    weights.square().sum().backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_softmax_is_stable_for_large_scores(dtype):
    scores = (30 * torch.randn(2, 8, 50)).to(dtype)
    weights = reference.softmax_weights(scores)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.double(), torch.softmax(scores.double(), -1), rtol=2e-2, atol=1e-3)


def test_a_zero_vector_is_similar_to_nothing():
    scores = reference.cosine_scores(torch.zeros(1, 2, 3), torch.randn(1, 4, 3))
    assert (scores == 0).all()


def test_rows_of_few_queries_are_rows_of_the_whole(tensors):
    q, k = tensors["q"], tensors["k"]
    whole = reference.softmax_weights(reference.dot_scores(q, k))
    torch.testing.assert_close(reference.softmax_weights(reference.dot_scores(q[:, 1:3], k)), whole[:, 1:3])


def test_gradients_are_right_in_float64(tensors):
    q, k, v, a, b, w, x = (tensors[name].clone().requires_grad_() for name in "qkvabwx")
    for function, inputs in [
        (reference.softmax_attention, (q, k, v)),
        (reference.cosine_attention, (q, k, v)),
        (reference.perceptron_attention, (q, k, w, v)),
        (reference.concatenation_attention, (a, b, v)),
        (reference.dot_product, (q, k, v)),
        (reference.concatenation, (a, b, v)),
        (reference.channel_attention, (x,)),
        (reference.squeeze, (x,)),
        (reference.channel_scale, (x, a)),
    ]:
        assert torch.autograd.gradcheck(function, inputs)
