"""Record what each attention site of a network received, and compute its weights from that when asked.

A forward pre-hook copies the input of every block; nothing else happens during the pass, so the network's
output does not change by a bit. Gates, masks and rows are computed later, from the copy, in float32, by the
block's own ``attention``. N x N attention is therefore never stored: only the rows that are asked for exist.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion import inserted
from foveal.look.readers import (
    Reader,
    foreign_gates,
    is_token_attention,
    reader_of,
    token_grid,
    token_rows,
)


class Record:
    """What one site saw in the last forward pass, and the attention computed from it.

    Attributes:
        name: the module's path in the network, for example ``"layer3.0.bn2.cbam"``.
        block: class of the block, for example ``"CBAM"``.
        options: the options it was inserted or built with, as text.
        weights: what the caller of ``watch`` says the weights are; drawn into every title.
        spatial: shape of the site's map without batch and channels, for example ``(14, 14)``.
        tokens: whether this is a transformer's attention, whose output is not a changed copy of its input.
    """

    def __init__(self, name: str, module: nn.Module, reader: Reader, options: str, weights: str):
        self.name = name
        self.block = type(module).__name__
        self.options = options
        self.weights = weights
        self.tokens = reader is token_rows
        self.spatial: tuple[int, ...] = ()
        self.image_size: tuple[int, ...] = ()
        self.problem = (
            "it never ran (was the forward pass made inside `with`, and is the network not compiled?)"
        )
        self._module = module
        self._reader = reader
        self._input: Tensor | None = None
        self._versions: tuple[int, ...] = ()
        self._training: list[bool] = []
        self._frozen: nn.Module | None = None

    @property
    def input(self) -> Tensor:
        """The recorded input, as the block received it (detached copy)."""
        if self._input is None:
            raise FovealError(f"nothing is recorded at {self.name!r}: {self.problem}")
        return self._input

    @property
    def gates(self) -> Float[Tensor, "b c"]:
        """Channel gates, shape (b, c); the factor each channel was multiplied by."""
        return self._need("channel_gate", "gates")

    @property
    def mask(self) -> Tensor:
        """Spatial mask, shape (b, 1, *spatial); the factor each position was multiplied by."""
        return self._need("spatial_mask", "mask")

    @property
    def channels(self) -> Float[Tensor, "b c c"]:
        """Channel attention matrix, shape (b, c, c); row i holds the weights channel i is mixed from."""
        return self._need("channel_matrix", "channels")

    def rows(self, *positions: tuple[int, ...]) -> Tensor:
        """Attention rows of the asked query positions, shape (b, r, *key_spatial).

        Args:
            positions: index tuples in the site's map, ``(y, x)`` in 2-D, ``(t, y, x)`` for clips; without any,
                the centre. ``cell`` turns an image pixel into one. Sub-sampled keys keep their own grid;
                ``on_pixels`` maps it back. Rows of a transformer are the mean over heads, on patch tokens:
                what is missing to 1 lies on the class and register tokens.

        Raises:
            ValueError: for a position outside the map, or a block without rows.
        """
        for position in positions:
            inside = len(position) == len(self.spatial) and all(
                0 <= p < size for p, size in zip(position, self.spatial, strict=True)
            )
            if self._input is not None and not inside:
                raise FovealError(
                    f"a position must lie inside the map of {self.name!r}, {self.spatial}, got {position} "
                    "(for an image pixel pass record.cell(pixel))"
                )
        return self._need("rows", "rows", positions or (tuple(size // 2 for size in self.spatial),))

    def shows(self) -> frozenset[str]:
        """What this site can show: some of ``channel_gate``, ``spatial_mask``, ``rows``, ``channel_matrix``."""
        return frozenset(self.attention())

    def attention(self, positions: Sequence[tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        """Everything the block attends with, by name, in float32 (float64 for a float64 network)."""
        x = self._exact_input()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self._reader(self._frozen_module(), x, positions, self.spatial)

    def contribution(self) -> Float[Tensor, " b"]:
        """How much the block changes its input, ``||block(x) - x|| / ||x||`` per image; 0 is inert.

        Raises:
            ValueError: for a transformer's attention, whose output is not a change of its input.
        """
        if self.tokens:
            raise FovealError(f"{self.name!r} ({self.block}) is no block that passes its input on")
        x = self._exact_input()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            change = self._frozen_module().forward(x) - x
        return change.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)

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

    def _exact_input(self) -> Tensor:
        return self.input.to(torch.promote_types(self.input.dtype, torch.float32))

    def _need(self, key: str, what: str, positions: Sequence[tuple[int, ...]] | None = None) -> Tensor:
        found = self.attention(positions)
        if key not in found:
            raise FovealError(f"{self.name!r} ({self.block}) has none; it has {', '.join(sorted(found))}")
        return found[key]

    def _frozen_module(self) -> nn.Module:
        """The block, or a float32 copy, so that reading later neither touches nor depends on the network's mode.

        A float32 block that was and is in eval mode is read as it is: the copies of many recordings would take more
        memory than the recordings. Gates of other libraries are caught by hooks, which only a copy may carry.

        BatchNorm keeps the mode it recorded in, for it decides the output; all else is in eval mode, where
        spectral norm reuses the vectors of the recorded pass instead of improving them once more.
        """
        if self._versions != _versions(self._module):
            raise FovealError(f"the weights of {self.name!r} changed since the recording; record again")
        still = not any(self._training) and not any(module.training for module in self._module.modules())
        exact = all(p.dtype == self._exact_input().dtype for p in self._module.parameters())
        if still and exact and self._reader is not foreign_gates:
            return self._module
        if self._frozen is None:
            frozen = copy.deepcopy(self._module).eval()
            for module, training in zip(frozen.modules(), self._training, strict=True):
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(training)
            self._frozen = frozen if self.input.dtype == torch.float64 else frozen.float()
        return self._frozen

    def _take(self, x: Tensor, spatial: tuple[int, ...]) -> None:
        self._input = x.detach().clone()
        self.spatial = spatial
        self._versions = _versions(self._module)
        self._training = [module.training for module in self._module.modules()]
        self._frozen = None

    def _forget(self, problem: str) -> None:
        self._input, self._frozen, self.problem = None, None, problem


class Seen(Mapping[str, Record]):
    """The records of one ``watch``, by site. A name may be shortened to any unique beginning or inner path.

    Attributes:
        skipped: {module path: reason} of attention modules that cannot be read exactly.
        max_bytes: bound on the bytes of all recorded inputs together.
    """

    def __init__(self, records: dict[str, Record], skipped: dict[str, str], max_bytes: int):
        self._records = records
        self.skipped = skipped
        self.max_bytes = max_bytes

    def __getitem__(self, name: str) -> Record:
        if name in self._records:
            return self._records[name]
        matches = [key for key in self._records if f".{key}.".find(f".{name}.") >= 0]
        if len(matches) > 1:
            prefixed = [key for key in matches if key.startswith(f"{name}.")]
            matches = prefixed if len(prefixed) == 1 else matches
        if len(matches) == 1:
            return self._records[matches[0]]
        if matches:
            raise KeyError(f"watch: {name!r} names several sites, give one of {', '.join(matches)}")
        raise KeyError(f"watch: no site {name!r}; the sites are {', '.join(self._records) or 'none'}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def recorded_bytes(self) -> int:
        """Bytes held by the recorded inputs now; never above ``max_bytes``."""
        inputs = (record._input for record in self._records.values())
        return sum(x.numel() * x.element_size() for x in inputs if x is not None)


@contextmanager
def watch(
    net: nn.Module, sites: str | Sequence[str] = "*", *, weights: str = "not named", max_bytes: int = 2**28
) -> Iterator[Seen]:
    """Record the input of every attention site of ``net`` while the ``with`` block runs.

    Found are: every module with the block contract (an ``attention`` method), inserted or built in; SE, ECA and
    CBAM modules of timm and torchvision; softmax attention of timm's plain transformers. Each new forward pass
    replaces the last. Hooks are gone when the ``with`` block ends, however it ends; the result stays readable.

    Args:
        net: any module.
        sites: path patterns (``fnmatch``) of the modules to record; default all.
        weights: what the weights are; every picture says it.
        max_bytes: bound on all recorded inputs together (default 256 MiB). A site that does not fit is not
            recorded, and reading it says so. Reading adds one float32 copy of the site's input and the rows.

    Returns:
        (as the ``with`` target) ``Seen``: ``seen["layer3.0"].gates`` (b, c), ``.mask`` (b, 1, *spatial),
        ``.rows((y, x))`` (b, r, *key_spatial), ``.channels`` (b, c, c).

    Raises:
        ValueError: if ``net`` has no attention site that matches.

    Example:
        >>> import torch
        >>> from torchvision.ops import SqueezeExcitation
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), SqueezeExcitation(8, 2))
        >>> with watch(net) as seen:
        ...     y = net(torch.rand(1, 3, 32, 32))
        >>> seen["1"].gates.shape
        torch.Size([1, 8])
    """
    patterns = [sites] if isinstance(sites, str) else list(sites)
    records, skipped = _find(net, weights)
    chosen = {
        name: record
        for name, record in records.items()
        if any(fnmatchcase(name, p) or fnmatchcase(name, p + ".*") for p in patterns)
    }
    if not chosen:
        have = ", ".join(records) if records else "none"
        unread = "".join(f"; {name}: {reason}" for name, reason in skipped.items())
        raise FovealError(f"sites={patterns} must match an attention site, got a network with {have}{unread}")
    seen = Seen(chosen, skipped, max_bytes)
    handles = []

    def on_net(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        images = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        for record in chosen.values():
            record.image_size = tuple(images[0].shape[2:]) if images else ()
            record._forget("it did not run in the last forward pass")

    def on_site(record: Record) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, object]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
            record._forget("it could not be recorded")
            if any(value is not None and value is not False for value in (*args[1:], *kwargs.values())):
                record._forget("it was called with a mask or further inputs, which the rows would not show")
                return
            x = args[0]
            tokens = is_token_attention(record._module)
            spatial = token_grid(net, x, record.image_size) if tokens else tuple(x.shape[2:])
            needed = x.numel() * x.element_size()
            if spatial is None:
                record._forget(f"its {x.shape[1]} tokens are not the grid of the image")
            elif seen.recorded_bytes + needed > max_bytes:
                record._forget(
                    f"its input of {needed:,} bytes does not fit in max_bytes={max_bytes:,} beside the others; "
                    "pass a larger max_bytes, fewer images or fewer sites"
                )
            else:
                record._take(x, spatial)

        return hook

    try:
        handles.append(net.register_forward_pre_hook(on_net, with_kwargs=True))
        for record in chosen.values():
            handles.append(record._module.register_forward_pre_hook(on_site(record), with_kwargs=True))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def on_pixels(
    values: Float[Tensor, "*lead kh kw"], spatial: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """Lay a map over an image without smoothing: each pixel shows the weight of the cell it lies in.

    Args:
        values: the map, on the site's grid or on a sub-sampled key grid.
        spatial: (h, w) of the site's map, to undo sub-sampling: a 2x2 pool of a 7x7 map has 3x3 keys, each of
            which covers 2x2 cells, and the last row and column of cells belong to no key and show 0.
        size: (H, W) of the image.

    Returns:
        Tensor (*lead, H, W).

    Example:
        >>> import torch
        >>> keys = torch.tensor([[1.0, 2.0]])  # pooled by 2 from a map of 3 x 5 cells
        >>> on_pixels(keys, (3, 5), (3, 5)).tolist()
        [[1.0, 1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    for dim, (cells, pixels) in enumerate(zip(spatial, size, strict=True), start=values.ndim - 2):
        keys = values.shape[dim]
        step = next((s for s in (1, 2) if cells // s == keys), cells // keys)
        key = (torch.arange(pixels, device=values.device) * cells // pixels) // step
        shape = [1] * values.ndim
        shape[dim] = pixels
        values = values.index_select(dim, key.clamp(max=keys - 1)) * (key < keys).reshape(shape)
    return values


# ------------------------------------------------------------------------------------------------ finding sites


def _find(net: nn.Module, weights: str) -> tuple[dict[str, Record], dict[str, str]]:
    """The outermost readable modules, and the attention modules that hold none and cannot be read."""
    options = {id(found.module): found.options for found in inserted(net)}
    records: dict[str, Record] = {}
    unread: dict[str, str] = {}
    for name, module in net.named_modules():
        if any(name.startswith(f"{found}.") for found in records):
            continue
        reader = reader_of(module)
        if reader is not None:
            named = [f"{key}={value!r}" for key, value in options.get(id(module), {}).items()]
            stated = dict.fromkeys([*named, *filter(None, module.extra_repr().split(", "))])
            records[name] = Record(name, module, reader, ", ".join(stated), weights)
        elif re.search("Attention|Attn", type(module).__name__):
            unread[name] = f"{type(module).__module__}.{type(module).__name__} has no exact reader"
    holds_record = {name for name in unread for found in records if found.startswith(f"{name}.")}
    return records, {name: reason for name, reason in unread.items() if name not in holds_record}


def _versions(module: nn.Module) -> tuple[int, ...]:
    """Changes whenever an optimiser or a load writes into a parameter."""
    return tuple(parameter._version for parameter in module.parameters())
