"""What a person reads at the end of a run and of an evaluation."""

import io

from rich.console import Console

from foveal.cli.tables import run_summary
from foveal.evaluate import evaluate


def test_the_summary_says_where_things_are_and_what_comes_next(coloured_run):
    console = Console(record=True, width=200, file=io.StringIO())
    shown = coloured_run.config.the_task.show(evaluate(coloured_run.weights, device="cpu"))
    console.print(run_summary(coloured_run), shown)
    text = console.export_text()
    for part in (
        f"foveal eval --weights {coloured_run.weights}",
        "curves.png",
        "metrics.csv",
        "layer3.0.bn2.se",
        "accuracy",
    ):
        assert part in text
