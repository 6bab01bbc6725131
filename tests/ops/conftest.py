import pytest

from foveal.ops import attention


@pytest.fixture(autouse=True)
def tiles_for_small_maps_too(monkeypatch):
    """The sizes of tests are small: without this they would all take the literal equation."""
    monkeypatch.setattr(attention, "FEW_SCORES", 0)
