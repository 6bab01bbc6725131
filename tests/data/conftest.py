from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a real data set beside the checkout; skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs the data set {name} in {SHARED.name} beside the checkout")
        return path

    return find


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Write an image of one grey value, of noise if none is given, and its folders."""

    def write(path: Path, value: int | None = None, size: tuple[int, int] = (12, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0])
        noise = np.random.default_rng(len(str(path))).integers(0, 255, (*shape, 3), dtype=np.uint8)
        pixels = noise if value is None else np.full(shape, value, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write
