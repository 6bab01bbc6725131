"""Build the documentation site, English and Chinese: ``python docs/build.py``, then open ``site/index.html``.

Pages are written to be read in the repository. This script gathers them, turns links that leave ``docs`` into links
within the site, writes the reference from docstrings and ``--help``, and calls Zensical once for each language. It asks
no network. Zensical and not mkdocs-material: it builds both in seconds, its search finds words inside Chinese text,
and the other's maintenance ends in May 2027. It is pinned, since it is young.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from translations import behind, without_mark  # noqa: E402

HOMES = {"en": "README.md", "zh": "README.zh.md"}
OUTSIDE = {
    "benchmarks/README.md": "benchmarks.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}  # fmt: skip
"""Pages beside ``docs`` that the English site has, too."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
NOTE = {"zh": '!!! note "本页可能落后"\n\n    英文版在本页译成之后有改动，以[英文版]({})为准。\n\n'}


def site_path(page: str, lang: str) -> str | None:
    """Where a file of the repository is in the site of a language; None where that site has none.

    Example:
        >>> site_path("docs/blocks/cbam.md", "en"), site_path("docs/zh/start.md", "zh")
        ('blocks/cbam.md', 'start.md')
    """
    if page == HOMES[lang]:
        return "index.md"
    if page.startswith("docs/images/"):
        return page.removeprefix("docs/")
    if page.startswith("docs/zh/"):
        return page.removeprefix("docs/zh/") if lang == "zh" else None
    if lang == "en" and page in OUTSIDE:
        return OUTSIDE[page]
    if lang == "en" and page.startswith("docs/") and page.endswith((".md", ".ipynb")):
        return str(PurePosixPath(page.removeprefix("docs/")).with_suffix(".md"))
    return None


def linked(text: str, page: str, lang: str, copied: set[str]) -> str:
    """The text of a page with its links as they are in the site; files that it shows are added to ``copied``."""
    here = PurePosixPath(site_path(page, lang) or "index.md")

    def turn(found: re.Match[str]) -> str:
        anchor = found[2] or ""
        target = normpath(str(PurePosixPath(page).parent / found[1]))
        there = site_path(target, lang)
        if there is None and target.endswith(".md"):
            # a page of the other language's site, which lies beside or above
            other = "zh" if lang == "en" else "en"
            there = site_path(target, other)
            if there is None:
                raise SystemExit(f"{page} links to {found[1]}, which is no page of the site")
            depth = len(here.with_suffix("").parts) if here.name != "index.md" else 0
            up = "../" * depth + ("zh/" if lang == "en" else "../")
            path = "" if there == "index.md" else f"{there.removesuffix('.md')}/"
            return f"{up}{path}{anchor}"
        if there is None:
            there = f"files/{PurePosixPath(target).name}"
        if not target.endswith((".md", ".ipynb")):
            copied.add(target)
        return relpath(there, str(here.parent)) + anchor

    return LINK.sub(turn, text)


def gather(folder: Path, lang: str) -> None:
    """Fill a folder with the pages of a language and all that they show."""
    pages = [HOMES[lang], *(OUTSIDE if lang == "en" else ())]
    pages += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    late = {one.page for one in behind()}
    copied: set[str] = set()
    for page in pages:
        there = site_path(page, lang)
        if there is None:
            continue
        text = without_mark((ROOT / page).read_text(encoding="utf-8"))
        text = linked(text, page, lang, copied)
        if page in late:
            name = "" if there == "index.md" else there.removesuffix(".md") + "/"
            up = "../" * (1 + len(PurePosixPath(name).parts))
            title, _, rest = text.partition("\n")
            text = f"{title}\n\n{NOTE[lang].format(up + name)}{rest}"
        (folder / there).parent.mkdir(parents=True, exist_ok=True)
        (folder / there).write_text(text, encoding="utf-8")
    for file in copied:
        there = folder / (site_path(file, lang) or f"files/{PurePosixPath(file).name}")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, there)


def with_all_pages(config: str, folder: Path) -> str:
    """The configuration with the pages that it names nowhere, by their titles, where its comment says."""
    lines = []
    for path in sorted(folder.rglob("*.md")):
        name = path.relative_to(folder).as_posix()
        if f'"{name}"' not in config:
            title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").replace('"', "'")
            lines.append(f'    {{ "{title}" = "{name}" }},')
    return config.replace(
        "    # docs/build.py adds pages that are named nowhere\n", "".join(f"{one}\n" for one in lines)
    )


def write_notebooks(folder: Path) -> None:
    """The notebooks as pages: words and code."""
    (folder / "notebooks").mkdir()
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        (folder / "notebooks" / f"{path.stem}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_reference(folder: Path) -> None:
    """One page for each room of public names, from their docstrings, and one of the commands, from their help."""
    listed = json.loads((ROOT / "tests" / "public_api.json").read_text(encoding="utf-8"))
    rooms: dict[str, list[str]] = {}
    for name in listed:
        if not name.startswith("$"):
            rooms.setdefault(name.rpartition(".")[0], []).append(name)
    (folder / "reference").mkdir()
    for room, members in rooms.items():
        body = "\n\n".join(f"::: {name}" for name in members)
        (folder / "reference" / f"{room}.md").write_text(f"# {room}\n\n{body}\n", encoding="utf-8")
    parts = ["# Commands"]
    for name in (name.removeprefix("$ foveal ") for name in listed if name.startswith("$")):
        command = [sys.executable, "-m", "foveal", name, "--help"]
        environment = {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "PATH": "/usr/bin:/bin"}
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        parts.append(f"## {name}\n\n```text\n{shown.strip()}\n```")
    (folder / "reference" / "commands.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def build(out: Path) -> None:
    """Build both sites into a folder that is made anew; the Chinese one lies in its ``zh``.

    Raises:
        SystemExit: a link leads nowhere, or Zensical warns of anything.
    """
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        for lang in HOMES:
            place = Path(temporary) / lang
            pages = place / "docs"
            pages.mkdir(parents=True)
            gather(pages, lang)
            if lang == "en":
                write_notebooks(pages)
                write_reference(pages)
            config = (ROOT / "docs" / f"site-{lang}.toml").read_text(encoding="utf-8")
            config = with_all_pages(config.replace("@ROOT@", str(ROOT)), pages)
            (place / "zensical.toml").write_text(config, encoding="utf-8")
            command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
            if done.returncode:
                # what is wrong is on one of the two, in colours, and followed by a traceback of Zensical's own
                said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr.partition("Traceback")[0])
                raise SystemExit(f"the site could not be built:\n{said}")
            shutil.copytree(place / "site", out if lang == "en" else out / lang, dirs_exist_ok=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
