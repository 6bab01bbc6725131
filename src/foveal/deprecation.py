"""Public names on their way out: they work as before and say what takes their place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def deprecated(since: str, instead: str) -> Callable[[F], F]:
    """Mark a public function or class that a later release removes; calling it warns the caller, once a place.

    Args:
        since: the release that deprecates it.
        instead: what to write in its place.

    Example:
        >>> @deprecated("0.2.0", "foveal.insert")
        ... def add_block(net):
        ...     return net
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = add_block(1)
        >>> str(caught[0].message)
        'add_block is deprecated since foveal 0.2.0 and will be removed: use foveal.insert'
    """

    def mark(old: F) -> F:
        text = f"{old.__name__} is deprecated since foveal {since} and will be removed: use {instead}"

        @functools.wraps(old)
        def warn_and_call(*args: Any, **kwargs: Any) -> Any:
            # FutureWarning is shown to everybody, DeprecationWarning to those who run tests
            warnings.warn(text, FutureWarning, stacklevel=2)
            return old(*args, **kwargs)

        return warn_and_call  # pyright: ignore[reportReturnType]

    return mark
