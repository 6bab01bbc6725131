"""Look at every annotation and every image of a data set once, and say what is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from foveal.data.findings import Finding
from foveal.data.split import SPLITS, NoPartError
from foveal.errors import FovealError
from foveal.files import csv_text, write_text
from foveal.folders import new_folder, new_numbered_folder
from foveal.tasks import Checked, items_of, task_named
from foveal.tasks.html import page, picture, table
from foveal.terminal import escape, plain

SHOWN_PLACES = 5
"""Places of each kind that a terminal shows."""
SHOWN_ROWS = 1000
"""Places that the page lists; all of them are in findings.csv."""
SHOWN_PICTURES = 24
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Check:
    """What a look at a data set found.

    Attributes:
        data, task: what was looked at, for which task.
        parts: split -> what was found in it.
        folder: where ``index.html`` and ``findings.csv`` are; None where nothing was written.
    """

    data: str
    task: str
    parts: Mapping[str, Checked]
    folder: Path | None = field(default=None)

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """(split, finding), errors first."""
        every = [(split, finding) for split, part in self.parts.items() for finding in part.findings]
        return sorted(every, key=lambda pair: SEVERITIES.index(pair[1].severity))

    @property
    def sound(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "note" for _, finding in self.findings)


def check(
    data: str,
    *,
    task: str = "classify",
    data_options: Mapping[str, Any] | None = None,
    splits: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Check:
    """Read every annotation and every image of a data set once.

    Args:
        data: as for training.
        task: whose annotations to look at.
        data_options: options of the data set.
        splits: which of train, val and test; by default those that are there.
        out: folder for ``index.html``, with pictures of the worst images, and ``findings.csv``; new or empty. By
            default the first free runs/check/NAME.

    Raises:
        FovealError: an unknown task, or no part at all.

    Example:
        >>> import tempfile
        >>> found = check("scenes", task="detect", data_options={"length": 8}, out=tempfile.mkdtemp())
        >>> found.sound, [part.images for part in found.parts.values()]
        (True, [8, 8, 8])
    """
    the_task = task_named(task)
    parts: dict[str, Checked] = {}
    missing: list[str] = []
    for split in splits or SPLITS:
        try:
            parts[split] = the_task.check(data, split, dict(data_options or {}))
        except NoPartError as error:
            missing.append(str(error))
        except FovealError as error:
            broken = Finding("data that cannot be opened", "error", data, str(error))
            parts[split] = Checked(0, {}, [broken], {})
    if not parts:
        raise FovealError(missing[0])
    folder = (
        new_folder(out) if out is not None else new_numbered_folder("runs/check", Path(data).stem or "data")
    )
    found = Check(data, task, parts, folder)
    write_text(
        folder / "findings.csv",
        csv_text(_rows(found)) if found.findings else "split,severity,kind,where,text\n",
    )
    write_text(folder / "index.html", check_page(found))
    return found


def _rows(found: Check) -> list[dict[str, Any]]:
    return [
        {
            "split": split,
            "severity": f.severity,
            "kind": f.kind,
            "where": f.where,
            "text": f.text,
            "image": f.image,
        }
        for split, f in found.findings
    ]


def summary(found: Check) -> RenderableType:
    """What was found, for a terminal: counts by kind, and the first places of each."""
    parts: list[RenderableType] = [plain(line) for line in _counts(found)]
    kinds = _kinds(found)
    if kinds:
        shown = Table(title="findings", title_justify="left")
        for name in ("", "split", "count", "what", "where"):
            shown.add_column(name, justify="right" if name == "count" else "left")
        for (severity, split, kind), findings in kinds.items():
            places = [f"{f.where}: {f.text}" for f in findings[:SHOWN_PLACES]]
            more = [f"and {len(findings) - SHOWN_PLACES:,} more"] if len(findings) > SHOWN_PLACES else []
            style = {"error": "red", "warning": "yellow"}.get(severity, "")
            shown.add_row(
                plain(severity, style),
                split,
                f"{len(findings):,}",
                plain(kind),
                plain("\n".join([*places, *more])),
            )
        parts.append(shown)
    count = sum(map(len, kinds.values()))
    parts.append(plain("nothing is wrong" if found.sound else f"{count:,} finding{'s' * (count != 1)}"))
    if found.folder is not None:
        parts.append(plain(f"page and table  {found.folder}/index.html, findings.csv"))
    return Group(*parts)


def _counts(found: Check) -> list[str]:
    """How much there is, a line for each split."""
    items = items_of(task_named(found.task))
    return [
        f"{split}: {part.images:,} {items}" + (f"; {part.summary}" if part.summary else "")
        for split, part in found.parts.items()
    ]


def _kinds(found: Check) -> dict[tuple[str, str, str], list[Finding]]:
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
    for split, finding in found.findings:
        kinds.setdefault((finding.severity, split, finding.kind), []).append(finding)
    return kinds


def check_page(found: Check) -> str:
    """The same as one HTML file, with pictures of the images that most is wrong with."""
    counts = Counter(finding.severity for _, finding in found.findings)
    told = [f"{counts[s]:,} {s}{'s' * (counts[s] != 1)}" for s in SEVERITIES if counts[s]]
    parts = [f"<p>{escape(line)}</p>" for line in _counts(found)]
    kinds = _kinds(found)
    if kinds:
        rows = [
            [severity, split, kind, f"{len(all_of)}"] for (severity, split, kind), all_of in kinds.items()
        ]
        parts.append(_section("What was found", table(["", "split", "what", "count"], rows, numbers=False)))
    pictures = "".join(picture(image, text) for image, text in worst_pictures(found))
    if pictures:
        parts.append(
            _section(
                f"The {items_of(task_named(found.task))} that most is wrong with",
                f'<div class="pictures wide">{pictures}</div>',
            )
        )
    classes = {split: part.classes for split, part in found.parts.items() if part.classes}
    names = list(dict.fromkeys(name for counted in classes.values() for name in counted))
    rows = [[name, *(f"{counted.get(name, 0):,}" for counted in classes.values())] for name in names]
    if rows:
        parts.append(_section("Classes", table(["class", *classes], rows)))
    if every := found.findings:
        more = len(every) - SHOWN_ROWS
        note = (
            f"<p>The first {SHOWN_ROWS:,} of {len(every):,}; all are in findings.csv.</p>" if more > 0 else ""
        )
        rows = [[f.severity, split, f.kind, f.where, f.text] for split, f in every[:SHOWN_ROWS]]
        parts.append(
            _section("Every place", note + table(["", "split", "what", "where", ""], rows, numbers=False))
        )
    title = f"{found.data}, checked for task {found.task}"
    return page(title, ", ".join(told) or "nothing is wrong", "\n".join(parts))


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def worst_pictures(found: Check) -> list[tuple[np.ndarray, str]]:
    """The images with the most errors and warnings, each with what is wrong drawn into it."""
    weight = {"error": 100, "warning": 10, "note": 1}
    by_image: dict[tuple[str, str], list[Finding]] = {}
    for split, finding in found.findings:
        if finding.image:
            by_image.setdefault((split, finding.image), []).append(finding)
    ranked = sorted(by_image.items(), key=lambda item: -sum(weight[f.severity] for f in item[1]))
    pictures = []
    for (split, image), findings in ranked:
        draw = found.parts[split].pictures.get(image)
        if draw is None or len(pictures) == SHOWN_PICTURES:
            continue
        try:
            drawn = draw(findings)
        except (FovealError, OSError):
            continue
        kinds = Counter(f.kind for f in findings)
        pictures.append((drawn, f"{image}: " + ", ".join(f"{n} of {kind}" for kind, n in kinds.items())))
    return pictures
