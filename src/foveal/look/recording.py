"""What each attention site of a network received, and the attention computed from it when asked.

Gates, masks and rows are computed from a copy of the block's input, in float32, by the block's own ``attention``.
N x N attention is therefore never stored: only the rows that are asked for exist.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.look.changes import BlockState, block_state
from foveal.look.geometry import query_grid
from foveal.look.readers import Reader, foreign_gates, token_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SiteRecording:
    """What one site received in the last forward pass, and the attention computed from it.

    Attributes:
        name: the module's path in the network, for example ``"layer3.0.bn2.cbam"``.
        block: class of the block, for example ``"CBAM"``.
        options: the options it was inserted or built with, as text.
        weights: what the caller of ``watch`` says the weights are; drawn into every title.
        spatial: shape of the site's map without batch and channels, for example ``(14, 14)``.
        image_size: height and width of the network's input (frames first for clips).
        tokens: whether this is a transformer's attention, whose output is not a changed copy of its input.
        problem: why there is nothing to read, where there is nothing.
    """

    def __init__(self, name: str, module: nn.Module, reader: Reader, options: str, weights: str):
        self.name = name
        self.block = type(module).__name__
        self.options = options
        self.weights = weights
        self.tokens = reader is token_rows or hasattr(module, "attention_input")
        self.spatial: tuple[int, ...] = ()
        self.image_size: tuple[int, ...] = ()
        self.problem = (
            "it never ran (was the forward pass made inside `with`, and is the network not compiled?)"
        )
        self.module = module
        self._reader = reader
        self._input: Tensor | None = None
        self._state: BlockState | None = None
        self._training: dict[str, bool] = {}
        self._frozen: nn.Module | None = None

    def __repr__(self) -> str:
        label = f"{self.name or '(the block itself)'}: {self.block}({self.options})"
        if self._input is None or self._state is None:
            return f"<SiteRecording {label}, nothing recorded: {self.problem}>"
        size = " x ".join(map(str, self.spatial))
        try:
            shows = ", ".join(READ_AS.get(key, key) for key in sorted(self.shows()))
        except FovealError as error:
            shows = f"nothing: {error}"
        return f"<SiteRecording {label}, map {size}, {len(self._input)} images, has {shows}>"

    @property
    def input(self) -> Tensor:
        """The recorded input, as the block received it (detached copy)."""
        if self._input is None or self._state is None:
            raise FovealError(f"nothing is recorded at {self.name!r}: {self.problem}")
        return self._input

    @property
    def gates(self) -> Float[Tensor, "b c"]:
        """Channel gates, shape (b, c); the factor each channel was multiplied by."""
        return self._need("channel_gate")

    @property
    def mask(self) -> Tensor:
        """Spatial mask, shape (b, 1, *spatial); the factor each position was multiplied by."""
        return self._need("spatial_mask")

    @property
    def channels(self) -> Float[Tensor, "b c c"]:
        """Channel attention matrix, shape (b, c, c); row i holds the weights channel i is mixed from."""
        return self._need("channel_matrix")

    def rows(self, *positions: tuple[int, ...]) -> Tensor:
        """Attention rows of the asked query positions, shape (b, r, *key_spatial).

        Args:
            positions: index tuples in the site's map, ``(y, x)`` in 2-D, ``(t, y, x)`` for clips; without any,
                the centre. ``cell`` turns an image pixel into one. Sub-sampled keys keep their own grid;
                ``on_pixels`` maps it back. Rows of a transformer are the mean over heads, on patch tokens:
                what is missing to 1 lies on the class and register tokens.

        Raises:
            FovealError: for a position outside the map, or a block without rows.
        """
        for position in positions:
            inside = len(position) == len(self.spatial) and all(
                0 <= p < size for p, size in zip(position, self.spatial, strict=True)
            )
            if self._input is not None and not inside:
                raise FovealError(
                    f"a position must lie inside the map of {self.name!r}, {self.spatial}, got {position} "
                    "(for an image pixel pass recording.cell(pixel))"
                )
        return self._need("rows", positions or (tuple(size // 2 for size in self.spatial),))

    def shows(self) -> frozenset[str]:
        """What this site can show: some of ``channel_gate``, ``spatial_mask``, ``rows``, ``channel_matrix``."""
        return frozenset(self.attention())

    def attention(self, positions: Sequence[tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        """Everything the block attends with, by name, in float32 (float64 for a float64 network).

        Raises:
            FovealError: nothing was recorded, the block changed since, or its attention is not finite.
        """
        x = self._exact_input()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            found = self._reader(self._frozen_module(), x, positions, self.spatial)
        for key, value in found.items():
            if not torch.isfinite(value).all():
                raise FovealError(
                    f"the {READ_AS.get(key, key)} of {self.name!r} ({self.block}) must be finite, got nan or infinite "
                    f"values; the weights ({self.weights}) or the image are not finite, or too large"
                )
        return found

    def contribution(self) -> Float[Tensor, " b"]:
        """How much the block changes its input, ``||block(x) - x|| / ||x||`` per image; 0 is inert.

        Raises:
            FovealError: for a transformer's attention, whose output is not a change of its input.
        """
        if self.tokens:
            raise FovealError(f"{self.name!r} ({self.block}) is no block that passes its input on")
        x = self._exact_input()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            change = self._frozen_module().forward(x) - x
        return change.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)

    def most_distinct_query(self, index: int = 0, queries: int = 8) -> tuple[int, ...]:
        """The query whose row differs most from the mean row, over a grid: the one with most of its own to show."""
        points = query_grid(self.spatial, queries)
        rows = self.rows(*points)[index].flatten(1)
        shares = rows / rows.abs().sum(-1, keepdim=True).clamp_min(1e-30)
        return points[int((shares - shares.mean(0)).abs().sum(-1).argmax())]

    def cell(self, pixel: tuple[int, ...], image_size: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The position in the site's map that lies under an image pixel (``image_size``: default as recorded)."""
        size = image_size or self.image_size[-len(self.spatial) :]
        if len(pixel) != len(size) or not all(0 <= p < s for p, s in zip(pixel, size, strict=False)):
            raise FovealError(f"a pixel must lie inside the image, {tuple(size)}, got {pixel}")
        return tuple(p * cells // s for p, cells, s in zip(pixel, self.spatial, size, strict=True))

    def pixel(self, cell: tuple[int, ...]) -> tuple[int, ...]:
        """The image pixel in the middle of a position of the site's map."""
        size = self.image_size[-len(self.spatial) :]
        return tuple(
            (2 * c + 1) * s // (2 * cells) for c, s, cells in zip(cell, size, self.spatial, strict=True)
        )

    def plot(
        self, image: Tensor | None = None, *, pixel: tuple[int, ...] | None = None, index: int = 0
    ) -> Figure:
        """Draw what this site shows of one image; the figure shows itself in a notebook.

        Drawn is the row of a query where the block has rows, else its mask, gates or channel matrix. The functions
        ``foveal.look.draw_*`` draw each of them.

        Args:
            image: the image under the map: (3, H, W), or (3, t, H, W) for a clip, uint8, or floating point, which is
                scaled by its own range where it leaves 0..1. Without one, the map lies on grey.
            pixel: (y, x) of the query in the image; by default the one whose row differs most from the others.
            index: which image of the batch.
        """
        from foveal.look.plot import draw_site

        return draw_site(self, image, pixel=pixel, index=index)

    @property
    def held_bytes(self) -> int:
        """Bytes that this recording holds now: of the input, and of a copy of the block where reading made one."""
        held = [self._input] if self._input is not None else []
        if self._frozen is not None:
            held += [*self._frozen.parameters(), *self._frozen.buffers()]
        return sum(value.numel() * value.element_size() for value in held)

    # ------------------------------------------------------------------------------------------- used by the hooks

    def take(self, x: Tensor, spatial: tuple[int, ...]) -> None:
        """Keep a copy of the input; it can be read once `finish` says that the block ran."""
        self._input, self.spatial, self._frozen, self._state = x.detach().clone(), spatial, None, None
        self._training = {path: module.training for path, module in self.module.named_modules()}
        self.problem = "its forward pass did not come to its end"

    def finish(self) -> None:
        """Take down what the block is after its pass: spectral norm has improved its vectors by then, and used them."""
        if self._input is not None:
            self._state = block_state(self.module, self._training)

    def forget(self, problem: str) -> None:
        """Drop what was recorded, for this reason."""
        self._input, self._frozen, self._state, self.problem = None, None, None, problem

    # ------------------------------------------------------------------------------------------------------ reading

    def _exact_input(self) -> Tensor:
        return self.input.to(torch.promote_types(self.input.dtype, torch.float32))

    def _need(self, key: str, positions: Sequence[tuple[int, ...]] | None = None) -> Tensor:
        found = self.attention(positions)
        if key not in found:
            has = ", ".join(READ_AS.get(name, name) for name in sorted(found))
            raise FovealError(f"{self.name!r} ({self.block}) has no {READ_AS[key]}; it has {has}")
        return found[key]

    def _frozen_module(self) -> nn.Module:
        """The block, or a float32 copy, so that reading later neither touches nor depends on the network's mode.

        A float32 block that was and is in eval mode is read as it is: the copies of many recordings would take more
        memory than the recordings. Gates of other libraries are caught by hooks, which only a copy may carry.

        BatchNorm keeps the mode it recorded in, for it decides the output; all else is in eval mode, where
        spectral norm reuses the vectors of the recorded pass instead of improving them once more.
        """
        x = self._exact_input()
        assert self._state is not None
        changed = self._state.difference(block_state(self.module, self._training))
        if changed is not None:
            raise FovealError(
                f"{self.name!r} ({self.block}) must be as it was recorded, but {changed} since; record again"
            )
        still = not any(self._training.values()) and not any(
            module.training for module in self.module.modules()
        )
        exact = all(p.dtype == x.dtype for p in self.module.parameters())
        if still and exact and self._reader is not foreign_gates:
            return self.module
        if self._frozen is None:
            frozen = copy.deepcopy(self.module).eval()
            for path, module in frozen.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(self._training[path])
            self._frozen = frozen if x.dtype == torch.float64 else frozen.float()
        return self._frozen


READ_AS = {
    "channel_gate": "gates",
    "spatial_mask": "mask",
    "rows": "rows",
    "channel_matrix": "channels",
}
"""{name in ``attention()``: the attribute of a recording that gives it}."""


class Recordings(Mapping[str, SiteRecording]):
    """The recordings of one ``watch``, by site. A name may be shortened to any unique beginning or inner path.

    Attributes:
        skipped: {module path: reason} of attention modules that cannot be read exactly.
        max_bytes: bound on the bytes of all recorded inputs together.
    """

    def __init__(self, sites: dict[str, SiteRecording], skipped: dict[str, str], max_bytes: int):
        self._sites = sites
        self.skipped = skipped
        self.max_bytes = max_bytes

    def __getitem__(self, name: str) -> SiteRecording:
        if name in self._sites:
            return self._sites[name]
        matches = [key for key in self._sites if f".{key}.".find(f".{name}.") >= 0]
        if len(matches) > 1:
            prefixed = [key for key in matches if key.startswith(f"{name}.")]
            matches = prefixed if len(prefixed) == 1 else matches
        if len(matches) == 1:
            return self._sites[matches[0]]
        if matches:
            raise KeyError(f"{name!r} names several sites, give one of {', '.join(matches)}")
        raise KeyError(f"no site {name!r}; the sites are {', '.join(self._sites) or 'none'}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        lines = [f"<Recordings of {len(self)} sites, {self.recorded_bytes / 2**20:.1f} MiB>"]
        lines += [f"  {recording!r}" for recording in self.values()]
        lines += [f"  not read: {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    def plot(self, image: Tensor | None = None, *, index: int = 0) -> Figure:
        """Draw every site in one figure, which shows itself in a notebook; as `SiteRecording.plot` does one."""
        from foveal.look.plot import draw_sites

        return draw_sites(self, image, index=index)

    @property
    def recorded_bytes(self) -> int:
        """Bytes held by the recorded inputs now; never above ``max_bytes``."""
        inputs = (recording._input for recording in self._sites.values())
        return sum(x.numel() * x.element_size() for x in inputs if x is not None)

    @property
    def held_bytes(self) -> int:
        """Bytes held by the recorded inputs and by the copies of blocks that reading made."""
        return sum(recording.held_bytes for recording in self._sites.values())
