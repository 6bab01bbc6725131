"""What a case of the benchmark is: calls that compute the same, and the bars that foveal's has to meet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "foveal"


@dataclass(frozen=True)
class Bar:
    """What ``foveal`` must reach against one other call.

    Args:
        faster: at least so many times as fast.
        memory: at most this share of the other's peak extra memory.
        saved: at most this share of the bytes that the other saves for backward.
    """

    faster: float | None = None
    memory: float | None = None
    saved: float | None = None


@dataclass(frozen=True)
class Case:
    """Calls to compare.

    Args:
        name: what is computed, on which size.
        make: builds the inputs and returns the calls, ``"foveal"`` among them. A call returns a tensor or a sequence
            of tensors, equal between calls.
        bars: name of another call -> its bar.
        group: cases of one group share their ``faster`` bar: it holds for their geometric mean, and none may be
            slower than the other call.
        tolerance: largest difference allowed between results, relative to the largest magnitude.
        operations: floating-point operations that no exact algorithm avoids, two a multiply-add. With the rate of
            matrix products, timed in the same rounds, they give the highest ratio that can be reached.
        passes, map_bytes: how many times any form reads or writes the feature map, as far as no cache holds it, and
            its size. With the time of a copy of such a map (two passes), timed in the same rounds, they give the
            highest ratio where memory is the limit.
        must_save: bytes that backward cannot do without.
    """

    name: str
    make: Callable[[], Mapping[str, Callable[[], Any]]]
    bars: Mapping[str, Bar]
    group: str | None = None
    tolerance: float = 1e-4
    operations: int = 0
    passes: int = 0
    map_bytes: int = 0
    must_save: int = 0


@dataclass(frozen=True)
class Growth:
    """How one call grows: ``make(n)`` at each of ``sizes``, slopes on log-log axes at most these."""

    name: str
    make: Callable[[int], Callable[[], Any]]
    memory: float
    time: float | None = None
    sizes: Sequence[int] = (1024, 4096, 16384, 65536)


@dataclass
class Row:
    """One figure of the table: measured against its bar, and the best value that the hardware allows if known."""

    case: str
    figure: str
    measured: float
    bar: float
    at_least: bool
    detail: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None

    @property
    def met(self) -> bool:
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar

    def as_dict(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "figure": self.figure,
            "measured": round(self.measured, 4),
            "bar": f"{'>=' if self.at_least else '<='} {self.bar:g}",
            "met": self.met,
            **({} if self.limit is None else {"limit": round(self.limit, 4)}),
            **self.detail,
        }
