"""Without a CUDA device the Triton kernels are tested in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.marks import slow

pytest.importorskip("triton", reason="Triton is not installed")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernels run in this process")
@pytest.mark.parametrize("dtypes", ["not float16", *slow(["float16"])])
def test_kernels_pass_in_the_interpreter(dtypes):
    files = [str(path) for path in sorted(Path(__file__).parent.glob("test_triton_*.py"))]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        dtypes,
        *files,
    ]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
