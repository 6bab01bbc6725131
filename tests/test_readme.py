"""What the README shows works as written: its Python, its options, its commands in a reduced size."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = blocks("python")
    assert shown
    for code in shown:
        exec(compile(code, "README.md", "exec"), {})


def foveal(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "foveal", *arguments], cwd=cwd, capture_output=True, text=True, timeout=900
    )


def test_the_first_command_reports_in_a_reduced_size(tmp_path):
    line = next(line for line in README.read_text().splitlines() if "&& foveal compare" in line)
    command = shlex.split(line.split("&&")[1], comments=True)
    assert command == ["foveal", "compare"]
    small = ["--seeds", "2", "--epochs", "1", "--insert", "se(reduction=4)@residual:3"]
    small += ["--data_options.length", "256", "--self_check", "false", "--jobs", "1", "--out", "run"]
    run = foveal("compare", *small, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Does attention help?" in report
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["conclusion"].startswith("Too few seeds")  # 2 can show nothing, and it says so
    assert not re.search(r"""(src|href)=["']https?://""", report)


def commands() -> list[str]:
    """The first two words of every command line shown in the README."""
    lines = [line.strip() for line in README.read_text().splitlines()]
    return sorted({" ".join(line.split()[:2]) for line in lines if re.match(r"foveal [a-z]+", line)})


@pytest.mark.parametrize("command", commands())
def test_every_verb_shown_exists(command, said):
    """Its help in a process of its own is tested with the command line."""
    status, shown, error = said(command.split()[1], "--help")
    assert (status, error) == (0, "")
    assert "usage: foveal" in shown
