"""Refuse what a block cannot take, in one clear line."""

from collections.abc import Iterable

from torch import Tensor


def one_of(owner: str, name: str, value: str, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def spatial_dims(owner: str, dims: int) -> None:
    if dims not in (1, 2, 3):
        raise ValueError(f"{owner}: dims must be 1, 2 or 3, got {dims!r}")


def positive(owner: str, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}: {name} must be a whole number of at least 1, got {value!r}")


def reduced_width(owner: str, channels: int, reduction: int, width: int | None, name: str = "hidden") -> int:
    """``width`` where given, else ``channels // reduction``, which must leave something."""
    if width is not None:
        positive(owner, channels=channels, **{name: width})
        return width
    positive(owner, channels=channels, reduction=reduction)
    if channels < reduction:
        raise ValueError(
            f"{owner}: reduction must leave at least 1 {name} channel (or give {name}=), "
            f"got channels={channels}, reduction={reduction}"
        )
    return channels // reduction


def feature_map(owner: str, x: Tensor, channels: int, dims: int | None = None) -> None:
    """``x`` must be (batch, channels, *spatial): ``dims`` spatial sizes, or 1 to 3 where that is None."""
    fits = x.ndim - 2 == dims if dims else 3 <= x.ndim <= 5
    if not fits or x.shape[1] != channels:
        sizes = f"{dims or '1 to 3'} spatial size{'' if dims == 1 else 's'}"
        raise ValueError(
            f"{owner}: input must be (batch, {channels} channels, {sizes}), got shape {tuple(x.shape)}"
        )
