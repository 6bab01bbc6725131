"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import foveal

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# a command, and files that import Triton, which not every installation has: none has examples
WITHOUT = {"foveal.cli.__main__", "foveal.ops.kernels.triton_attention", "foveal.ops.kernels.triton_gate"}
MODULES = sorted({m.name for m in pkgutil.walk_packages(foveal.__path__, "foveal.")} - WITHOUT)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch, in_this_process):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(
        module, optionflags=OPTIONS, extraglobs={"torch": importlib.import_module("torch")}
    )
    assert result.failed == 0, (
        f"{result.failed} of {result.attempted} examples of {name} fail; see the output above"
    )
