"""Patterns of module paths: ``*`` and ``?`` stay between two dots, ``**`` crosses them."""

import re
from collections.abc import Callable


def match(pattern: str) -> Callable[[str], object]:
    """A predicate on whole module paths: ``*`` and ``?`` stay within one name between dots, ``**`` does not.

    Example:
        >>> from foveal.insertion.patterns import match
        >>> matches = match("features.1[0-9]")
        >>> [name for name in ("features.1", "features.10", "features.10.conv") if matches(name)]
        ['features.10']
    """
    parts = re.findall(r"\*\*|\*|\?|\[!?[^\]]+\]|.", pattern)
    known = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    expression = "".join(
        known.get(part) or (part.replace("[!", "[^") if len(part) > 1 else re.escape(part)) for part in parts
    )
    return re.compile(expression).fullmatch
