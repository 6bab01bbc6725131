"""What to say of weights that are in no known format: the nearest one, what speaks for and against it, and where."""

import re
from collections.abc import Mapping

from foveal.checkpoint import listed
from foveal.published import blocks
from foveal.published.keymap import Format, Shapes

ORDINARY = (
    r"(backbone\.|features\.)?(layer\d\.\d+\.)?(conv\d|bn\d|downsample\.\d|fc)\."
    r"(weight|bias|running_mean|running_var|num_batches_tracked)"
)
"""Names that every ResNet has, which tell nothing."""


def nearest(shapes: Shapes, formats: Mapping[str, Format]) -> str:
    """The end of a sentence about names that fit no format."""
    odd = [name for name in shapes if not re.fullmatch(ORDINARY, name)]
    if not odd:
        return " of a plain ResNet without blocks, which foveal.create_model and load_state_dict take"
    said = f", of which these are in no plain ResNet: {listed(odd, 4)}"
    inside = {
        prefix: fitting
        for prefix in _prefixes(shapes)
        if (fitting := [f.name for f in formats.values() if f.matches(below(shapes, prefix))])
    }
    if inside:
        found = "; ".join(
            f"below {prefix!r} they fit {' or '.join(names)}" for prefix, names in inside.items()
        )
        return f"{said}; {found}: pass prefix="
    if places := blocks.prefixes(shapes):
        return f"{said}; it holds Non-local blocks: pass prefix={listed(map(repr, places), 4)}"
    scores = {one: _speaks_for(one, shapes, odd) for one in formats.values()}
    best = max(scores, key=lambda one: len(scores[one]) / len(one.signature))
    if not scores[best]:
        return said
    against = [_in_words(mark) for mark in best.signature if not shapes.any(mark)]
    alone = [n for n in shapes if best.only is not None and not re.match(best.only, n)]
    reasons = [f"no name that begins {listed(against)}"] if against else []
    reasons += [f"names beside it such as {listed(alone, 2)}"] if alone else []
    evidence = f"for it speaks {listed(scores[best], 2)}, against it {' and '.join(reasons)}"
    return f"{said}; nearest is {best.name}: {evidence}"


def below(shapes: Shapes, prefix: str) -> Shapes:
    """The names that begin with ``prefix``, without it."""
    return Shapes({n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)})


def _prefixes(shapes: Shapes) -> list[str]:
    """Beginnings of one or two parts, as wrappers, encoders and momentum encoders have."""
    parts = {".".join(name.split(".")[:depth]) + "." for name in shapes for depth in (1, 2)}
    return sorted(one for one in parts if not re.match(r"(layer|conv|bn)\d\.", one))


def _speaks_for(one: Format, shapes: Shapes, odd: list[str]) -> list[str]:
    """For each mark of a format that a telling name has, the first such name."""
    firsts = (next((name for name in odd if re.match(mark, name)), None) for mark in one.signature)
    return [name for name in firsts if name is not None]


def _in_words(mark: str) -> str:
    """A mark as a name with N for numbers."""
    return re.sub(r"\(\?P<\w+>|\\d\+?|\[[\d-]+\]", "N", mark).replace("\\.", ".")
