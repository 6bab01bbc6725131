"""The report's second page: effects by class, time to an accuracy, curves, labels; and the table when it is narrow."""

import io
import re

import pytest
from rich.console import Console

from foveal.compare.conclusion import MetricText
from foveal.compare.details import classes_html, time_to_html
from foveal.compare.figures import curves_svg, differences_svg, labels_of
from foveal.compare.language import Language
from foveal.compare.progress import outcome_table
from foveal.compare.summary import Costs, Row
from foveal.statistics import differences_to, estimate

TEXT, ENGLISH = MetricText("accuracy", is_share=True, higher_is_better=True), Language("en")
LONG = [
    "cbam(reduction=4, arrangement=parallel)@residual:3",
    "cbam(reduction=4, arrangement=parallel)@residual:4",
]
COSTS = Costs(78_042, 7_000_000, 1.234, 1.1, 1.4, 20.0, 10**7)


def run(name, seed, value, **more):
    curve, clock = [value / 2, 0.95 * value, value], [2.0, 4.0, 6.0]
    return {"variant": name, "seed": seed, "metric": value, "curve": curve, "clock": clock, **more}


def rows_of(runs):
    values = {}
    for one in runs:
        values.setdefault(one["variant"], {})[one["seed"]] = one["metric"]
    none, *others = values
    to_none = differences_to(values[none], {name: values[name] for name in others})
    return [
        Row(
            name, name, "none" if name == none else "attention", estimate(list(found.values())), to_none.get(name),
            None, COSTS, None, None, len(found), {},
        )
        for name, found in values.items()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    return [
        run(name, seed, 0.7 + gain + seed / 100, per_class={"cat": 0.6 + seed / 100, "dog": 0.8 + gain})
        for name, gain in (("none", 0.0), (LONG[0], 0.1), (LONG[1], 0.0))
        for seed in range(6)
    ]


def cells(html):
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", html)]


def test_effects_by_class_are_paired_and_those_that_differ_most_come_first(runs):
    found = cells(classes_html(rows_of(runs), runs, TEXT, ENGLISH))
    assert found == [
        "dog", "80.0", "+10.0 +10.0 … +10.0", "+0.0 +0.0 … +0.0", "cat", "62.5", "+0.0 +0.0 … +0.0", "+0.0 +0.0 … +0.0",
    ]  # fmt: skip


def test_a_task_without_classes_says_so():
    runs = [run("none", 0, 0.5), run("se", 0, 0.5)]
    assert "no figures for each class" in classes_html(rows_of(runs), runs, TEXT, ENGLISH)


def test_time_to_nine_tenths_of_the_baseline_is_the_median_over_seeds(runs):
    """Nine tenths of 72.5 %: none gets there with the second epoch, in which it has 95 % of its end."""
    html = time_to_html(rows_of(runs), runs, TEXT, ENGLISH)
    assert "seconds to 65.2 %" in html
    assert cells(html)[:3] == ["none", "4.0", "6 / 6"]
    late = [{**one, "curve": [0.1, 0.2, 0.3]} if one["variant"] == LONG[0] else one for one in runs]
    assert cells(time_to_html(rows_of(runs), late, TEXT, ENGLISH))[4:6] == ["–", "0 / 6"]
    # 2, 2, 2, 6 and twice never: half of the six runs got there after 2 to 6 s
    curves = [[0.7] * 3, [0.7] * 3, [0.7] * 3, [0.1, 0.1, 0.7], [0.1] * 3, [0.1] * 3]
    mixed = [{**one, "curve": curves[one["seed"]]} if one["variant"] == LONG[0] else one for one in runs]
    assert cells(time_to_html(rows_of(runs), mixed, TEXT, ENGLISH))[4:6] == ["4.0", "4 / 6"]


def test_curves_show_every_run_and_a_mean(runs):
    svg = curves_svg(rows_of(runs), runs, TEXT, ENGLISH)
    assert svg.count('class="one"') == 18
    assert svg.count('class="middle') == 3


def test_runs_of_one_epoch_are_dots(runs):
    short = [{**one, "curve": one["curve"][-1:]} for one in runs]
    svg = curves_svg(rows_of(short), short, TEXT, ENGLISH)
    places = re.findall(r'points="(\S+) (\S+)"', svg)
    assert len(places) == 21
    assert all(one == other for one, other in places)
    assert "1 epoch<" in svg


def test_no_two_labels_of_a_chart_are_alike(runs):
    assert len(set(labels_of(LONG))) == 2
    assert len(set(labels_of([f"{'x' * 25}{i}{'y' * 25}" for i in range(3)]))) == 3
    svg = differences_svg(rows_of(runs), runs, TEXT, ENGLISH)
    shown = [label for label in labels_of(LONG) if f">{label}<" in svg]
    assert len(shown) == 2
    left = min(float(x) for x in re.findall(r'class="name" x="([\d.]+)"', svg))
    assert left >= 7 * max(map(len, labels_of(LONG))), "the longest label fits beside the axis"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_of_the_table_is_cut_in_a_narrow_terminal(runs, width):
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(outcome_table(rows_of(runs), TEXT, width))
    text = captured.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    joined = "".join(text.split())
    assert "accuracy%" in joined
    assert "+10.0(p" in joined
