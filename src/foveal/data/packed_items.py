"""What is stored of an item in a chunk, for each task: how it is written, and how it is read again.

Image files are stored as they are, byte for byte. Masks become PNG of the class numbers, boxes JSON.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from foveal.data.boxes import BoxedImage, target_of
from foveal.data.chunks import ChunkIndex
from foveal.data.decode import decode_image, to_tensor
from foveal.data.masks import decode_mask
from foveal.data.opening import LabelError
from foveal.errors import FovealError

BOX = "box_xyxy"
PACKED_TASKS = {
    "classify": {"image": "bytes", "label": "int", "name": "str"},
    "segment": {"image": "bytes", "mask": "bytes", "name": "str"},
    "detect": {"image": "bytes", "target": "str", "name": "str"},
}
"""Task -> the fields of its items, with litdata's words for their kinds."""
BOX_KIND = "no_header_numpy:9"
"""litdata's word for one row of float32: the fourth field of items with `BOX`."""
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "0")
LABEL_NAMES = ("label", "class", "cls", "target", "labels", "1")
ENCODED = ("bytes", "jpeg", "image", "file")
"""Kinds of fields that hold an image file; "pil" holds pixels."""

Reader = Callable[[list[bytes], str], dict[str, Any]]


def encode(task: str, image: bytes, name: str, truth: Mapping[str, Any]) -> list[bytes]:
    """The fields of an item.

    Args:
        image: an image file.
        truth: the item without its image, as ``open_dataset`` documents it.

    Example:
        >>> [len(field) for field in encode("classify", b"GIF8...", "a.gif", {"label": 3})]
        [7, 8, 5]
    """
    names = [name.encode(errors="backslashreplace")]
    if task == "segment":
        return [image, _png(truth["mask"].numpy()), *names]
    if task == "detect":
        return [image, json.dumps(_target(truth)).encode(), *names]
    box = [truth[BOX].to(torch.float32).numpy().tobytes()] if BOX in truth else []
    return [image, struct.pack("<q", int(truth["label"])), *names, *box]


def png_file(image: torch.Tensor) -> bytes:
    """An image (c, h, w) of bytes as a file, for data that have none."""
    return _png(image.permute(1, 2, 0).squeeze(-1).numpy())


def _png(values: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    return file.getvalue()


def _target(truth: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("original_xyxy", "labels", "crowd", "area", "annotation_ids", "original_size")
    return {
        **{name: truth[name].tolist() for name in columns},
        "image_id": truth["image_id"],
        "file": truth["file"],
    }


def item_reader(
    task: str,
    index: ChunkIndex,
    decode: Mapping[str, Any],
    *,
    classes: int,
    places: np.ndarray | None = None,
    ignore_index: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Reader:
    """A function from the fields of an item, and what to call it, to the sample.

    Args:
        decode: options of `decode_image`.
        classes: how many there are; a number outside is never skipped.
        places: stored number of a class -> its place, None where they are the same.
        image_column, label_column: names of fields, where they are not the usual ones.

    Raises:
        FovealError: the fields are not those of the task.
    """
    if places is None:
        places = np.arange(classes)
    image = _field(index, image_column, IMAGE_NAMES, "image_column")
    kind = index.kinds[image].partition(":")[0]
    if kind not in (*ENCODED, "pil"):
        raise FovealError(
            f"an item must hold an image file or a Pillow image, got {kind!r}; what is pickled stays so"
        )
    name = index.names.index("name") if "name" in index.names and task in PACKED_TASKS else None
    truth = {"classify": _label_reader, "segment": _mask_reader, "detect": _target_reader}[task]
    read_truth = truth(index, places, ignore_index, label_column)

    def read(values: list[bytes], where: str) -> dict[str, Any]:
        # the file's own name last: a TGA file is known by nothing else
        title = where if name is None else f"{where} {values[name].decode(errors='replace')}"
        if kind == "pil":
            pixels = _stored_pixels(values[image], title, decode)
        else:
            pixels = decode_image(values[image], name=title, **decode)
        return {"image": pixels, **read_truth(values, title, tuple(pixels.shape[1:]))}

    return read


class ItemReader:
    """`item_reader` of the same arguments, which can be sent to a process that is not forked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.again = partial(ItemReader, *arguments, **options)
        self.read = item_reader(*arguments, **options)

    def __call__(self, values: list[bytes], where: str) -> dict[str, Any]:
        return self.read(values, where)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.again, ()


TruthReader = Callable[[list[bytes], str, tuple[int, ...]], dict[str, Any]]


def _field(index: ChunkIndex, asked: str | None, usual: Sequence[str], option: str) -> int:
    """The place of a field: as asked, or the first with a usual name."""
    found = next((name for name in ([asked] if asked is not None else usual) if name in index.names), None)
    if found is None:
        listed = ", ".join(f"{name} ({kind})" for name, kind in zip(index.names, index.kinds, strict=True))
        raise FovealError(f"{option} must be one of the fields {listed}, got {asked or 'none'}")
    return index.names.index(found)


def _label_reader(
    index: ChunkIndex, places: np.ndarray, ignore_index: int | None, asked: str | None
) -> TruthReader:
    """A label, and the box of the object where it is stored."""
    label = _field(index, asked, LABEL_NAMES, "label_column")
    if index.kinds[label] != "int":
        raise FovealError(
            f"a label must be a whole number, got {index.kinds[label]!r} in {index.names[label]}; what is "
            "pickled stays so"
        )
    box = index.names.index(BOX) if BOX in index.names and BOX_KIND in index.kinds else None

    def read(values: list[bytes], title: str, size: tuple[int, ...]) -> dict[str, Any]:
        number = struct.unpack("<q", values[label])[0] if len(values[label]) == 8 else -1
        if not 0 <= number < len(places):
            raise LabelError(f"labels must be 0 to {len(places) - 1}, got {number} in {title}")
        sample: dict[str, Any] = {"label": int(places[number])}
        if box is not None:
            if len(values[box]) != 16:
                raise LabelError(f"a box must have 4 numbers, got {len(values[box])} bytes in {title}")
            sample[BOX] = torch.frombuffer(bytearray(values[box]), dtype=torch.float32)
        return sample

    return read


def _mask_reader(
    index: ChunkIndex, places: np.ndarray, ignore_index: int | None, asked: str | None
) -> TruthReader:
    """A class for every pixel."""
    field = _field(index, asked, ("mask",), "label_column")
    class_of = np.full(256, -1)
    class_of[: len(places)] = places
    if ignore_index is not None:
        class_of[ignore_index] = ignore_index
    table = torch.from_numpy(class_of)

    def read(values: list[bytes], title: str, size: tuple[int, ...]) -> dict[str, Any]:
        stored = decode_mask(values[field], name=title)
        if tuple(stored.shape) != size:
            raise LabelError(
                f"image and mask must have the same size, got {size} and {tuple(stored.shape)} in {title}"
            )
        mask = table[stored.long()]
        if (mask < 0).any():
            raise LabelError(
                f"mask values must be 0 to {len(places) - 1} or {ignore_index}, got {int(stored.max())} in {title}"
            )
        return {"mask": mask.to(torch.uint8)}

    return read


def _target_reader(
    index: ChunkIndex, places: np.ndarray, ignore_index: int | None, asked: str | None
) -> TruthReader:
    """Boxes and their classes."""
    field = _field(index, asked, ("target",), "label_column")

    def read(values: list[bytes], title: str, size: tuple[int, ...]) -> dict[str, Any]:
        try:
            target = json.loads(values[field])
            labels = np.array(target["labels"], dtype=np.int64)
            count = len(labels)
            image = BoxedImage(
                path=str(target["file"]),
                image_id=target["image_id"],
                boxes=np.array(target["original_xyxy"], dtype=np.float64).reshape(count, 4),
                labels=places[labels],
                crowd=np.array(target["crowd"], dtype=bool).reshape(count),
                area=np.array(target["area"], dtype=np.float64).reshape(count),
                annotation_ids=np.array(target["annotation_ids"], dtype=np.int64).reshape(count),
                places=[title] * count,
                size=(int(size[0]), int(size[1])),
            )
            sound = (
                tuple(target["original_size"]) == size
                and np.isfinite(image.boxes).all()
                and (labels >= 0).all()
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise LabelError(
                f"boxes must be those that foveal pack wrote, got {error!r} in {title}"
            ) from None
        if not sound:
            raise LabelError(f"boxes must be numbers on their image of {size}, got others in {title}")
        return target_of(image)

    return read


def _stored_pixels(content: bytes, title: str, decode: Mapping[str, Any]) -> torch.Tensor:
    """litdata's form of a Pillow image: width, height, the length of the mode, the mode, the pixels."""
    from PIL import Image

    width, height, letters = struct.unpack_from("<3I", content) if len(content) >= 12 else (0, 0, 0)
    mode, pixels = content[12 : 12 + letters].decode(errors="replace"), content[12 + letters :]
    if not 0 < width * height <= decode["max_pixels"]:
        raise FovealError(
            f"an image may have 1 to {decode['max_pixels']} pixels, got {width}x{height} in {title}"
        )
    expected = {"1": math.ceil(width / 8) * height, "L": width * height, "P": width * height}
    expected |= {"RGB": 3 * width * height, "RGBA": 4 * width * height, "CMYK": 4 * width * height}
    if expected.get(mode) != len(pixels):
        raise FovealError(
            f"{width}x{height} pixels of mode {mode[:8]!r} must be as long as that says, got {len(pixels)} bytes in "
            f"{title}"
        )
    image = Image.frombytes(mode, (width, height), pixels)
    return to_tensor(image, channels=decode["channels"], grey_bits=decode["grey_bits"])
