"""A network ready for use: answers for any kind of image, views, points and names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.data import eval_transform, segmentation_eval_transform
from foveal.evaluate import data_options_for
from foveal.inference import Predictor, open_bundled, predictor
from foveal.look.page.uploads import decode_upload
from foveal.look.predict import predict_recorded
from foveal.model_info import ModelInfo


def test_views_are_what_evaluation_sees(network: Predictor) -> None:
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = network.view({"image": image})["image"]
    expected = eval_transform(32, mean=network.info.mean, std=network.info.std)({"image": image})["image"]
    assert view.dtype == torch.uint8
    torch.testing.assert_close(network.prepare(view), expected)


def test_a_pixel_of_the_photograph_is_found_in_the_view(network: Predictor) -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 40:42, 50:52] = 255
    view = network.view({"image": image})["image"]
    y, x = network.point((64, 96), (40, 50))
    assert view[0, y, x] == view.max()


def test_a_pixel_that_the_view_cuts_off_is_refused(network: Predictor) -> None:
    with pytest.raises(ValueError, match="part of the image that the network sees, got 5,2"):
        network.point((64, 128), (5, 2))
    with pytest.raises(ValueError, match="inside the image of 64x128, got 64,0"):
        network.point((64, 128), (64, 0))


def test_predictions_are_the_networks(network: Predictor) -> None:
    view = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    prediction, seen = predict_recorded(network, view)
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

    info = ModelInfo("segment", ["road", "sky", "tree"], 16, (0.5,) * 3, (0.5,) * 3)
    network = Predictor(Net().eval(), info, "w")
    prediction, _ = predict_recorded(network, torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    assert prediction.class_map is not None
    assert prediction.class_map.shape == (16, 16)
    assert sum(share for _, share in prediction.labels) == pytest.approx(1)


def test_a_segmentation_network_sees_the_whole_image(danet: Path) -> None:
    network = predictor(danet, "cpu")
    image = torch.randint(0, 256, (3, 96, 160), dtype=torch.uint8)
    view = network.view({"image": image})["image"]
    assert view.shape == (3, 64, 107)
    expected = segmentation_eval_transform(network.info.mean, network.info.std, shorter=64)({"image": image})[
        "image"
    ]
    torch.testing.assert_close(network.prepare(view), expected)
    assert network.point((96, 160), (95, 159)) == (63, 106)
    prediction, seen = predict_recorded(network, view)
    assert prediction.class_map is not None
    assert prediction.class_map.shape == (64, 107)
    assert seen["position"].rows((3, 5)).shape == (1, 1, 8, 14)
    assert seen["channel"].channels.shape == (1, 128, 128)


def test_weights_that_training_did_not_write_are_refused(tmp_path: Path) -> None:
    foveal.save(foveal.create_model("cifar_resnet8"), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="must come with classes, image_size, mean, std"):
        predictor(tmp_path / "bare.safetensors")


def test_two_runs_are_told_apart_by_name(tmp_path: Path, weights: Path) -> None:
    target = tmp_path / "run-7" / "weights" / "best.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(weights.read_bytes())
    assert predictor(target, "cpu").name == "run-7/weights/best.safetensors"


@pytest.fixture(scope="module")
def network(weights: Path) -> Predictor:
    return predictor(weights, "cpu")


def test_every_kind_of_image_gets_the_same_answer(network: Predictor, photo: Path) -> None:
    """A path, bytes, a Pillow image, an array and a tensor; alone or in a list."""
    image = Image.open(photo)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    answers = [network(source) for source in (photo, str(photo), photo.read_bytes(), image, array, tensor)]
    assert all(one.labels == answers[0].labels for one in answers)
    assert network([array, array[:100]])[0].label == answers[0].label
    assert (answers[0].file, answers[2].file) == (str(photo), "")
    assert answers[0].label in repr(answers[0])
    assert answers[0]._repr_png_().startswith(b"\x89PNG")
    assert answers[0].plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(foveal.FovealError, match="must hold its image"):
        replace(answers[0], image=None).plot()
    assert len(network(photo, top=2).labels) == 2


def test_a_network_for_grey_images_answers_for_any_and_shows_them(tmp_path: Path) -> None:
    net = foveal.create_model("cifar_resnet8", num_classes=2, in_chans=1)
    info = ModelInfo("classify", ["cat", "dog"], 32, mean=(0.5,), std=(0.5,))
    foveal.save(net, tmp_path / "grey.safetensors", **info.to_dict())
    ready = predictor(tmp_path / "grey.safetensors", "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    colours = torch.from_numpy(pixels).permute(2, 0, 1)
    sources = (
        tmp_path / "a.png",
        pixels,
        colours,
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("L"),
    )
    answers = [ready(source) for source in sources]
    assert all(answer.labels == answers[0].labels for answer in answers)
    assert all(answer._repr_png_().startswith(b"\x89PNG") for answer in answers)
    view = ready.view({"image": colours})["image"]
    assert view.shape == (3, 32, 32)
    assert ready.prepare(view).shape == (1, 32, 32)


def test_x_rays_of_12_bits_are_read_as_they_were_trained_on(tmp_path: Path) -> None:
    """With the range of 16 bits they would be nearly black: other images than those of the training."""
    net = foveal.create_model("cifar_resnet8", num_classes=2, in_chans=1)
    info = ModelInfo(
        "classify", ["a", "b"], 8, mean=(0.5,), std=(0.5,), data="x", data_options={"grey_bits": 12}
    )
    foveal.save(net, tmp_path / "xray.safetensors", **info.to_dict())
    ready = predictor(tmp_path / "xray.safetensors", "cpu")
    for kind in "ab":
        path = tmp_path / "other" / kind / "1.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(path)
    with Image.open(path) as image:
        sources = (path, path.read_bytes(), image)
        assert [int(ready._input(source).max()) for source in sources] == [255, 255, 255]
    assert int(ready.read(path).min()) == 255
    assert data_options_for(ready.info, str(tmp_path / "other"), {}, ready.task) == {"grey_bits": 12}
    assert data_options_for(ready.info, "https://x.org/other", {}, ready.task) == {"grey_bits": 12}
    assert data_options_for(ready.info, "scenes", {}, ready.task) == {}
    assert int(decode_upload(path.read_bytes(), "upload", ready.info.grey_bits)[0].min()) == 255


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (torch.zeros(3, 8, 8), "must be uint8"),
        (np.zeros((8, 8), dtype=np.uint8), "must be uint8"),
        (3, "must be a path, bytes, a Pillow image"),
        (b"no image", "not an image file"),
    ],
)
def test_what_is_no_image_is_refused(network: Predictor, source: object, rule: str) -> None:
    with pytest.raises(foveal.FovealError, match=rule):
        network(source)


def test_masks_have_the_size_of_the_photograph_and_draw_themselves(danet: Path, photo: Path) -> None:
    answer = predictor(danet, "cpu")(photo, inference="sliding", crop=48)
    assert answer.class_map.shape == (200, 300)
    assert sum(answer.shares.values()) == pytest.approx(1)
    assert "300x200" in repr(answer)
    assert answer._repr_png_().startswith(b"\x89PNG")


def test_the_bundled_network_is_there_without_a_file() -> None:
    ready = open_bundled()
    assert ready.info.classes == [str(digit) for digit in range(10)]
    assert "default.safetensors" in repr(ready)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 10**9), ("image_size", "32"), ("mean", [0.5, float("nan"), 0.5]), ("std", [0, 1, 1]),
        ("std", [1.0]), ("classes", "abc"), ("classes", [1, 2]), ("interpolation", "magic"), ("data_options", []),
        ("crop_share", 0),
    ],
)  # fmt: skip
def test_facts_from_a_foreign_file_are_checked(name: str, value: object) -> None:
    stored = {**ModelInfo("classify", ["a", "b"], 32).to_dict(), name: value}
    with pytest.raises(foveal.FovealError, match=f"{name} of the weights must be"):
        ModelInfo.from_dict(stored)
