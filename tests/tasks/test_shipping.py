"""What is copied into scripts computes what PyTorch computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from foveal.data import decode_image
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS
from foveal.tasks.detect.shipping import answer, prepare
from foveal.tasks.segment.shipping import bilinear, mean_overlap
from foveal.tasks.shipping import network_input, read, resize

NATIVE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize(
    "sizes",
    [(50, 70, 20, 31), (9, 200, 64, 64), (33, 33, 33, 12), (7, 5, 7, 5), (3, 4, 50, 1), (300, 2, 24, 24)],
)
def test_bytes_are_resized_as_torchvision_does_to_the_bit(sizes):
    """Processors without AVX2 round another way there, by one level of 255 at most."""
    h, w, height, width = sizes
    pixels = np.random.default_rng(h).integers(0, 256, (h, w, 3), dtype=np.uint8)
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    wanted = functional.resize(image, [height, width], antialias=True).permute(1, 2, 0).numpy()
    difference = np.abs(resize(pixels, height, width).astype(int) - wanted)
    assert difference.max() <= (0 if NATIVE else 1)
    assert np.array_equal(resize(pixels[..., 0], height, width), resize(pixels, height, width)[..., 0])


def awkward_images():
    """Name -> an image and what it is saved with, of kinds that Pillow alone would show otherwise."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA")
    greys = Image.fromarray(random.integers(4095, 65536, (9, 7), dtype=np.uint16))
    turned = Image.Exif()
    turned[0x112] = 6
    return {
        "alpha.png": (colours, {}),
        "alpha.webp": (colours, {"lossless": True, "exact": True}),
        "unknown_band.tif": (colours, {}),
        "multiplied.tif": (colours, {"tiffinfo": {338: 1}}),
        "grey_alpha.png": (colours.convert("LA"), {}),
        "palette.png": (colours.convert("RGB").convert("P"), {"transparency": 5}),
        "grey.png": (colours.convert("L"), {"transparency": colours.convert("L").getpixel((0, 0))}),
        "16_bits.png": (greys, {"transparency": greys.getpixel((0, 0))}),
        "16_bits.tif": (greys, {}),
        "float.tif": (Image.fromarray(random.random((9, 7), dtype=np.float32)), {}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "one_bit.png": (colours.convert("1"), {}),
        "turned.png": (colours, {"exif": turned}),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", list(awkward_images()))
def test_images_of_every_kind_are_read_as_foveal_reads_them(name, mode, tmp_path):
    image, options = awkward_images()[name]
    image.save(tmp_path / name, **options)
    wanted = decode_image(tmp_path / name, channels=len(mode)).permute(1, 2, 0).numpy()
    assert np.array_equal(np.atleast_3d(read(tmp_path / name, mode)), wanted)


def test_greys_are_shares_of_the_bits_that_the_network_was_told(tmp_path):
    Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read(tmp_path / "a.png", "L", 4095)).tolist() == [[0, 128, 255]]
    Image.fromarray(np.array([[0, 5000]], dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="grey values must be 0 to 4095"):
        read(tmp_path / "b.png", "L", 4095)


def test_the_input_is_normalised_or_left_as_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "normalised_in_graph": False}
    wanted = functional.normalize(
        torch.from_numpy(pixels).permute(2, 0, 1) / 255, facts["mean"], facts["std"]
    )
    assert np.allclose(network_input(pixels, facts), wanted[None], atol=1e-6)
    as_bytes = network_input(pixels, {**facts, "normalised_in_graph": True})
    assert as_bytes.dtype == np.uint8
    assert np.array_equal(as_bytes[0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("size", "length"), [(7, 3), (3, 7), (5, 5), (1, 4), (4, 1)])
def test_logits_are_resized_as_pytorch_does(size, length):
    line = torch.randn(length, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(line[None, None, :, None], (size, 1), mode="bilinear")[0, 0, :, 0]
    assert np.allclose(bilinear(size, length) @ line.numpy(), wanted, atol=1e-6)


def test_overlap_is_a_mean_over_classes_not_pixels():
    truth = F.one_hot(torch.tensor([[[0, 0, 0, 1]]]), 2).movedim(-1, 1).float()
    wrong = F.one_hot(torch.tensor([[[0, 0, 0, 0]]]), 2).movedim(-1, 1).float()
    assert mean_overlap([truth], [truth]) == 1
    assert mean_overlap([truth], [wrong]) == pytest.approx((3 / 4 + 0) / 2)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("detr_test_resnet", {"encoder_layers": 1, "decoder_layers": 1}),
        ("detr_test_resnet", {"encoder_layers": 1, "decoder_layers": 1, "classification": "focal"}),
        ("sparse_rcnn_test_resnet", {"stages": 1, "dynamic_width": 4, "strides": (4, 8)}),
    ],
)
def test_outputs_become_the_boxes_of_predict(model, options):
    torch.manual_seed(0)
    info, task = ModelInfo("detect", ["ant", "bee", "cat"], 30), TASKS["detect"]
    net = task.build(model, 3, width=16, heads=2, ffn_width=16, num_queries=40, **options).eval()
    # larger logits, so that some scores pass the threshold
    (head,) = [net.class_embed] if hasattr(net, "class_embed") else [net.stages[0].class_logits]
    torch.nn.init.normal_(head.weight)
    torch.nn.init.zeros_(head.bias)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    shipment = task.ship(info)
    facts = {"mean": [0.0] * 3, "std": [1.0] * 3, "normalised_in_graph": False, **shipment.preprocessing}
    images = torch.from_numpy(prepare(image, facts))
    assert images.shape == (1, 3, 22, 50), "the longer side ends at 1333 / 800 of the shorter one's pixels"
    with torch.no_grad():
        (wanted,) = task.predict(net, images, [(40, 90)], info)
        outputs = [output.numpy() for output in shipment.call(net, images)]
    said = answer(outputs, image, "photo", {"preprocessing": facts, "classes": info.classes})
    assert len(wanted) > 3
    assert [label for label, _ in said["labels"]] == [label for label, _ in wanted.labels]
    assert np.allclose([score for _, score in said["labels"]], wanted.scores, atol=1e-5)
    assert np.allclose(said["boxes_xyxy"], wanted.boxes_xyxy, atol=0.011)
    assert min(map(min, said["boxes_xyxy"])) >= 0
