"""A recording as plain JSON values: what the page draws, whether a server sends it or a file carries it."""

import base64
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.inference import Predictor
from foveal.look.geometry import query_grid
from foveal.look.recording import SiteRecording
from foveal.palette import palette
from foveal.tasks import AnswerSite

LARGEST_MATRIX = 256
"""Channel matrices above this many channels are averaged in blocks, which the page says."""
LARGEST_ROWS = 700_000
"""Weights of one site in a file; larger maps get a coarser grid of queries, never coarser rows."""


def image_payload(
    predictor: Predictor,
    name: str,
    view: Tensor,
    prediction: Any,
    sites: Iterable[SiteRecording],
    *,
    rows: bool,
) -> dict[str, Any]:
    """One image, or one clip, seen by one network.

    Args:
        view: uint8 (3, H, W), or (3, t, H, W) of a clip, as the network saw it.
        prediction: the network's answer.
        sites: the recordings to show; those that are not of places in the view are left out.
        rows: embed the attention rows (for a file); without, the page asks the server for each.
    """
    classes = None
    if getattr(prediction, "class_map", None) is not None:
        colours = palette(predictor.info.classes).tolist()
        classes = {"map": _packed(prediction.class_map), "names": predictor.info.classes, "colours": colours}
    frames = [view] if view.ndim == 3 else view.unbind(1)
    return {
        "name": name,
        "weights": predictor.name,
        "image": png(frames[len(frames) // 2]),
        "frames": [png(frame) for frame in frames] if len(frames) > 1 else None,
        "size": list(view.shape[-2:]),
        "prediction": [[label, round(share, 4)] for label, share in prediction.labels if label],
        "made": hasattr(predictor.task, "sample"),
        "segmentation": classes,
        "sites": [
            *(site_payload(one, rows=rows) for one in sites if len(one.spatial) == view.ndim - 1),
            *(answer_payload(site) for site in _answer_sites(predictor, view)),
        ],
    }


def _answer_sites(predictor: Predictor, view: Tensor) -> list[AnswerSite]:
    """What the objects of the answer looked at, where the task says it."""
    own: Any = getattr(predictor.task, "answer_sites", None)
    return [] if own is None else own(predictor, view)


def answer_payload(site: AnswerSite) -> dict[str, Any]:
    """What each object of an answer looked at: weights times the number of keys (1 = uniform), or its box's path."""
    shown: dict[str, Any] = {"labels": site.labels, "boxes": _places(site.boxes)}
    if site.maps is not None:
        shown["maps"] = _packed(site.maps * site.maps[0].numel(), lead=1)
    if site.paths is not None:
        shown["paths"] = _places(site.paths)
    spatial = [1, 1] if site.maps is None else list(site.maps.shape[1:])
    about = {"name": site.name, "block": site.block, "options": "", "contribution": None}
    return {**about, "spatial": spatial, "objects": shown}


def _places(boxes: Tensor) -> Any:
    return (10_000 * boxes.double()).round().div(10_000).tolist()


def site_payload(recording: SiteRecording, *, rows: bool) -> dict[str, Any]:
    """One site of one image: everything but the rows of single queries, unless ``rows`` asks for those too."""
    attention = recording.attention()
    found: dict[str, Any] = {
        "name": recording.name,
        "block": recording.block,
        "options": recording.options,
        "spatial": list(recording.spatial),
        "contribution": None if recording.tokens else _finite(float(recording.contribution()[0])),
    }
    if "channel_gate" in attention:
        found["gates"] = [round(float(gate), 5) for gate in attention["channel_gate"][0]]
    if "spatial_mask" in attention:
        found["mask"] = _packed(attention["spatial_mask"][0, 0])
    if "channel_matrix" in attention:
        matrix = attention["channel_matrix"][0] * attention["channel_matrix"].shape[-1]
        step = math.ceil(len(matrix) / LARGEST_MATRIX)
        if step > 1:
            matrix = torch.nn.functional.avg_pool2d(
                matrix[None], step, ceil_mode=True, count_include_pad=False
            )[0]
        found["channels"] = _packed(matrix) | {"step": step}
    if "rows" in attention:
        found["query"] = list(recording.most_distinct_query())
        found["keys"] = list(attention["rows"].shape[2:])
        if rows:
            found["rows"] = rows_payload(recording)
    return found


def row_payload(recording: SiteRecording, cell: tuple[int, ...]) -> dict[str, Any]:
    """The row of one query as float32, times the number of keys (1 = uniform)."""
    row = recording.rows(cell)[0, 0].float()
    return {"shape": list(row.shape), "float32": _base64((row * row.numel()).cpu().numpy())}


def rows_payload(recording: SiteRecording) -> dict[str, Any]:
    """The rows of a grid of queries, each rounded to 255 steps between its lowest and highest weight."""
    keys = math.prod(recording.attention()["rows"].shape[2:])
    queries = LARGEST_ROWS // keys
    points = query_grid(recording.spatial, max(1, int((queries + 0.5) ** (1 / len(recording.spatial)))))
    rows = torch.cat(
        [recording.rows(*points[i : i + 64])[0].float().cpu() * keys for i in range(0, len(points), 64)]
    )
    return _packed(rows, lead=1) | {"queries": [len(set(axis)) for axis in zip(*points, strict=True)]}


def png(view: Tensor) -> str:
    """A uint8 image (3, H, W) as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(view.permute(1, 2, 0).cpu().numpy()).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _packed(values: Tensor, lead: int = 0) -> dict[str, Any]:
    """Integers as they are; numbers as bytes between the lowest and highest (of each of the leading slices)."""
    if not values.is_floating_point():
        return {"shape": list(values.shape), "uint16": _base64(values.cpu().numpy().astype("<u2"))}  # fmt: skip
    array = values.float().cpu().numpy()
    flat = array.reshape(*array.shape[:lead], -1)
    low, high = flat.min(-1, keepdims=True), flat.max(-1, keepdims=True)
    steps = np.rint((flat - low) / np.maximum(high - low, 1e-30) * 255).astype(np.uint8)
    return {
        "shape": list(array.shape),
        "uint8": _base64(steps),
        "low": [float(f"{v:.6g}") for v in low.ravel()],
        "high": [float(f"{v:.6g}") for v in high.ravel()],
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
