"""The handwritten digits and the two photographs that come with scikit-learn, read without importing it.

Importing `sklearn.datasets` takes a second of every process that draws a scene, for two pictures and a table.
The files have been where they are for many releases; where they are not, scikit-learn is asked.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from foveal.data.decode import decode_image

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits (1797, 8, 8) float32 in 0..16, and what they are, (1797,) int64 in 0..9.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, as scikit-learn has it.

    Example:
        >>> images, labels = load_digits()
        >>> images.shape, labels[:3]
        ((1797, 8, 8), array([0, 1, 2]))
    """
    table = _folder() / "data" / "digits.csv.gz"
    if not table.is_file():
        from sklearn import datasets

        images, labels = datasets.load_digits(return_X_y=True)
        return images.reshape(-1, 8, 8).astype(np.float32), labels.astype(np.int64)
    rows = np.loadtxt(table, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 8, 8).astype(np.float32), rows[:, -1].astype(np.int64)


def photograph_files() -> list[Path]:
    """The two photographs, of 640 x 427 pixels, as files.

    Example:
        >>> [path.name for path in photograph_files()]
        ['china.jpg', 'flower.jpg']
    """
    files = [_folder() / "images" / name for name in PHOTOGRAPHS]
    if not all(path.is_file() for path in files):
        from sklearn import datasets

        found = datasets.load_sample_images()
        files = [Path(name) for name in found["filenames"]]
    return files


def load_photographs() -> list[np.ndarray]:
    """The two photographs, each (427, 640, 3) uint8.

    Example:
        >>> [pixels.shape for pixels in load_photographs()]
        [(427, 640, 3), (427, 640, 3)]
    """
    return [decode_image(path).permute(1, 2, 0).numpy() for path in photograph_files()]


def _folder() -> Path:
    """scikit-learn's folder of data sets, found without running any of its code."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return Path("sklearn", "datasets")
    return Path(spec.submodule_search_locations[0], "datasets")
