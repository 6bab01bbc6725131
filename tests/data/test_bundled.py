"""The files of scikit-learn are read as scikit-learn reads them, and without it."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from foveal.data import bundled


@pytest.fixture(params=["files where they are", "files elsewhere"])
def place(request, monkeypatch, tmp_path):
    if request.param == "files elsewhere":
        monkeypatch.setattr(bundled, "_folder", lambda: tmp_path)


def test_digits_are_those_of_scikit_learn(place):
    images, labels = bundled.load_digits()
    expected = datasets.load_digits()
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert np.array_equal(images, expected["images"])
    assert np.array_equal(labels, expected["target"])


def test_photographs_are_those_of_scikit_learn(place):
    expected = datasets.load_sample_images()
    assert [str(path) for path in bundled.photograph_files()] == list(expected["filenames"])
    for ours, theirs in zip(bundled.load_photographs(), expected["images"], strict=True):
        assert np.array_equal(ours, theirs)


def test_a_scene_is_drawn_without_importing_scikit_learn():
    code = "import sys; from foveal.data import Scenes; Scenes('val', length=2)[1]; print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
