"""The scripts in the shells they are for, where these are installed; bash is everywhere that the tests run."""

import os
import shutil
import subprocess

import pytest

from foveal.cli import COMMANDS

CASES = [
    ("foveal tr", ["train"]),
    ("foveal train --optim", ["--optimizer"]),
    ("foveal train --task se", ["segment"]),
    ("foveal predict --scal", ["--scales"]),
    ("foveal bench o", ["ops"]),
]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    from foveal.cli.completion import all_words, bash_script, fish_script, zsh_script

    folder, words = tmp_path_factory.mktemp("completion"), all_words()
    for shell, made in (("bash", bash_script), ("zsh", zsh_script), ("fish", fish_script)):
        (folder / shell).write_text(made(words))
    return folder


@pytest.mark.parametrize(("typed", "offered"), [*CASES, ("foveal train --task = se", ["segment"])])
def test_bash_completes(script, typed, offered):
    here = f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
    ask = f'source {script}/bash; {here}; _foveal; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_fish_completes(script, typed, offered, tmp_path):
    ask = f"source {script}/fish; complete -C '{typed}'"
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", ask], capture_output=True, text=True, check=True, env=home)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == offered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script(script):
    ask = f"autoload -U compinit && compinit -D -u; source {script}/zsh; whence -w _foveal"
    done = subprocess.run(["zsh", "-fc", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "_foveal: function\n"


def test_every_command_prints_its_words(said):
    status, out, err = said("completion", "bash")
    assert (status, err) == (0, "")
    assert all(f"{name}) [[" in out for name in COMMANDS)
