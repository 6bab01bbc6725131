"""What is public is what was agreed on: nothing is gone, nothing became required, nothing came without being listed."""

import json

import pytest

from foveal.deprecation import deprecated
from tests.public_api import LIST, current


def broken(agreed: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """What would break a person's code, in words."""
    found = []
    for name, before in agreed.items():
        if name not in now:
            found.append(f"{name} is gone")
            continue
        after = now[name]
        found += [f"{name} has lost {one}" for one in before if one not in after and f"{one}?" not in after]
        required = [
            one for one in after if not one.endswith("?") and "..." not in one and not name.startswith("$")
        ]
        found += [f"{name} now needs {one}" for one in required if one not in before]
        order = [one.rstrip("?") for one in before if not one.startswith("*") and not name.startswith("$")]
        kept = [one.rstrip("?") for one in after]
        places = [kept.index(one) for one in order if one in kept]
        if places != list(range(len(places))):
            found.append(f"{name} takes its arguments in another order")
    return found


def test_nothing_public_is_gone_and_nothing_new_is_unlisted():
    agreed, now = json.loads(LIST.read_text(encoding="utf-8")), current()
    assert broken(agreed, now) == []
    assert now == agreed, "list what is new: PYTHONPATH=. python tests/public_api.py"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({}, ["f is gone"]),
        ({"f": ["a"]}, ["f has lost b?"]),
        ({"f": ["a", "b"]}, ["f has lost b?", "f now needs b"]),
        ({"f": ["a", "b?", "c"]}, ["f now needs c"]),
        ({"f": ["a", "c?", "b?"]}, ["f takes its arguments in another order"]),
        ({"f": ["a", "b?", "c?"]}, []),
        ({"f": ["a?", "b?", "*c?"]}, []),
    ],
)
def test_the_comparison_sees_each_kind_of_break(after, said):
    assert broken({"f": ["a", "b?"]}, after) == said


def test_a_deprecated_name_works_and_warns_whoever_calls_it():
    @deprecated("0.2.0", "foveal.insert")
    def old(x, *, y=1):
        """As before."""
        return x + y

    with pytest.warns(
        FutureWarning, match=r"old is deprecated since foveal 0\.2\.0.*use foveal\.insert"
    ) as caught:
        assert old(1, y=2) == 3
    assert caught[0].filename == __file__
    assert old.__doc__ == "As before."
