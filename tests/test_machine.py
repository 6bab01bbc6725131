"""Devices by name."""

import pytest

from foveal.errors import FovealError
from foveal.machine import choose_device


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(FovealError, match=f"must be one this machine has, got {name}"):
        choose_device(name)
