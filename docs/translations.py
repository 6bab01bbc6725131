"""Which Chinese pages are behind the English ones that they follow: ``python docs/translations.py``.

A Chinese page begins with the name and a hash of the English text that it was written from; ``--follow PAGE`` writes
the hash that the English text has now, once the page says the same again.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- follows (\S+) ([0-9a-f]{12}) -->\n+")
ORIGINAL = re.compile(r"<!-- follows no English page -->\n+")
FENCE = re.compile(
    r"^```(?:python|bash|yaml)\n.*?^```|^ {4}(?:foveal|pip|python) (?:[^\n]*\\\n)*[^\n]*",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Page:
    """A Chinese page: its path, that of the English page it follows, and the hash that it names and that holds now."""

    page: str
    english: str
    named: str
    now: str


def translated() -> list[Page]:
    """All Chinese pages that follow an English one.

    Raises:
        ValueError: a page says neither what it follows nor that it follows none.
    """
    found = []
    for path in [ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        mark = MARK.match(text)
        if mark is None and not ORIGINAL.match(text):
            raise ValueError(f"{path.name} must begin with <!-- follows PAGE HASH -->")
        if mark is not None:
            found.append(Page(path.relative_to(ROOT).as_posix(), mark[1], mark[2], hash_of(ROOT / mark[1])))
    return found


def behind() -> list[Page]:
    """Those whose English page has changed since."""
    return [page for page in translated() if page.named != page.now]


def hash_of(path: Path) -> str:
    """Twelve digits that change with the text."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()[:12]


def without_mark(text: str) -> str:
    """The page as a reader sees it."""
    return ORIGINAL.sub("", MARK.sub("", text, count=1), count=1)


def code_of(text: str) -> list[str]:
    """The listings and commands of a page, without the comments, which are translated."""
    return [_without_comments(found[0]) for found in FENCE.finditer(text)]


def _without_comments(code: str) -> str:
    return "\n".join(re.sub(r"\s+#.*$|\s+$", "", line) for line in code.splitlines())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--follow"]:
        path = Path(sys.argv[2])
        text = path.read_text(encoding="utf-8")
        english = MARK.match(text)[1]  # pyright: ignore[reportOptionalSubscript]
        path.write_text(
            MARK.sub(f"<!-- follows {english} {hash_of(ROOT / english)} -->\n\n", text, count=1),
            encoding="utf-8",
        )
    for page in behind():
        print(f"{page.page} follows {page.english} as it was at {page.named}; it is {page.now} now")
