"""Docstrings as the site shows them; mkdocstrings calls this while it reads them."""

from __future__ import annotations

from typing import Any

import griffe


class AsWritten(griffe.Extension):
    """``Example:`` is a section of examples, and brackets that follow each other are no link."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the text of one docstring."""
        if obj.docstring is None:
            return
        lines = obj.docstring.value.splitlines()
        for number, line in enumerate(lines):
            plain = line.strip()
            if plain == "Example:":
                lines[number] = line.replace("Example:", "Examples:")
            elif not plain.startswith((">>>", "...")):
                lines[number] = line.replace("][", "]\\[")
        obj.docstring.value = "\n".join(lines)
