"""Small data sets with boxes, written in every format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def image(path: Path, size=(40, 30), orientation=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(
        np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    )
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return path


def coco(root: Path, annotations, images=None, categories=None, name="instances_train.json", **entry) -> Path:
    """A COCO file with the images 1.png and 2.png of 40x30 beside it, unless told otherwise."""
    if images is None:
        images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
        for one in images:
            image(root / "images" / one["file_name"])
    content = {
        "images": images,
        "annotations": annotations,
        "categories": categories or [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        **entry,
    }
    path = root / "annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
    return path


def box(identity, where, image_id=1, category=3, **rest):
    return {"id": identity, "image_id": image_id, "category_id": category, "bbox": where, **rest}


def voc(path: Path, objects, size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = "\n".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    width, height = size
    text = (
        f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n{inside}\n</annotation>"
    )
    path.write_text(text)
