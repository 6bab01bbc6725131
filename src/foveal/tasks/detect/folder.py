"""Detections as a folder: a table, a COCO file, YOLO's text files, and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foveal.files import atomic_write, csv_text, write_json, write_text
from foveal.folders import UniqueNames, new_folder
from foveal.model_info import ModelInfo
from foveal.tasks.detect import DEFAULT_THRESHOLD, DetectInference
from foveal.tasks.detect.prediction import BoxPrediction

COLUMNS = ("file", "class", "score", "x1", "y1", "x2", "y2", "category_id")


def write_boxes(
    predictions: Iterable[tuple[BoxPrediction, Tensor]],
    folder: Path,
    info: ModelInfo,
    inference: DetectInference,
    unreadable: Mapping[str, str],
) -> tuple[int, str]:
    """Write predictions one after the other; where there is none, nothing is written.

    ``folder`` gets ``detections.csv`` (a row a box, pixel edges), ``detections.json`` (a COCO data set with scores and
    the category ids of the training data), ``labels/`` (YOLO's text files with the score behind, and ``classes.txt``)
    and ``pictures/``.

    Returns:
        How many predictions there were, and what to print.

    Raises:
        FovealError: ``folder`` holds something already.
    """
    new_folder(folder)
    ids = info.extra.get("category_ids") or list(range(len(info.classes)))
    unique = UniqueNames()
    rows: list[dict[str, Any]] = []
    coco: dict[str, list[Any]] = {"images": [], "annotations": []}
    for number, (prediction, image) in enumerate(predictions, start=1):
        name = unique(Path(prediction.file).stem, ".png")
        for part in ("pictures", "labels"):
            (folder / part).mkdir(exist_ok=True)
        picture = prediction.draw(image)
        atomic_write(folder / "pictures" / name, lambda temporary, p=picture: _write_png(temporary, p))
        write_text(folder / "labels" / Path(name).with_suffix(".txt"), yolo_text(prediction))
        rows += _rows(prediction, ids)
        height, width = prediction.size
        coco["images"].append({"id": number, "file_name": prediction.file, "height": height, "width": width})
        coco["annotations"] += _annotations(prediction, number, len(coco["annotations"]) + 1, ids)
    count = len(coco["images"])
    if not count:
        folder.rmdir()
        return 0, ""
    write_text(folder / "detections.csv", csv_text(rows) if rows else ",".join(COLUMNS) + "\n")
    categories = [{"id": i, "name": name} for i, name in zip(ids, info.classes, strict=True)]
    broken = [{"file": file, "reason": reason} for file, reason in unreadable.items()]
    about = {"inference": str(inference), "unreadable": broken}
    write_json(folder / "detections.json", {"info": about, **coco, "categories": categories})
    write_text(folder / "labels" / "classes.txt", "".join(f"{name}\n" for name in info.classes))
    threshold = DEFAULT_THRESHOLD if inference.threshold is None else inference.threshold
    return count, (
        f"{len(rows)} objects with a score of at least {threshold:g} in {count} file{'s' * (count != 1)}\n"
        f"pictures  {folder}/pictures\n"
        f"table     {folder}/detections.csv\n"
        f"COCO      {folder}/detections.json\n"
        f"YOLO      {folder}/labels\n"
    )


def _write_png(path: Any, picture: Any) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG")


def yolo_text(prediction: BoxPrediction) -> str:
    """``class x y width height score`` a line, centre and size as shares of the image."""
    height, width = prediction.size
    lines = []
    for box, score, label in _parts(prediction):
        x1, y1, x2, y2 = box
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values) + "\n")
    return "".join(lines)


def _parts(prediction: BoxPrediction) -> Iterable[tuple[list[float], float, int]]:
    return zip(
        prediction.boxes_xyxy.tolist(),
        prediction.scores.tolist(),
        prediction.class_indices.tolist(),
        strict=True,
    )


def _rows(prediction: BoxPrediction, ids: list[int]) -> list[dict[str, Any]]:
    return [
        dict(
            zip(
                COLUMNS,
                (
                    prediction.file,
                    prediction.classes[label],
                    round(score, 4),
                    *(round(v, 2) for v in box),
                    ids[label],
                ),
                strict=True,
            )
        )
        for box, score, label in _parts(prediction)
    ]


def _annotations(prediction: BoxPrediction, image: int, first: int, ids: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": first + number,
            "image_id": image,
            "category_id": ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": score,
        }
        for number, ((x1, y1, x2, y2), score, label) in enumerate(_parts(prediction))
    ]
