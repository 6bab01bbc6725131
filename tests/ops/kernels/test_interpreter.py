"""Without a CUDA device the Triton kernels are tested in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernels run in this process")
@pytest.mark.parametrize("file", ["test_triton_attention.py", "test_triton_gate.py"])
def test_kernels_pass_in_the_interpreter(file):
    path = str(Path(__file__).with_name(file))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", path]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
