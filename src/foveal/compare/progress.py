"""What a person sees meanwhile: a table that fills, or a line a run where there is no terminal."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from foveal.compare.conclusion import MetricText, p_text
from foveal.statistics import FEWEST_SEEDS, Difference

if TYPE_CHECKING:
    from foveal.compare.experiment import Plan
    from foveal.compare.job import Job
    from foveal.compare.summary import Row


class Progress:
    """Progress on the standard error output; the outcome goes to the standard output.

    Args:
        plan: what is compared.
        quiet: show nothing.
    """

    def __init__(self, plan: "Plan", *, quiet: bool = False) -> None:
        names = [variant.name for variant in plan.variants]
        seeds = plan.seeds
        self.names, self.seeds, self.quiet = names, seeds, quiet
        self.text = MetricText.of(plan.job.config.the_task)
        self.values: dict[str, dict[int, float | None]] = {name: {} for name in names}
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self.live: Live | None = None
        self.note = ""
        self.running: dict[tuple[str, int], float] = {}
        self.total, self.kept, self.began = len(names) * seeds, 0, 0.0
        self.steps = 1

    @property
    def done(self) -> int:
        return sum(len(found) for found in self.values.values())

    def start(self, pending: Sequence["Job"], description: str) -> None:
        job = pending[0]
        batches = max(1, job.settings["images"]["train"] // job.config.batch_size)
        self.steps = job.config.epochs * batches
        self.kept, self.began = self.done, time.monotonic()
        text = f"{len(self.names)} variants x {self.seeds} seeds = {self.total} runs, "
        text += description
        if self.kept:
            text += f"; {self.kept} finished before"
        self.console.print(text)
        if self.console.is_terminal and not self.quiet:
            self.live = Live(
                get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True
            )
            self.live.start()

    def stepped(self, job: "Job", step: int) -> None:
        self.running[job.variant.name, job.config.seed] = min(1.0, step / self.steps)

    def finished(self, result: Mapping[str, Any]) -> None:
        name, seed, value = result["variant"], result["seed"], result.get("metric")
        self.running.pop((name, seed), None)
        self.values[name][seed] = value
        if self.live is None and self.began:
            text = self.text
            said = "failed" if value is None else f"{text.name} {text.value(value)}{text.value_unit}"
            took = f"{result['seconds']:.0f} s"
            left = f", {self._left()}" if self._left() else ""
            self.console.print(
                f"{self.done:>3}/{self.total}  {name}, seed {seed}: {said} ({took}{left})", markup=False
            )

    def say(self, text: str) -> None:
        self.note = text
        if self.live is None:
            self.console.print(text)

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def show(self, conclusion: str, rows: Sequence["Row"], report: Path) -> None:
        """The outcome on the standard output."""
        if self.quiet:
            return
        console = Console(highlight=False)
        console.print(_outcome_table(rows, self.text))
        console.print(Text(conclusion, style="bold"))
        console.print(Text(f"report: {report}"), soft_wrap=True)

    def _left(self) -> str:
        progressed = self.done - self.kept + sum(self.running.values())
        if progressed < 0.5:
            return ""
        seconds = (time.monotonic() - self.began) / progressed * (self.total - self.kept - progressed)
        return f"about {math.ceil(seconds / 60)} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        table.add_column("seeds", justify="right")
        table.add_column(self.text.name, justify="right")
        table.add_column(f"against {self.names[0]}", justify="right")
        table.add_column("running")
        base = self.values[self.names[0]]
        for name in self.names:
            found = {seed: value for seed, value in self.values[name].items() if value is not None}
            pairs = [value - other for seed, value in found.items() if (other := base.get(seed)) is not None]
            now = [
                f"seed {seed}: {share:.0%}" for (which, seed), share in self.running.items() if which == name
            ]
            table.add_row(
                Text(name),
                f"{len(self.values[name])}/{self.seeds}",
                f"{self.text.value(fmean(found.values()))}{self.text.value_unit}" if found else "",
                self.text.difference(fmean(pairs)) if pairs and name != self.names[0] else "",
                ", ".join(now),
            )
        line = Table.grid(padding=(0, 1))
        progressed = self.done + sum(self.running.values())
        bar = ProgressBar(total=self.total, completed=progressed, width=40)
        line.add_row(
            bar, f"{self.done}/{self.total} runs", self.note or self._left(), "Ctrl-C keeps what is finished"
        )
        return Group(table, line)


def _outcome_table(rows: Sequence["Row"], text: MetricText) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    control = any(row.kind == "control" for row in rows)
    titles = [
        "",
        f"{text.name}{text.value_unit}",
        f"against {rows[0].name}",
        *(["against control"] if control else []),
    ]
    for title in [*titles, "parameters", "time ms", "on object"]:
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for row in rows:
        cells = [Text(row.name), text.value(row.metric.mean), _shown(row.to_none, text)]
        cells += [_shown(row.to_control, text)] if control else []
        share = f"{row.share.mean / row.chance:.2f}x chance" if row.share and row.chance else ""
        table.add_row(*cells, f"{row.costs.parameters:,}", f"{row.costs.time_ms:.2f}", share)
    return table


def _shown(d: Difference | None, text: MetricText) -> str:
    if d is None:
        return ""
    return text.difference(d.mean) + (f" (p {p_text(d.p_corrected)})" if d.seeds >= FEWEST_SEEDS else "")
