"""The network that comes with the package: small, and as good as is written beside it."""

import json
from importlib import resources

import pytest

from foveal.evaluate import evaluate
from foveal.inference import BUNDLED, open_bundled

FOLDER = resources.files("foveal.look")


def test_it_is_small_and_opens_without_a_path() -> None:
    with resources.as_file(FOLDER / BUNDLED) as path:
        assert path.stat().st_size < 2_000_000
    assert "bundled" in open_bundled().name


def test_its_accuracy_is_the_one_recorded() -> None:
    recorded = json.loads((FOLDER / "default.json").read_text(encoding="utf-8"))["result"]
    with resources.as_file(FOLDER / BUNDLED) as path:
        result = evaluate(path, split=recorded["split"], data_options={"length": recorded["images"]})
    assert result.images == recorded["images"]
    assert result.figures["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.003)
