"""Two processes share the tests; each keeps to one thread, or they would wait for each other's."""

import errno
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


@pytest.fixture
def full_disk(monkeypatch):
    """Call it with a file's name: from then on the disk has no room for that file, as shows when it is synced."""
    from foveal import files

    sync = files._sync

    def fill(name):
        def refuse(path):
            if path.name.startswith(f".{name}."):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            sync(path)

        monkeypatch.setattr(files, "_sync", refuse)

    return fill
