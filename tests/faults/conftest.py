"""The campaign of faults: what runs by default is its quick part; ``pytest -m faults`` runs all its trials."""

import pytest


def trials(quick, whole):
    """The number of trials: few by default, all of them with ``-m faults``."""
    return pytest.mark.parametrize(
        "trials",
        [
            pytest.param(quick, id=f"{quick} trials"),
            pytest.param(whole, id=f"{whole} trials", marks=pytest.mark.faults),
        ],
    )
