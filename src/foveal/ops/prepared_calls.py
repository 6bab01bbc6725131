"""Calls of native kernels that were prepared once, for maps of one size and the weights of one gate.

A gate takes microseconds, and so does Python when it collects what a kernel needs: sizes, addresses, room for what lies
between the steps. What does not change from call to call is therefore collected once.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveal.ops.kernels.native import openmp
from foveal.ops.kernels.native.call import SUMS, Call

KEPT_BYTES = 2**22
"""Of memory that a call needs between its steps, so much is kept for the next one."""


class PreparedCalls:
    """Calls for the maps and weights that came last, of inference alone; a copy begins without any."""

    def __init__(self) -> None:
        self._kept: tuple[list[Any], list[Call]] = ([], [])
        """What the calls are for, and those that nobody uses at this moment: one value, as threads replace it."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def run(
        self, maps: dict[str, Tensor], like: dict[str, Tensor], weights: Sequence[Tensor], *options: Any
    ) -> bool:
        """Run a call that is there for such maps, weights and options; else say no.

        Args:
            maps: the maps that decide which call fits, by the names of the kernel's slots.
            like: other maps, which are as one of these.
        """
        key, free = self._kept
        if key != _key(maps, weights, options):
            return False
        try:
            call = free.pop()
        except IndexError:  # another thread has it
            return False
        call.run(**maps, **like)
        free.append(call)
        return True

    def keep(self, call: Call, maps: dict[str, Tensor], weights: Sequence[Tensor], *options: Any) -> None:
        """Keep a call for the next such maps, unless it needs much memory, or copies of weights."""
        # what was converted or copied would not follow its origin
        sums = SUMS[maps["x"].dtype]
        follows = all(weight.dtype == sums and weight.is_contiguous() for weight in weights)
        if follows and call.bytes_between <= KEPT_BYTES:
            key = _key(maps, weights, options)
            kept = self._kept
            if key != kept[0]:
                kept = self._kept = (key, [])
            kept[1].append(call)


def _key(maps: dict[str, Tensor], weights: Sequence[Tensor], options: Sequence[Any]) -> list[Any]:
    key = [openmp.threads_for(maps["x"].numel()), *options]
    for one in maps.values():
        key += one.shape, one.stride(), one.dtype
    return key + [weight.data_ptr() for weight in weights]
