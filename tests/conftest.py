"""Two processes share the tests; each keeps to one thread, or they would wait for each other's."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def said(capsys):
    """Call the command; give back its status and what it printed."""

    from foveal.cli import main

    def call(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call
