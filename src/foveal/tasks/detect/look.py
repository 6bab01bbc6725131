"""What each detection looked at: DETR's attention over the image, Sparse R-CNN's box from stage to stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foveal.palette import palette
from foveal.tasks import AnswerSite
from foveal.tasks.detect import DEFAULT_THRESHOLD, DetectInference
from foveal.tasks.detect.prediction import BoxPrediction, detect, draw_boxes
from foveal.tasks.picture import captioned

MOST = 8
"""Detections of one image that are drawn, the best ones."""
TILE = 168
"""Pixels of the longer side of one map."""
NEIGHBOURS = 4
"""Other proposals that are drawn, those attended to most."""


@torch.no_grad()
def look_pictures(ready: Any, image: Tensor) -> list[tuple[str, np.ndarray]]:
    """Pictures of what the best detections of an image looked at.

    Args:
        ready: the predictor.
        image: uint8 (3, h, w).

    Returns:
        (name, uint8 (h, w, 3)): all detections, then one picture for each, where the network attends.
    """
    view = ready.view({"image": image})["image"]
    answer, seen, prepared = looked_at(ready, view)
    pictures = [("detections", answer.draw(view))]
    if not seen:
        return pictures
    for i, (name, score) in enumerate(answer.labels):
        query = int(answer.queries[i])
        said = f"{name} {score:.0%}, query {query}"
        if "cross" in seen:
            drawn = cross_attention(view, seen["cross"][0, :, :, i], answer.boxes_xyxy[i], said)
        else:
            outputs = ready.net(prepared)["boxes"][0].float().cpu()
            boxes, weights = seen["boxes_xyxy"][0, :, i], seen["self"][0, :, :, i]
            drawn = stages(view, boxes, weights, outputs, query, said)
        pictures.append((f"detection-{i + 1}-{name}", drawn))
    return pictures


@torch.no_grad()
def looked_at(ready: Any, view: Tensor) -> tuple[BoxPrediction, dict[str, Tensor], Tensor]:
    """The best detections of a view, at least one, what each looked at (see the networks), and the prepared image."""
    prepared = ready.prepare(view)[None].to(ready.device)
    (found,) = detect(ready.net, prepared, DetectInference())
    count = min(MOST, max(1, int((found["scores"] >= DEFAULT_THRESHOLD).sum())))
    best = {name: value[:count] for name, value in found.items()}
    answer = BoxPrediction(
        best["boxes_xyxy"], best["scores"], best["labels"], best["queries"], ready.info.classes,
        (view.shape[1], view.shape[2]),
    )  # fmt: skip
    seen = ready.net.detection_attention(prepared, None, best["queries"][None].to(ready.device))
    return answer, {name: value.cpu() for name, value in seen.items()}, prepared


def answer_sites(ready: Any, view: Tensor) -> list[AnswerSite]:
    """DETR: the cross-attention of each decoder layer, mean over heads. Sparse R-CNN: boxes from stage to stage.

    Of others nothing.
    """
    answer, seen, _ = looked_at(ready, view)
    if not seen:
        return []
    height, width = answer.size
    whole = torch.tensor([width, height, width, height])
    labels = [f"{name} {score:.0%}" for name, score in answer.labels]
    boxes = answer.boxes_xyxy / whole
    if "cross" not in seen:
        paths = (seen["boxes_xyxy"][0] / whole).transpose(0, 1)
        return [AnswerSite("stages", type(ready.net).__name__, labels, boxes, paths=paths)]
    layers = seen["cross"][0].mean(1)
    return [
        AnswerSite(f"decoder.{i}.multihead_attn", "cross-attention", labels, boxes, maps=maps)
        for i, maps in enumerate(layers)
    ]


def cross_attention(
    view: Tensor, weights: Float[Tensor, "layers heads h w"], box: Float[Tensor, 4], said: str
) -> np.ndarray:
    """The weights of one query over the image: a row a layer, the mean of the heads first, then each head.

    Every map is scaled to its own largest weight, which is written below it, as a multiple of an even spread.

    Example:
        >>> weights = torch.rand(2, 4, 3, 5)
        >>> view, box = torch.zeros(3, 30, 50, dtype=torch.uint8), torch.tensor([1.0, 1, 9, 9])
        >>> cross_attention(view, weights, box, "cat").ndim
        3
    """
    maps = torch.cat([weights.mean(1, keepdim=True), weights], 1)
    even = 1 / weights[0, 0].numel()
    rows = []
    for layer, row in enumerate(maps):
        tiles = []
        for head, one in enumerate(row):
            which = "mean of heads" if head == 0 else f"head {head}"
            tile = heat_over(view, one, box)
            tiles.append(
                captioned(tile, [f"layer {layer + 1}, {which}", f"most {float(one.max()) / even:.1f} x even"])
            )
        rows.append(np.concatenate(tiles, axis=1))
    return captioned(
        np.concatenate(rows, axis=0), [f"{said}: cross-attention over the image; the box is its answer"]
    )


def heat_over(view: Tensor, weights: Float[Tensor, "h w"], box: Float[Tensor, 4]) -> np.ndarray:
    """One map over the grey image, one square a weight, with the box."""
    from matplotlib import colormaps
    from PIL import Image

    height, width = view.shape[-2:]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = Image.fromarray(view.permute(1, 2, 0).numpy()).convert("L").resize(size)
    share = (weights / weights.max().clamp_min(1e-12)).numpy()
    heat = Image.fromarray((255 * share).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    coloured = colormaps["viridis"](np.asarray(heat))[..., :3] * 255
    mixed = 0.35 * np.asarray(grey, dtype=np.float64)[..., None] + 0.65 * coloured
    picture = Image.fromarray(mixed.astype(np.uint8))
    from PIL import ImageDraw

    ImageDraw.Draw(picture).rectangle([float(v) * scale for v in box], outline=(255, 255, 255), width=2)
    return np.asarray(picture)


def stages(
    view: Tensor,
    boxes: Float[Tensor, "s 4"],
    attention: Float[Tensor, "stages heads q"],
    every: Float[Tensor, "q 4"],
    query: int,
    said: str,
) -> np.ndarray:
    """A box from its start through all stages, and beside it the proposals that it attended to most in the last one."""
    names = ["start", *(f"stage {i}" for i in range(1, len(boxes)))]
    ramp = np.linspace([250, 220, 60], [200, 30, 90], len(boxes)).astype(np.uint8)
    order = torch.arange(len(boxes)).flip(0)
    left = draw_boxes(view, boxes[order], order, [names[i] for i in order], ramp)
    height, width = view.shape[-2:]
    centre, side = every[:, :2], every[:, 2:]
    shares = torch.cat([centre - side / 2, centre + side / 2], 1)
    pixels = (shares * torch.tensor([width, height, width, height])).clamp_min(0)
    pixels = pixels.minimum(torch.tensor([width, height, width, height], dtype=pixels.dtype))
    last = attention[-1].mean(0)
    last[query] = 0
    most = last.topk(min(NEIGHBOURS, len(last) - 1)).indices
    labels = [f"query {int(i)}: {float(last[i]):.0%}" for i in most]
    colours = palette([str(i) for i in range(len(every))])
    right = draw_boxes(view, pixels[most], most, labels, colours)
    both = np.concatenate([left, np.full((left.shape[0], 10, 3), 255, np.uint8), right], axis=1)
    return captioned(
        both, [f"{said}: its box from stage to stage; at the right the proposals it attends to most"]
    )
