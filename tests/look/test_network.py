"""A network with its facts: views, points and names."""

from pathlib import Path

import pytest
import torch

import foveal
from foveal.data import eval_transform, segmentation_eval_transform
from foveal.look.network import Network, open_network


def test_views_are_what_evaluation_sees(network: Network) -> None:
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    view = network.view({"image": image})["image"]
    expected = eval_transform(32, mean=network.mean, std=network.std)({"image": image})["image"]
    assert view.dtype == torch.uint8
    torch.testing.assert_close(network.prepare(view), expected)


def test_a_pixel_of_the_photograph_is_found_in_the_view(network: Network) -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 40:42, 50:52] = 255
    view = network.view({"image": image})["image"]
    y, x = network.point((64, 96), (40, 50))
    assert view[0, y, x] == view.max()


def test_a_pixel_that_the_view_cuts_off_is_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="central square that the network sees, got 5,2"):
        network.point((64, 128), (5, 2))
    with pytest.raises(ValueError, match="inside the image of 64x128, got 64,0"):
        network.point((64, 128), (64, 0))


def test_predictions_are_the_networks(network: Network) -> None:
    view = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    prediction, seen = network.look(view)
    expected = network.net(network.prepare(view)[None])[0].softmax(0)
    label, probability = prediction.labels[0]
    assert label == str(int(expected.argmax()))
    assert probability == pytest.approx(float(expected.max()))
    assert len(seen) == 3
    assert all(record.weights == "one.safetensors" for record in seen.values())


def test_segmentation_gives_a_class_map() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = foveal.nn.PositionAttention(8)
            self.stem = torch.nn.Conv2d(3, 8, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"fused": self.block(self.stem(x))[:, :3]}

    network = Network(Net().eval(), "w", ["road", "sky", "tree"], 16, (0.5,) * 3, (0.5,) * 3)
    prediction, _ = network.look(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    assert prediction.class_map is not None
    assert prediction.class_map.shape == (16, 16)
    assert sum(share for _, share in prediction.labels) == pytest.approx(1)


def test_a_segmentation_network_sees_the_whole_image(danet: Path) -> None:
    network = open_network(danet)
    image = torch.randint(0, 256, (3, 96, 160), dtype=torch.uint8)
    view = network.view({"image": image})["image"]
    assert view.shape == (3, 64, 107)
    expected = segmentation_eval_transform(network.mean, network.std, shorter=64)({"image": image})["image"]
    torch.testing.assert_close(network.prepare(view), expected)
    assert network.point((96, 160), (95, 159)) == (63, 106)
    prediction, seen = network.look(view)
    assert prediction.class_map is not None
    assert prediction.class_map.shape == (64, 107)
    assert seen["position"].rows((3, 5)).shape == (1, 1, 8, 14)
    assert seen["channel"].channels.shape == (1, 128, 128)


def test_weights_that_training_did_not_write_are_refused(tmp_path: Path) -> None:
    foveal.save(foveal.create_model("cifar_resnet8"), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="must hold classes, image_size, mean, std"):
        open_network(tmp_path / "bare.safetensors")


def test_two_runs_are_told_apart_by_name(tmp_path: Path, weights: Path) -> None:
    target = tmp_path / "run-7" / "weights" / "best.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(weights.read_bytes())
    assert open_network(target).weights == "run-7/weights/best.safetensors"
