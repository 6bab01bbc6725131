"""What the doctor sees: what is missing, what is too old, and how to get it."""

import pytest

from foveal.cli import doctor

WANTED = [
    "torch>=2.0",
    "gone-package>=1",
    "numpy>=99,<100",
    "gone-too>=15; extra == 'video'",
    "numpy; extra == 'hub'",
]


def test_the_report_names_versions_threads_and_what_is_not_there(said, monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: WANTED)
    status, out, err = said("doctor")
    assert (status, err) == (1, "")
    import numpy
    import torch

    assert f"needed       gone-package is missing; numpy {numpy.__version__} must be >=99\n" in out
    assert 'gone-too is missing: pip install "foveal[video]" (video files)' in out
    assert "hub          ready (hf-hub: names and foveal push)" in out
    assert torch.__version__ in out
    assert f"PyTorch takes {torch.get_num_threads()} threads" in out


def test_here_nothing_needed_is_missing(said):
    status, out, _ = said("doctor")
    assert (status, "needed       all there" in out) == (0, True)


@pytest.mark.parametrize(
    ("requirement", "found"),
    [
        ("numpy>=1.26", []),
        ("jsonargparse[signatures]>=4.40", []),
        ("numpy (>=1.26)", []),
        ("numpy>=1; python_version < '3.0' and extra == 'x'", []),
    ],
)
def test_requirements_are_read_as_packages_write_them(requirement, found):
    assert doctor.lacking([requirement], "") == found


def test_every_extra_says_what_it_is_for():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) <= set(doctor.PURPOSE)
