"""What a file keeps for every pair of positions is said for each module, and is what its graph holds."""

import pytest
import torch
from tests.export.predictors import with_blocks

from foveal.export import FORMATS, export
from foveal.export.pairs import bytes_of_pairs
from foveal.export.program import record

POSITIONS = 1024 * 2048 // 4**2  # behind the strides of the network below


def recorded(insertion: str, **options):
    given = {"static": False, "half": False, "normalise": False, **options}
    example = torch.randn(1 if given["static"] else 2, 3, 32, 32)
    return record(with_blocks(insertion), example, **given)


@pytest.mark.parametrize(
    ("insertion", "found"),
    [
        ("se@stage:3", {}),
        ("cbam(reduction=4)@stage:3", {}),
        ("nonlocal(pairwise=dot_product)@stage:3", {}),
        ("nonlocal@stage:3", {"layer3.0.nonlocal_": 4 * POSITIONS**2}),
        ("nonlocal(subsample=after)@stage:3", {"layer3.0.nonlocal_": POSITIONS**2}),
        ("nonlocal(pairwise=concatenation)@stage:3", {"layer3.0.nonlocal_": 4 * POSITIONS**2}),
    ],
)
def test_bytes_are_those_of_the_largest_tensor_of_pairs(insertion, found):
    assert bytes_of_pairs(recorded(insertion)) == found


def test_nothing_is_known_of_fixed_sizes_and_nothing_is_kept_by_pytorchs_own_attention():
    assert bytes_of_pairs(recorded("nonlocal@stage:3", static=True)) == {}
    assert bytes_of_pairs(recorded("nonlocal@stage:3", for_pytorch=True)) == {}


@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
def test_an_export_says_what_is_kept_and_what_goes_in_tiles(to, tmp_path, monkeypatch):
    assert to in FORMATS
    if to != "pt2":
        pytest.importorskip("onnxruntime" if to == "onnx" else "openvino")
    monkeypatch.setattr("foveal.export.prove_script", lambda *_: 0.0)  # seconds, and tested for every format
    lines = []
    ready = with_blocks("dual@stage:3", "selfattention(similarity=perceptron)@stage:2")
    export(ready, to, out=tmp_path / "out", say=lines.append)
    kept, *tiled = sorted((line for line in lines if "pair" in line), key=lambda line: "tiles" in line)
    assert kept.startswith("layer2.0.selfattention keeps a value for every pair of positions: ")
    assert tiled == ([] if to == "pt2" else ["layer3.0.dual goes through its pairs of positions in tiles"])
