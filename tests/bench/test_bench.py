"""Cases of the benchmark compute the same as what they are timed against, and its figures are what they say."""

import math

import pytest
import torch

from foveal import bench
from foveal.bench import attention, gate
from foveal.bench.case import OURS, Bar, Case, Growth


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gate, "CHANNELS", 128)
    monkeypatch.setattr(gate, "SIDE", 6)
    monkeypatch.setattr(bench, "MATMUL_SIZE", 32)


@pytest.mark.parametrize(
    "case", [one for one in gate.CASES if ", (1, " in one.name], ids=lambda case: case.name
)
def test_gates_compute_what_they_are_compared_with(small, case):
    bench._check_equal(case, case.make())


@pytest.mark.slow
@pytest.mark.parametrize("case", attention.CASES, ids=lambda case: case.name)
def test_attention_computes_what_it_is_compared_with(case):
    bench._check_equal(case, case.make())


@pytest.mark.parametrize("growth", attention.GROWTHS, ids=lambda growth: growth.name)
def test_what_grows_runs_at_any_size(growth):
    for n in (64, 256):
        growth.make(n)()


def test_calls_that_differ_are_not_timed():
    calls = {OURS: lambda: torch.ones(3), "other": lambda: torch.tensor([1.0, 1, 1.01])}
    with pytest.raises(RuntimeError, match=r"foveal and other differ by 9.9e-03, not timed"):
        bench.run_case(Case("a", lambda: calls, {"other": Bar(faster=1.0)}), repeats=1)


def test_a_case_gives_a_row_a_bar(small):
    case = next(one for one in gate.CASES if one.name.startswith("SE training step") and ", (1, " in one.name)
    faster, saved = bench.run_case(case, repeats=1)
    assert [faster.figure, saved.figure] == ["times as fast as timm", "saved for backward, share of timm"]
    assert faster.at_least
    assert not saved.at_least
    assert faster.measured > 0
    kept = saved.detail["saved_bytes"]
    assert saved.measured == pytest.approx(kept[OURS] / kept["timm"])
    assert 128 * 6 * 6 * 4 <= kept[OURS] <= kept["timm"]


def test_a_growth_gives_its_slopes():
    growth = Growth(
        "a", lambda n: lambda: torch.zeros(n, 100), memory=1.1, time=math.inf, sizes=(64, 256, 1024)
    )
    time, memory = bench.run_growth(growth)
    assert time.figure == "slope of time"
    assert memory.measured == pytest.approx(1.0, abs=0.01)
    assert memory.met
