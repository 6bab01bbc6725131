"""Checks of options and inputs: what a block cannot take is refused in one clear line."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from foveal.errors import FovealError


def choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a ``value`` that is not one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        raise FovealError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def rules(*rows: tuple[str, object, str, bool]) -> None:
    """Refuse the first option that breaks its rule.

    Args:
        rows: name of the option, the value that came, the rule in words, and whether it holds.
    """
    for option, given, rule, holds in rows:
        if not holds:
            raise FovealError(f"{option} must be {rule}, got {given!r}")


def spatial_dims(dims: int) -> None:
    """Refuse a number of spatial sizes other than 1, 2 and 3."""
    if dims not in (1, 2, 3):
        raise FovealError(f"dims must be 1, 2 or 3, got {dims!r}")


def positive(**values: int) -> None:
    """Refuse a value that is not a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FovealError(f"{name} must be a whole number of at least 1, got {value!r}")


def reduced_width(channels: int, reduction: int, hidden: int | None) -> int:
    """Return ``hidden`` if it is given, else ``channels // reduction``, which must be at least 1."""
    if hidden is not None:
        positive(channels=channels, hidden=hidden)
        return hidden
    positive(channels=channels, reduction=reduction)
    if channels < reduction:
        raise FovealError(
            f"reduction must leave at least 1 hidden channel, got channels={channels}, reduction={reduction}"
        )
    return channels // reduction


def default_width(channels: int, divisor: int, **width: int | None) -> int:
    """Return the one ``width`` if it is given, else ``channels // divisor``, which must be at least 1."""
    ((name, given),) = width.items()
    if given is not None:
        positive(channels=channels, **{name: given})
        return given
    positive(channels=channels)
    if channels < divisor:
        raise FovealError(
            f"channels must be at least {divisor} (or {name} given, which is channels // {divisor} "
            f"otherwise), got channels={channels}"
        )
    return channels // divisor


def feature_map(x: Tensor, channels: int, dims: int | None = None) -> None:
    """Refuse an ``x`` that is not (batch, channels, *spatial), with ``dims`` spatial sizes, or 1 to 3 for None."""
    fits = x.ndim - 2 == dims if dims else 3 <= x.ndim <= 5
    if not fits or x.shape[1] != channels:
        sizes = f"{dims or '1 to 3'} spatial size{'' if dims == 1 else 's'}"
        raise FovealError(f"input must be (batch, {channels} channels, {sizes}), got shape {tuple(x.shape)}")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling ``module`` is what its class says: no subclass, no hooks, no ``forward`` of its own."""
    own = module.__dict__  # read at every call of a gate: quicker than attributes
    watched = (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )
    return type(module) is kind and not watched and "forward" not in own and not _has_any_global_hook()


def plain_parameters(module: nn.Module | None, kind: type[nn.Module], *names: str) -> list[Any] | None:
    """Return the parameters of these names; None if ``module`` is not plain, or lacks one of them.

    Example:
        >>> layer = nn.Linear(2, 3, bias=False)
        >>> [None if one is None else tuple(one.shape) for one in plain_parameters(layer, nn.Linear, "weight", "bias")]
        [(3, 2), None]
        >>> plain_parameters(nn.Dropout(), nn.Linear, "weight")
    """
    if module is None or not is_plain(module, kind) or not all(name in module._parameters for name in names):
        return None
    return [module._parameters[name] for name in names]
