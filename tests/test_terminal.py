"""Names from the world reach a terminal as text: none of them clears the screen, sets its title or is markup."""

import io
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from foveal.evaluate import Evaluation
from foveal.tasks import TASKS
from foveal.terminal import plain, printable

HOSTILE = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\r",
    "\b",
    "\u202eexe",
    "\u2067exe\u2069",
    "\u200fexe",
    "\u061cexe",
    "caf\udce9",
    "[red]x[/red]",
    ":smile:",
]


def printed(shown: object) -> str:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system=None, width=200).print(shown)
    return out.getvalue()


def test_a_table_shows_names_and_obeys_none():
    table = Table()
    table.add_column("name")
    for name in HOSTILE:
        table.add_row(plain(name))
    text = printed(table)
    assert not set("\x1b\x07\x9b\r\b\u202e\u2067\u2069\u200f\u061c\udce9") & set(text)
    for name in HOSTILE:
        assert printable(name) in text
    assert len({len(line) for line in text.splitlines()}) == 1  # nothing moved the frame


def test_figures_of_an_evaluation_show_classes_of_any_name():
    found = Evaluation(
        "w", "d\x1b[2J", "val", 1, "accuracy", {"accuracy": 0.5, "top5": 1.0, "loss": 1.0, "miou": 0.5,
        "pixel_accuracy": 0.5}, (0.0, 1.0), "x", {"a\x1b[2J": 0.5, "b": None}, None, 8, {"p\x1b]0;x\x07": "broken"},
    )  # fmt: skip
    bound = {"frechet": 1.0, "kernel": 1.0, "images": 1, "between": "h\x1b[2J"}
    bounds = {"floor": bound, "ceiling": bound}
    made = {"features": "f\x1b[2J", "images": 1, "precision": 1.0, "recall": 1.0, **bounds}
    for task, details in (("segment", None), ("generate", made)):
        text = printed(TASKS[task].show(replace(found, details=details)))
        assert "d\\x1b[2J" in text
        assert "\x1b" not in text
