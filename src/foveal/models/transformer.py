"""DETR's transformer: multi-head attention on the exact operators, position codes, encoder and decoder layers.

Tokens are (b, n, width). A mask (b, m) is True where a key may be attended to. Parameters have the names, shapes and
initial values of ``torch.nn.MultiheadAttention`` and the layers around it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.models.boxes import sine_code
from foveal.nn.positions import validate_positions
from foveal.ops import attention, reference

Mask = Bool[Tensor, "b m"] | None


class Memory(NamedTuple):
    """What the encoder made of a batch of images.

    ``tokens`` and ``position`` are (b, h * w, width), row by row; ``mask`` is None where nothing is padding; ``grid``
    is (h, w).
    """

    tokens: Tensor
    position: Tensor
    mask: Tensor | None
    grid: tuple[int, int]


def split_heads(x: Float[Tensor, "b n hd"], heads: int) -> Float[Tensor, "bh n d"]:
    """Each head as one more image of the batch."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def attend(
    query: Float[Tensor, "b n hd"],
    key: Float[Tensor, "b m hd"],
    value: Float[Tensor, "b m he"],
    heads: int,
    mask: Mask = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b n he"]:
    """Scaled dot-product attention by heads; exact and without the n x m weights, but where weights are dropped."""
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    keys = None if mask is None else mask.repeat_interleave(heads, 0)[:, None]
    scale = q.shape[-1] ** -0.5
    if dropout:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout, scale=scale)
    else:
        y = attention.softmax_attention(q, k, v, scale=scale, mask=keys)
    return y.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def attention_rows(
    query: Float[Tensor, "b r hd"], key: Float[Tensor, "b m hd"], heads: int, mask: Mask = None
) -> Float[Tensor, "b h r m"]:
    """The weights, float32, that `attend` gives some rows of its queries: computed beside it, for pictures."""
    q, k = split_heads(query, heads).float(), split_heads(key, heads).float()
    keys = None if mask is None else mask.repeat_interleave(heads, 0)[:, None]
    weights = reference.softmax_weights(reference.dot_scores(q, k, q.shape[-1] ** -0.5), keys)
    return weights.unflatten(0, (-1, heads))


class MultiheadAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` with positions added to queries and keys, on the exact operators.

    Args:
        width: of tokens. heads: that divide it. dropout: of attention weights, while training.

    Example:
        >>> layer = MultiheadAttention(16, 4)
        >>> x, memory = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
        >>> layer(x, None, memory, None).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise FovealError(f"width must be a multiple of heads={heads}, got {width}")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        # the packed matrix counts as one, as in PyTorch: its bound is smaller than that of three
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def queries_and_keys(
        self, query: Tensor, query_position: Tensor | None, key: Tensor, key_position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Projected queries and keys, (b, n, width) and (b, m, width)."""
        if query is key and query_position is key_position:
            two = 2 * len(self.in_proj_weight) // 3
            both = F.linear(_plus(query, query_position), self.in_proj_weight[:two], self.in_proj_bias[:two])
            return both.chunk(2, -1)  # pyright: ignore[reportReturnType]
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return (
            F.linear(_plus(query, query_position), weights[0], biases[0]),
            F.linear(_plus(key, key_position), weights[1], biases[1]),
        )

    def forward(
        self,
        query: Float[Tensor, "b n d"],
        query_position: Tensor | None,
        key: Float[Tensor, "b m d"],
        key_position: Tensor | None,
        mask: Mask = None,
    ) -> Float[Tensor, "b n d"]:
        q, k = self.queries_and_keys(query, query_position, key, key_position)
        v = F.linear(key, self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2])
        y = attend(q, k, v, self.heads, mask, self.dropout if self.training else 0.0)
        return self.out_proj(y)

    def rows(self, rows: Tensor, *args: Tensor | None, mask: Mask = None) -> Float[Tensor, "b h r m"]:
        """Weights of the queries with the numbers ``rows`` (b, r); ``args`` as for ``forward``."""
        q, k = self.queries_and_keys(*args)  # pyright: ignore[reportArgumentType]
        return attention_rows(take_rows(q, rows), k, self.heads, mask)

    def extra_repr(self) -> str:
        return f"width={self.in_proj_weight.shape[1]}, heads={self.heads}"


class ConcatenatedAttention(nn.Module):
    """Cross-attention whose queries and keys are content and position side by side, so that either finds its own.

    The score of a head is the sum of a content and a position product over twice the width, instead of the product of
    sums, which mixes both.

    Source: Meng et al., Conditional DETR, section 3.2, equation 3; projections as in its released code.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.query_position, self.key_position, self.out_proj = (
            nn.Linear(width, width) for _ in range(6)
        )
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def queries_and_keys(
        self, query: Tensor, query_position: Tensor, key: Tensor, key_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries (b, n, 2 width) and keys (b, m, 2 width), each head's content beside its position."""
        return (
            self._beside(self.query(query), self.query_position(query_position)),
            self._beside(self.key(key), self.key_position(key_position)),
        )

    def _beside(self, content: Tensor, position: Tensor) -> Tensor:
        parts = [x.unflatten(-1, (self.heads, -1)) for x in (content, position.expand_as(content))]
        return torch.cat(parts, -1).flatten(-2)

    def forward(
        self, query: Tensor, query_position: Tensor, key: Tensor, key_position: Tensor, mask: Mask = None
    ) -> Tensor:
        q, k = self.queries_and_keys(query, query_position, key, key_position)
        y = attend(q, k, self.value(key), self.heads, mask, self.dropout if self.training else 0.0)
        return self.out_proj(y)

    def rows(self, rows: Tensor, *args: Tensor, mask: Mask = None) -> Float[Tensor, "b h r m"]:
        """Weights of the queries with the numbers ``rows`` (b, r); ``args`` as for ``forward``."""
        q, k = self.queries_and_keys(*args)
        return attention_rows(take_rows(q, rows), k, self.heads, mask)


def _plus(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


def take_rows(x: Float[Tensor, "b n d"], rows: Int[Tensor, "b r"]) -> Float[Tensor, "b r d"]:
    """``x`` at the row numbers of each image."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


# ------------------------------------------------------------------------------------------------- position codes


def grid_valid(
    sizes: Int[Tensor, "b 2"], image: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How many rows and columns of the feature map are image, (b, 2) int64, and the mask (b, h * w) of both.

    The mask of padding is brought to the map by nearest interpolation, as in DETR.
    """
    inside = []
    for axis in (0, 1):
        place = torch.arange(image[axis], dtype=torch.float32, device=sizes.device)
        nearest = F.interpolate(place[None, None], size=grid[axis], mode="nearest")[0, 0]
        inside.append(nearest < sizes[:, axis : axis + 1])
    counts = torch.stack([axis.sum(1) for axis in inside], 1)
    return counts, (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)


class SinePosition(nn.Module):
    """Codes of the positions of a feature map: half the width for y, then half for x.

    Rows and columns are counted over the image without its padding, from 1 to the last, which stands at 2 pi; with
    ``centred`` their middles are, which is where the centre of a box stands that is a share of the image.

    Source: Carion et al., DETR, appendix A.4 and released code; ``centred``: Zhu et al., Deformable DETR's code.
    """

    def __init__(self, width: int, temperature: float = 10_000.0, centred: bool = False):
        super().__init__()
        if width % 4:
            raise FovealError(f"width must be a multiple of 4 for sine positions, got {width}")
        self.width, self.temperature, self.centred = width, temperature, centred

    def forward(self, counts: Int[Tensor, "b 2"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        codes = []
        for axis in (0, 1):
            count = counts[:, axis : axis + 1].float()
            place = torch.arange(1, grid[axis] + 1, dtype=torch.float32, device=counts.device)[None]
            radians = (place - 0.5 * self.centred) / (count + 1e-6) * (2 * math.pi)
            codes.append(sine_code(radians, self.width // 2, self.temperature))
        y, x = codes
        b, (h, w) = len(counts), grid
        y, x = y[:, :, None].expand(b, h, w, -1), x[:, None].expand(b, h, w, -1)
        return torch.cat([y, x], -1).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"width={self.width}, temperature={self.temperature:g}, centred={self.centred}"


class LearnedPosition(nn.Module):
    """Learned codes of up to 50 rows and 50 columns: half the width for x, then half for y.

    Source: Carion et al., DETR, released code. Deviation: larger maps are refused instead of reading past the table.
    """

    SIZE = 50

    def __init__(self, width: int):
        super().__init__()
        self.row_embed, self.col_embed = (nn.Embedding(self.SIZE, width // 2) for _ in range(2))
        for table in (self.row_embed, self.col_embed):
            nn.init.uniform_(table.weight)

    def forward(self, counts: Int[Tensor, "b 2"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        h, w = grid
        if max(grid) > self.SIZE:
            raise FovealError(
                f"learned positions are for maps of at most {self.SIZE} x {self.SIZE}, got {h} x {w}"
            )
        y = self.row_embed.weight[:h, None].expand(h, w, -1)
        x = self.col_embed.weight[None, :w].expand(h, w, -1)
        return torch.cat([x, y], -1).flatten(0, 1)[None]


# --------------------------------------------------------------------------------------------------------- layers


class FeedForward(nn.Module):
    """The second half of a layer: two linear layers around a ReLU, added and normalised."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.linear1(x)), self.dropout, self.training)
        return self.norm(x + F.dropout(self.linear2(hidden), self.dropout, self.training))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each added and then normalised; positions go to queries and keys alone.

    Example:
        >>> layer = EncoderLayer(16, 2, 24, 0.0)
        >>> memory = Memory(torch.randn(2, 12, 16), torch.zeros(1, 12, 16), None, (3, 4))
        >>> layer(memory).tokens.shape
        torch.Size([2, 12, 16])
        >>> layer.attention(layer.attention_input(memory), [(2, 3)])["rows"].shape
        torch.Size([2, 1, 3, 4])
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, dropout)
        self.dropout = dropout

    def forward(self, memory: Memory) -> Memory:
        x, position, mask, _ = memory
        y = self.self_attn(x, position, x, position, mask)
        x = self.ffn(self.norm1(x + F.dropout(y, self.dropout, self.training)))
        return memory._replace(tokens=x)

    def attention_input(self, memory: Memory) -> Tensor | None:
        """What queries and keys are made of, as a map (b, width, h, w); None where a part of it is padding."""
        if memory.mask is not None:
            return None
        return (memory.tokens + memory.position).transpose(1, 2).unflatten(2, memory.grid)

    @torch.no_grad()
    def attention(
        self, x: Float[Tensor, "b c h w"], positions: Sequence[tuple[int, ...]] | None = None
    ) -> dict[str, Tensor]:
        """``rows`` (b, r, h, w), float32, the mean over heads, of `attention_input` at positions (y, x)."""
        h, w = x.shape[-2:]
        points = torch.tensor(validate_positions(positions or [(h // 2, w // 2)], (h, w)), device=x.device)
        places = (points[:, 0] * w + points[:, 1]).expand(x.shape[0], -1)
        tokens = x.flatten(2).transpose(1, 2)
        rows = self.self_attn.rows(places, tokens, None, tokens, None)
        return {"rows": rows.mean(1).unflatten(-1, (h, w))}


class QuerySet(NamedTuple):
    """``groups`` of ``length`` queries each that see only their own group; ``mask`` (b, groups * length) or None."""

    groups: int
    length: int
    mask: Tensor | None = None


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the image, feed-forward; each added and normalised."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, concatenated: bool = False):
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        cross = ConcatenatedAttention if concatenated else MultiheadAttention
        self.multihead_attn = cross(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, dropout)
        self.dropout = dropout

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        position: Float[Tensor, "b n d"],
        cross_position: Float[Tensor, "b n d"],
        memory: Memory,
        sets: list[QuerySet],
    ) -> Float[Tensor, "b n d"]:
        y = self._among(x, position, sets)
        x = self.norm1(x + F.dropout(y, self.dropout, self.training))
        y = self.multihead_attn(x, cross_position, memory.tokens, memory.position, memory.mask)
        return self.ffn(self.norm2(x + F.dropout(y, self.dropout, self.training)))

    def _among(self, x: Tensor, position: Tensor, sets: list[QuerySet]) -> Tensor:
        """Self-attention within each group: groups become images of a larger batch, and no n x n mask is needed."""
        if len(sets) == 1 and sets[0].groups == 1 and sets[0].mask is None:
            return self.self_attn(x, position, x, position)
        parts, start = [], 0
        for groups, length, mask in sets:
            part = slice(start, start + groups * length)
            one, place = (z[:, part].unflatten(1, (groups, length)).flatten(0, 1) for z in (x, position))
            keys = None if mask is None else mask.unflatten(1, (groups, length)).flatten(0, 1)
            parts.append(
                self.self_attn(one, place, one, place, keys).unflatten(0, (-1, groups)).flatten(1, 2)
            )
            start = part.stop
        return torch.cat(parts, 1)


class MLP(nn.Module):
    """Linear layers with ReLU between them, named as DETR's."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x
