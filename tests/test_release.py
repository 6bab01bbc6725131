"""What a release says of itself, in one version; the packages that are built from here, installed on their own."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import foveal

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKS_WITH_A_PAPER = {"se", "cbam", "nonlocal", "selfattention", "dual", "position", "channel"}


def test_the_version_has_one_place():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    assert cited["version"] == foveal.__version__


def test_the_citation_names_the_paper_of_every_block():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    of_blocks = {word for one in cited["references"] for word in one["notes"].split(", ")}
    assert of_blocks >= BLOCKS_WITH_A_PAPER
    assert all(
        {"family-names", "given-names"} == set(author)
        for one in cited["references"]
        for author in one["authors"]
    )


SECTIONS = {"Migration", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_has_its_form():
    """Releases, newest first, each with sections of these names and no other."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", one) for one in releases[1:])
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= SECTIONS
    assert foveal.__version__ in text


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(built):
    [wheel] = built.glob("*.whl")
    assert wheel.name == f"foveal-{foveal.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    there = {p.relative_to(source).as_posix() for p in (source / "foveal").rglob("*") if p.is_file()}
    assert names == {name for name in there if "__pycache__" not in name and not name.endswith(".pyc")}
