"""What the operators agree on: the dtype of sums, autocast, memory order, and when a graph is being exported."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor


def exporting() -> bool:
    """Return True while a graph is recorded for another runtime, which knows no custom operators."""
    # torch.onnx.export is one of the two, and asking for it takes longer than both
    return torch.compiler.is_exporting() or tracing()


def tracing() -> bool:
    """Return True inside ``torch.jit.trace``, where sizes are tensors."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def is_empty(query: Tensor) -> bool:
    """Return True if an empty batch or no query leaves nothing to compute, False while sizes may be symbolic."""
    return not torch.compiler.is_compiling() and query.numel() == 0


def is_channels_last(x: Tensor) -> bool:
    """Return True if the channels of a map of any number of spatial sizes lie beside each other in memory."""
    if x.ndim == 4:
        return x.is_contiguous(memory_format=torch.channels_last)  # quicker asked
    return x.movedim(1, -1).is_contiguous()


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which sums over ``x`` run: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def autocast_disabled(device: torch.device) -> AbstractContextManager:
    """Switch autocast off for ``device``, for a caller that has chosen its dtypes."""
    # the meta device has no autocast to ask about
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


# ------------------------------------------------------------------------------------------------- memory order
# A feature map is stored (b, e, m) and seen as values (b, m, e). Results are stored as their values are, so that
# the caller's feature map needs no copy.


def is_transposed(x: Tensor) -> bool:
    """Return True for (b, m, e) seen from a feature map that is stored (b, e, m)."""
    return x.stride(-1) != 1 and x.stride(-2) == 1


def empty_like_value(value: Float[Tensor, "b m e"], n: int | torch.SymInt) -> Float[Tensor, "b n e"]:
    """Return an uninitialised (b, n, e), stored (b, e, n) where ``value`` is the view of a feature map."""
    batch, _, e = value.shape
    return value.new_empty(batch, e, n).mT if is_transposed(value) else value.new_empty(batch, n, e)


def stored_like_value(y: Float[Tensor, "b n e"], value: Float[Tensor, "b m e"]) -> Float[Tensor, "b n e"]:
    """Return the contiguous ``y`` in the dtype and memory order of ``value``."""
    if not is_transposed(value):
        return y.to(value.dtype)
    stored = y.new_empty(y.shape[0], y.shape[2], y.shape[1], dtype=value.dtype)
    # PyTorch copies a single transposed matrix in blocks, a batch of them element by element
    for target, source in zip(stored, y, strict=True):
        target.copy_(source.T)
    return stored.mT


def contiguous_rows(x: Float[Tensor, "b m e"]) -> Float[Tensor, "b m e"]:
    """Return ``x`` contiguous, in the dtype of its sums."""
    if is_transposed(x):
        rows = x.new_empty(x.shape)
        for target, source in zip(rows, x, strict=True):
            target.copy_(source)
        x = rows
    return x.to(sum_dtype(x)).contiguous()
