"""Gates in the form that runtimes compute quickly."""

from __future__ import annotations

from typing import Any


def rewrite(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place."""
