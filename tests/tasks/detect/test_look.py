import pytest
import torch
from tests.look.page.test_payload import unpacked

from foveal.inference import Predictor
from foveal.look.page.payload import image_payload
from foveal.look.predict import predict_recorded
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS
from foveal.tasks.detect.look import heat_over, look_pictures, looked_at

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


def ready(name):
    torch.manual_seed(0)
    net = TASKS["detect"].build(name, 3, **NETS[name]).eval()
    return Predictor(net, ModelInfo("detect", ["ant", "bee", "cat"], 64), "random")


@pytest.mark.parametrize("name", NETS)
def test_every_network_shows_what_its_best_detections_looked_at(name):
    image = torch.randint(0, 255, (3, 90, 120), dtype=torch.uint8)
    pictures = look_pictures(ready(name), image)
    assert pictures[0][0] == "detections"
    assert len(pictures) >= 2
    assert all(picture.ndim == 3 and picture.shape[2] == 3 for _, picture in pictures)


def test_the_page_gets_the_maps_of_every_object_and_the_rows_of_the_encoder():
    network = ready("detr_test_resnet")
    view = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    answer, seen = predict_recorded(network, view)
    payload = image_payload(network, "a", view, answer, seen.values(), rows=True)
    encoder, *layers = payload["sites"]
    assert [site["name"] for site in layers] == ["decoder.0.multihead_attn", "decoder.1.multihead_attn"]
    best, looked, prepared = looked_at(network, view)
    for layer, site in enumerate(layers):
        objects = site["objects"]
        assert len(objects["labels"]) == len(objects["boxes"]) == len(best)
        assert site["spatial"] == [2, 3]
        exact = looked["cross"][0, layer].mean(0) * 6
        torch.testing.assert_close(
            torch.from_numpy(unpacked(objects["maps"])).float(), exact, atol=0.01, rtol=0
        )
    assert encoder["name"] == "encoder.0"
    assert encoder["keys"] == [2, 3]
    rows = network.net.encoder_attention(prepared, None, [(1, 2)])[0, 0].mean(0)
    torch.testing.assert_close(seen["encoder.0"].rows((1, 2))[0], rows, rtol=0, atol=1e-6)


def test_the_page_gets_the_way_of_every_box_where_nothing_else_is_attended_to():
    network = ready("sparse_rcnn_test_resnet")
    view = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    answer, seen = predict_recorded(network, view)
    (site,) = image_payload(network, "a", view, answer, seen.values(), rows=False)["sites"]
    paths = torch.tensor(site["objects"]["paths"])
    assert paths.shape == (len(site["objects"]["labels"]), 3, 4)
    torch.testing.assert_close(paths[:, 0], torch.tensor([[0.0, 0, 1, 1]]).expand(len(paths), 4))
    torch.testing.assert_close(paths[:, -1].clamp(0, 1), torch.tensor(site["objects"]["boxes"]))


def test_the_brightest_square_is_the_largest_weight():
    weights = torch.zeros(4, 4)
    weights[1, 2] = 1
    picture = heat_over(
        torch.zeros(3, 64, 64, dtype=torch.uint8), weights, torch.tensor([0.0, 0, 1, 1])
    ).astype(int)
    step = picture.shape[0] // 4
    squares = picture[step // 2 :: step, step // 2 :: step, :2].sum(-1)
    assert divmod(int(squares.argmax()), 4) == (1, 2)
