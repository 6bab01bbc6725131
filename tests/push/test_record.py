"""What a card says of how weights came to be."""

import pytest
import yaml

from foveal.model_info import ModelInfo
from foveal.push.record import read_record


@pytest.mark.parametrize(
    ("config", "base", "began"),
    [
        ({"model": "resnet18", "pretrained": True}, "timm/resnet18.a1_in1k", "published weights"),
        ({"model": "resnet18.tv_in1k", "pretrained": True}, "timm/resnet18.tv_in1k", "published weights"),
        (
            {"model": "danet_position_resnet18", "pretrained": True},
            "timm/resnet18.a1_in1k",
            "published weights",
        ),
        ({"model": "resnet18", "pretrained": False}, None, "random weights"),
        ({"from_weights": "hf-hub:ann/leaves@" + "0" * 40}, "ann/leaves", "weights that were trained before"),
        ({"from_weights": "before.safetensors"}, None, "weights that were trained before"),
    ],
)
def test_the_base_model_is_what_training_began_from(tmp_path, config, base, began):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"epochs": 3, "out": "/home/ann/runs", **config}))
    info = ModelInfo("classify", ["a", "b"], 32)
    record = read_record(info, tmp_path, figures=None, comparison=None, picture=None)
    assert (record.base, record.began) == (base, began)
    assert record.training == {"epochs": 3}, "where it ran is nobody's business"


def test_figures_of_clips_name_their_views():
    info = ModelInfo("clips", ["a", "b"], 32, figures={"epoch": 1, "val_accuracy": 0.5})
    record = read_record(info, None, figures=None, comparison=None, picture=None)
    assert [one.views for one in record.figures] == ["1 clip x 1 crop"]
