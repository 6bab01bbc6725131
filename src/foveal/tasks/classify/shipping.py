"""How an exported classifier is used: see `foveal.tasks.shipping`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from foveal.data.transforms import SMALL
from foveal.model_info import ModelInfo
from foveal.tasks.shipping import Shipment, in_bytes, network_input, read, resize


def ship(info: ModelInfo) -> Shipment:
    """Logits (b, classes) of images of any size."""
    share = info.crop_share or (0.875 if info.image_size > SMALL else 1.0)
    return Shipment(
        outputs=("logits",),
        call=lambda net, images: (net(images),),
        rebuild=lambda outputs: outputs[0],
        agreement=same_label,
        agreement_of="top-1",
        preprocessing={"resize_shorter": math.floor(info.image_size / share), "crop": info.image_size},
        script=(read, in_bytes, resize, network_input, prepare, answer),
        browser=("shipping.js", "classify/shipping.js"),
    )


def same_label(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The share of images with the same best class."""
    return float((wanted[0].argmax(1) == found[0].argmax(1)).float().mean())


def prepare(image, facts):
    """The shorter side resized, the centre cut out."""
    width, height = (int(facts["resize_shorter"] * side / min(image.size)) for side in image.size)
    if facts["interpolation"] == "bicubic":
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    else:
        pixels = resize(np.asarray(image), height, width)
    side = facts["crop"]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return network_input(pixels[top : top + side, left : left + side], facts)


def answer(outputs, image, name, about):
    """The five most probable classes."""
    odds = np.exp(outputs[0][0] - outputs[0][0].max())
    best = np.argsort(-odds, kind="stable")[:5]
    return {"labels": [(about["classes"][i], float(odds[i] / odds.sum())) for i in best]}
