"""What is wrong with a data set, or worth to know: one entry for each place, counted by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from foveal.data.opening import LabelError

Severity = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """Something about a data set that a person should know.

    Attributes:
        kind: what, in words that can be counted, such as "boxes without an area".
        severity: "error": the data cannot be used so; "warning": something is left out or changed; "note": it is used
            as it stands.
        where: the file, with the line or the number of the annotation where it has one.
        text: what is the matter, with the values.
        image: name of the image, if it is about one.
        box: about which box of it, x1, y1, x2, y2 in pixels.
    """

    kind: str
    severity: Severity
    where: str
    text: str
    image: str = ""
    box: tuple[float, float, float, float] | None = None


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise the first error among the findings.

    Raises:
        LabelError: there is one.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f"; and {len(errors) - 1} more, which foveal check lists" if len(errors) > 1 else ""
        raise LabelError(
            f"{errors[0].kind} must be mended first, got {errors[0].where}: {errors[0].text}{more}"
        )


def counted(findings: Sequence[Finding], *, notes: bool = False) -> list[str]:
    """One sentence for each kind of finding, the warnings first; notes only where asked for.

    Example:
        >>> counted([Finding("boxes without an area", "warning", "a.txt:3", "left out, got 1, 1, 1, 1")])
        ['1 of boxes without an area, the first in a.txt:3: left out, got 1, 1, 1, 1']
    """
    chosen = [f for f in findings if f.severity == "warning"]
    chosen += [f for f in findings if f.severity == "note"] if notes else []
    first: dict[str, Finding] = {}
    for finding in chosen:
        first.setdefault(finding.kind, finding)
    numbers = Counter(finding.kind for finding in chosen)
    return [
        f"{number} of {kind}, the first in {first[kind].where}: {first[kind].text}"
        for kind, number in numbers.items()
    ]
