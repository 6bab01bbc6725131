"""Attention is torch.nn.MultiheadAttention's, positions are DETR's equations, pictures show what was computed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.errors import FovealError
from foveal.models.transformer import (
    ConcatenatedAttention,
    DecoderLayer,
    EncoderLayer,
    LearnedPosition,
    Memory,
    MultiheadAttention,
    QuerySet,
    SinePosition,
    attend,
    grid_valid,
)


def literal_positions(mask: torch.Tensor, width: int) -> torch.Tensor:
    """DETR's code, line by line: mask (b, h, w) is True on padding; (b, width, h, w)."""
    there = ~mask
    y, x = there.cumsum(1, dtype=torch.float32), there.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    i = torch.arange(width // 2, dtype=torch.float32)
    wavelength = 10000 ** (2 * torch.div(i, 2, rounding_mode="floor") / (width // 2))
    y, x = y[..., None] / wavelength, x[..., None] / wavelength
    codes = [torch.stack([p[..., 0::2].sin(), p[..., 1::2].cos()], 4).flatten(3) for p in (y, x)]
    return torch.cat(codes, 3).permute(0, 3, 1, 2)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_are_pytorchs(masked):
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    q, k = torch.randn(2, 7, 32, requires_grad=True), torch.randn(2, 11, 32, requires_grad=True)
    q_place, k_place = torch.randn(2, 7, 32), torch.randn(2, 11, 32)
    mask = torch.rand(2, 11) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    expected, weights = theirs(
        q + q_place,
        k + k_place,
        k,
        key_padding_mask=None if mask is None else ~mask,
        average_attn_weights=False,
    )
    y = ours(q, q_place, k, k_place, mask)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-6)
    direction = torch.randn_like(y)
    for one, two in zip(
        torch.autograd.grad((y * direction).sum(), (q, k)),
        torch.autograd.grad((expected * direction).sum(), (q, k)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    rows = torch.tensor([[0, 3], [6, 3]])
    shown = ours.rows(rows, q, q_place, k, k_place, mask=mask)
    wanted = torch.stack([w[:, r] for w, r in zip(weights, rows, strict=True)])
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-6)


def test_self_attention_projects_queries_and_keys_alike():
    torch.manual_seed(0)
    layer = MultiheadAttention(16, 2)
    x, place = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(
        layer(x, place, x, place), layer(x, place, x.clone(), place), rtol=0, atol=1e-6
    )


def test_the_packed_matrix_has_the_smaller_bound():
    torch.manual_seed(0)
    bound = math.sqrt(6 / (256 + 3 * 256))
    weight = MultiheadAttention(256, 8).in_proj_weight
    assert 0.99 * bound < weight.abs().max() <= bound


def test_attention_drops_weights_while_training_alone():
    torch.manual_seed(0)
    layer = MultiheadAttention(16, 2, dropout=0.5)
    x = torch.randn(1, 6, 16)
    assert not torch.equal(layer(x, None, x, None), layer(x, None, x, None))
    layer.eval()
    assert torch.equal(layer(x, None, x, None), layer(x, None, x, None))


def test_concatenated_scores_are_the_sum_of_two_products():
    """Conditional DETR, equation 3: content with content, position with position, nothing across."""
    torch.manual_seed(0)
    layer = ConcatenatedAttention(16, 2)
    q, qp, k, kp = (torch.randn(1, n, 16) for n in (3, 3, 5, 5))
    heads = lambda x: x.view(1, -1, 2, 8).transpose(1, 2)  # noqa: E731
    content = heads(layer.query(q)) @ heads(layer.key(k)).mT
    place = heads(layer.query_position(qp)) @ heads(layer.key_position(kp)).mT
    weights = ((content + place) / 4).softmax(-1)
    expected = layer.out_proj((weights @ heads(layer.value(k))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(q, qp, k, kp), expected, rtol=0, atol=1e-6)
    shown = layer.rows(torch.tensor([[2, 0]]), q, qp, k, kp)
    torch.testing.assert_close(shown, weights[:, :, [2, 0]], rtol=0, atol=1e-6)


def test_sine_positions_are_detrs_with_padding():
    image, grid = (50, 90), (7, 12)
    sizes = torch.tensor([[50, 90], [33, 61], [50, 8]])
    mask = torch.ones(3, *image, dtype=torch.bool)
    for one, (h, w) in zip(mask, sizes.tolist(), strict=True):
        one[:h, :w] = False
    small = F.interpolate(mask[None].float(), size=grid).to(torch.bool)[0]
    counts, valid = grid_valid(sizes, image, grid)
    assert torch.equal(valid, ~small.flatten(1))
    ours = SinePosition(32)(counts, grid)
    expected = literal_positions(small, 32).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours[valid], expected[valid], rtol=0, atol=2e-6)


def test_centred_positions_are_where_the_centres_of_boxes_stand():
    ours = SinePosition(32, centred=True)(torch.tensor([[4, 8]]), (4, 8))
    from foveal.models.boxes import sine_box_code

    centres = torch.tensor([[(x + 0.5) / 8, (y + 0.5) / 4] for y in range(4) for x in range(8)])
    torch.testing.assert_close(ours[0], sine_box_code(centres, 16), rtol=0, atol=1e-5)


def test_learned_positions_put_x_first_and_refuse_large_maps():
    position = LearnedPosition(8)
    code = position(torch.tensor([[2, 3]]), (2, 3)).view(2, 3, 8)
    assert torch.equal(code[1, 2, :4], position.col_embed.weight[2])
    assert torch.equal(code[1, 2, 4:], position.row_embed.weight[1])
    with pytest.raises(FovealError, match="at most 50 x 50, got 51 x 3"):
        position(torch.tensor([[51, 3]]), (51, 3))


def test_layers_are_pytorchs_post_norm_layers():
    """nn.TransformerEncoderLayer without positions: dropout aside, the same figures."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    ours = EncoderLayer(16, 2, 24, 0.0)
    names = {"linear1": "ffn.linear1", "linear2": "ffn.linear2", "norm2": "ffn.norm"}
    state = {}
    for name, value in theirs.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"{names.get(first, first)}.{rest}"] = value
    ours.load_state_dict(state)
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(
        ours(Memory(x, torch.zeros(1, 6, 16), None, (2, 3))).tokens, theirs(x), rtol=0, atol=2e-6
    )


def test_queries_see_their_own_group_alone():
    torch.manual_seed(0)
    layer = DecoderLayer(16, 2, 24, 0.0).eval()
    x, place = torch.randn(1, 7, 16), torch.randn(1, 7, 16)
    memory = Memory(torch.randn(1, 4, 16), torch.zeros(1, 4, 16), None, (2, 2))
    # two groups of two, and one of three whose last is padding
    seen = torch.tensor([[True, True, False]])
    sets = [QuerySet(2, 2), QuerySet(1, 3, seen)]
    y = layer(x, place, place, memory, sets)
    for groups in ([0, 1], [2, 3]):
        alone = layer(x[:, groups], place[:, groups], place[:, groups], memory, [QuerySet(1, 2)])
        torch.testing.assert_close(y[:, groups], alone, rtol=0, atol=1e-6)
    other = x.clone()
    other[:, 6] += 1
    changed = layer(other, place, place, memory, sets)
    torch.testing.assert_close(changed[:, :6], y[:, :6], rtol=0, atol=1e-6)
    assert not torch.allclose(changed[:, 6], y[:, 6])


def test_attention_takes_no_weights_matrix_for_many_tokens():
    """2,500 tokens and 8 heads: 200 MB of weights, of which nothing is allocated at once."""
    from foveal.measure import peak_bytes

    q = torch.randn(1, 2500, 64)
    assert peak_bytes(lambda: attend(q, q, q, 8)) < 20e6
