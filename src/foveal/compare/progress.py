"""What a person sees meanwhile: a table that fills, or a line a run where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table

from foveal.compare.conclusion import MetricText, p_text
from foveal.statistics import FEWEST_SEEDS, Difference
from foveal.terminal import plain, time_left

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
        self.plan, self.quiet = plan, quiet
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self.live: Live | None = None
        self.began, self.steps = 0.0, 1
        # of the round of jobs under way: how many, finished, and finished before it began
        self.round = self.round_done = self.round_kept = 0
        self._show_plan(plan, plan.seeds)

    def _show_plan(self, plan: "Plan", seeds: int) -> None:
        """An empty table for the runs of a plan."""
        self.shown, self.seeds = plan, seeds
        self.names = [variant.name for variant in plan.variants]
        self.text = MetricText.of(plan.job.config.the_task)
        self.values: dict[str, dict[int, float | None]] = {name: {} for name in self.names}
        self.running: dict[tuple[str, int], float] = {}
        self.total = len(self.names) * seeds

    @property
    def done(self) -> int:
        """Finished runs of the table, trials of tuning not counted."""
        return sum(len(found) for found in self.values.values())

    def begin(self, plan: "Plan", jobs: Sequence["Job"], finished: Iterable[Mapping[str, Any]]) -> None:
        """A round of jobs of a plan, trials or runs, of which some are finished already."""
        trials = jobs[0].trial_share is not None
        seeds = len(jobs) // len(plan.variants)
        if plan.data is not self.shown.data or (not trials and seeds != self.seeds):
            self._show_plan(plan, plan.seeds if trials else seeds)
        finished = list(finished)
        self.round, self.round_done, self.round_kept = len(jobs), len(finished), len(finished)
        self.began = time.monotonic()
        job = jobs[0]
        images = job.settings["images"]["train"] * (1 - (job.trial_share or 0))
        self.steps = max(1, job.config.epochs * max(1, int(images) // job.config.batch_size))
        if trials:
            self.say(f"tuning: {len(jobs)} trials of learning rates on a part of the training images")
            return
        for result in finished:
            self._keep(result)
        text = f"{job.config.data}: {len(self.names)} variants x {self.seeds} seeds = {self.total} runs"
        self.say(text + (f"; {len(finished)} finished before" if finished else ""))
        if self.console.is_terminal and not self.quiet and self.live is None:
            self.live = Live(
                get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True
            )
            self.live.start()

    def stepped(self, job: "Job", step: int) -> None:
        """A run goes on."""
        self.running[job.variant.name, job.config.seed] = min(1.0, step / self.steps)

    def finished(self, job: "Job", result: Mapping[str, Any]) -> None:
        """A run or a trial is finished."""
        name, seed, value = result["variant"], result["seed"], result.get("metric")
        self.running.pop((name, seed), None)
        self.round_done += 1
        if job.trial_share is None:
            self._keep(result)
        if self.live is None:
            said = (
                "failed"
                if value is None
                else f"{self.text.name} {self.text.value(value)}{self.text.value_unit}"
            )
            what = f"{name}, seed {seed}"
            if job.trial_share is not None:
                what = f"{name}, rate x {job.settings['trial']['factor']:g}"
            left = f", {self._left()}" if self._left() else ""
            line = f"{self.round_done:>3}/{self.round}  {what}: {said} ({result['seconds']:.0f} s{left})"
            self.console.print(plain(line))

    def _keep(self, result: Mapping[str, Any]) -> None:
        self.values[result["variant"]][result["seed"]] = result.get("metric")

    def say(self, text: str) -> None:
        """A line that stays; a path in it is not broken in two."""
        self.console.print(plain(text), soft_wrap=True)

    @contextmanager
    def bar(self, text: str, steps: int) -> Iterator[Callable[[], None]]:
        """A bar for something else, or its name in a line; what it gives is called after each step."""
        self.stop()
        if self.quiet or not self.console.is_terminal:
            self.say(text)
            yield lambda: None
            return
        with Bars(console=self.console, transient=True) as bars:
            task = bars.add_task(text, total=steps)
            yield lambda: bars.advance(task)

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def show(self, conclusion: str, rows: Sequence["Row"], report: Path) -> None:
        """The outcome on the standard output."""
        if self.quiet:
            return
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=200)
        console.print(outcome_table(rows, self.text, console.width))
        console.print(plain(conclusion, style="bold"))
        console.print(plain(f"report: {report}"), soft_wrap=True)

    def _left(self) -> str:
        progressed = self.round_done - self.round_kept + sum(self.running.values())
        if progressed < 0.5:
            return ""
        left = self.round - self.round_kept - progressed
        return time_left((time.monotonic() - self.began) / progressed * left)

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
                plain(name),
                f"{len(self.values[name])}/{self.seeds}",
                f"{self.text.value(fmean(found.values()))}{self.text.value_unit}" if found else "",
                self.text.difference(fmean(pairs)) if pairs and name != self.names[0] else "",
                ", ".join(now),
            )
        line = Table.grid(padding=(0, 1))
        progressed = self.done + sum(self.running.values())
        bar = ProgressBar(total=self.total, completed=progressed, width=40)
        line.add_row(bar, f"{self.done}/{self.total} runs", self._left(), "Ctrl-C keeps what is finished")
        return Group(table, line)


WIDE = 100
"""Columns of a terminal below which the table leaves out what the report has."""


def outcome_table(rows: Sequence["Row"], text: MetricText, width: int) -> Table:
    """A row a variant; in a narrow terminal the differences alone, and nothing is cut."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    control = any(row.kind == "control" for row in rows)
    wide = width >= WIDE
    table.add_column("", overflow="fold")
    titles = [f"{text.name}{text.value_unit}", f"against {rows[0].name}"]
    titles += ["against control"] if control else []
    titles += ["parameters", "time ms", "on object"] if wide else ["time ms"]
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        cells = [plain(row.name), text.value(row.metric.mean), _shown(row.to_none, text)]
        cells += [_shown(row.to_control, text)] if control else []
        share = f"{row.share.mean / row.chance:.2f}x chance" if row.share and row.chance else ""
        time_ms = f"{row.costs.time_ms:.2f}"
        table.add_row(*cells, *([f"{row.costs.parameters:,}", time_ms, share] if wide else [time_ms]))
    return table


def _shown(d: Difference | None, text: MetricText) -> str:
    if d is None:
        return ""
    return text.difference(d.mean) + (f" (p {p_text(d.p_corrected)})" if d.seeds >= FEWEST_SEEDS else "")
