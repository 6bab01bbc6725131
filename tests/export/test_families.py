"""Every family of named networks leaves in every format, with gates and attention that do something."""

import pytest
import torch
from tests.export.predictors import DETECTORS, detector, live, with_blocks

from foveal.export import export
from foveal.export.answers import script_input
from foveal.export.script import run_script

CLASSIFIERS = (
    "cifar_se_resnet20",
    "cifar_cbam_resnet20",
    "se_resnet18",
    "cbam_resnet18",
    "legacy_se_resnet18",
)
CLASSIFIERS += ("nonlocal_resnet50", "se_resnext50_32x4d", "seresnet18", "resnet10t")
HEADS = ("danet", "danet_position", "danet_channel", "fcn_nonlocal", "fcn")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_every_family_are_exported(name, to, tmp_path):
    done = export(live(name, "classify", 64), to, out=tmp_path / "out")
    assert all(one.agreement == 1 for one in done.checks)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("head", HEADS)
def test_segmentation_heads_are_exported(head, to, tmp_path):
    done = export(live(f"{head}_test_resnet", "segment", 48), to, out=tmp_path / "out")
    assert all(one.agreement > 0.99 for one in done.checks)


PAIRWISE = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
SIMILARITIES = [f"nonlocal(pairwise={one})" for one in PAIRWISE]
SIMILARITIES += [
    f"selfattention(similarity={one})"
    for one in ("dot", "scaled_dot", "cosine", "concatenation", "perceptron")
]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("block", SIMILARITIES)
def test_attention_with_every_similarity_is_exported(block, to, tmp_path):
    done = export(with_blocks(f"{block}@stage:3"), to, out=tmp_path / "out")
    assert all(one.difference < 1e-5 and one.agreement == 1 for one in done.checks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"),
    [*((name, "onnx") for name in DETECTORS), ("detr_test_resnet, selected", "openvino"),
     ("sparse_rcnn_test_resnet", "openvino"), ("sparse_rcnn_test_resnet", "pt2")],
)  # fmt: skip
def test_detectors_are_exported_with_boxes_of_any_size_of_image(name, to, tmp_path):
    ready = detector(name)
    done = export(ready, to, with_preprocessing=True, out=tmp_path / "out")
    assert [one.shape for one in done.checks] == [(2, 3, 64, 64), (1, 3, 64, 64), (3, 3, 81, 64)]
    assert all(one.difference < 1e-5 and one.agreement == 1 for one in done.checks)
    with script_input(ready, None) as photo:
        said, wanted = run_script(done.folder / "infer.py", photo, tmp_path), ready(photo)
    assert len(wanted) > 1, "an answer without boxes would prove nothing"
    assert [label for label, _ in said["labels"]] == [label for label, _ in wanted.labels]
    torch.testing.assert_close(torch.tensor(said["boxes_xyxy"]), wanted.boxes_xyxy, atol=0.02, rtol=0)
