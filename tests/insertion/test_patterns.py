"""Patterns of module paths."""

import pytest

from foveal.insertion.patterns import match


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("layer3.*", {"layer3.0", "layer3.1"}),
        ("layer3.**", {"layer3.0", "layer3.1", "layer3.0.bn1", "layer3.1.bn1"}),
        ("**.bn1", {"layer3.0.bn1", "layer3.1.bn1"}),
        ("layer3.[!0]", {"layer3.1"}),
        ("layer?", {"layer3"}),
        ("layer3", {"layer3"}),
        ("layer3.0.bn", set()),
        ("ayer3", set()),
        ("layer3.0+", set()),
    ],
)
def test_patterns_match_whole_paths_and_stars_stay_between_dots(pattern, matched):
    names = ["layer3", "layer3.0", "layer3.1", "layer3.0.bn1", "layer3.1.bn1"]
    assert {name for name in names if match(pattern)(name)} == matched
