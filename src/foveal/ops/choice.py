"""The answer of ``attention.explain`` and ``gate.explain``: which backend runs, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The backend that runs, the reason for it, and for every other one the reason why it was not chosen.

    Example:
        >>> print(Choice("streamed", "it takes any widths", {"triton": "there is no CUDA device"}))
        streamed: it takes any widths
        not triton: there is no CUDA device
    """

    backend: str
    why: str
    others: dict[str, str]

    def __str__(self) -> str:
        others = "".join(f"\nnot {name}: {why}" for name, why in self.others.items())
        return f"{self.backend}: {self.why}{others}"
