import pytest
import torch

from foveal.ops import attention
from foveal.ops.kernels import streamed


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def tiles_for_small_maps_too(monkeypatch):
    """The sizes of tests are small: without this they would all take the literal equation."""
    monkeypatch.setattr(attention, "FEW_SCORES", 0)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan(monkeypatch):
    """What an operator allocates and forgets to write shows: new memory is NaN, and so are tiles before each use."""
    workspace = streamed._Workspace.__call__
    monkeypatch.setattr(
        streamed._Workspace, "__call__", lambda self, *shape: workspace(self, *shape).fill_(float("nan"))
    )
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills
