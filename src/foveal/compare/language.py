"""The words of the verdict and the report, in English and Chinese: one template a sentence, filled in by name.

They are in ``sentences-en.json`` and ``sentences-zh.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from foveal.errors import FovealError

LANGUAGES = ("en", "zh")


@cache
def templates(code: str) -> dict[str, str]:
    """The templates of a language by key."""
    path = Path(__file__).with_name(f"sentences-{code}.json")
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Language:
    """The templates of one language.

    Example:
        >>> Language("en").say("resolution", difference="1.2", unit="points")
        'It could have found a difference of 1.2 points.'
        >>> Language("en").listed(["se", "cbam", "dual"])
        'se, cbam and dual'

    Raises:
        FovealError: there is no such language.
    """

    code: str = "en"

    def __post_init__(self) -> None:
        if self.code not in LANGUAGES:
            raise FovealError(f"lang must be one of {', '.join(LANGUAGES)}, got {self.code}")

    def say(self, key: str, **values: Any) -> str:
        """One sentence or word."""
        return templates(self.code)[key].format(**values)

    def counted(self, key: str, count: int, **values: Any) -> str:
        """A sentence or word in its form for one or for several."""
        return self.say(f"{key}_{'1' if count == 1 else 'n'}", count=count, **values)

    def listed(self, names: Sequence[str]) -> str:
        """Names as a list in a sentence."""
        if len(names) == 1:
            return names[0]
        return self.say("comma").join(names[:-1]) + self.say("and") + names[-1]

    def joined(self, sentences: Sequence[str]) -> str:
        """Sentences one after the other; empty ones are left out."""
        return (" " if self.code == "en" else "").join(one for one in sentences if one)
