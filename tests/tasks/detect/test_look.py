import pytest
import torch

from foveal.inference import Predictor
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS
from foveal.tasks.detect.look import heat_over, look_pictures

NETS = {
    "detr_test_resnet": {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "width": 16,
        "ffn_width": 16,
        "heads": 2,
        "num_queries": 5,
    },
    "sparse_rcnn_test_resnet": {
        "stages": 2,
        "width": 16,
        "ffn_width": 16,
        "heads": 2,
        "dynamic_width": 8,
        "num_queries": 5,
    },
}


@pytest.mark.parametrize("name", NETS)
def test_every_network_shows_what_its_best_detections_looked_at(name):
    torch.manual_seed(0)
    net = TASKS["detect"].build(name, 3, **NETS[name]).eval()
    ready = Predictor(net, ModelInfo("detect", ["ant", "bee", "cat"], 64), "random")
    image = torch.randint(0, 255, (3, 90, 120), dtype=torch.uint8)
    pictures = look_pictures(ready, image)
    assert pictures[0][0] == "detections"
    assert len(pictures) >= 2
    assert all(picture.ndim == 3 and picture.shape[2] == 3 for _, picture in pictures)


def test_the_brightest_square_is_the_largest_weight():
    weights = torch.zeros(4, 4)
    weights[1, 2] = 1
    picture = heat_over(
        torch.zeros(3, 64, 64, dtype=torch.uint8), weights, torch.tensor([0.0, 0, 1, 1])
    ).astype(int)
    step = picture.shape[0] // 4
    squares = picture[step // 2 :: step, step // 2 :: step, :2].sum(-1)
    assert divmod(int(squares.argmax()), 4) == (1, 2)
