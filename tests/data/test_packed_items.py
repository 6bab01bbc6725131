"""Round trips of whole data sets are in tests/test_packing.py."""

import json
import struct

import numpy as np
import pytest
import torch

from foveal.data import decode_image
from foveal.data.chunks import ChunkIndex
from foveal.data.opening import LabelError
from foveal.data.packed_items import PACKED_TASKS, encode, item_reader, png_file
from foveal.errors import FovealError

DECODE = {"max_pixels": 10**6, "channels": 3, "grey_bits": 16}
PIXELS = torch.arange(36, dtype=torch.uint8).reshape(3, 3, 4)


def index_of(fields: dict[str, str]) -> ChunkIndex:
    return ChunkIndex([], list(fields.values()), list(fields), "")


def pillow_field(mode: bytes, width: int, height: int, content: bytes) -> bytes:
    return struct.pack("<3I", width, height, len(mode)) + mode + content


def test_pixels_without_a_file_are_stored_without_loss():
    assert torch.equal(decode_image(png_file(PIXELS)), PIXELS)
    assert torch.equal(decode_image(png_file(PIXELS[:1]), channels=1), PIXELS[:1])


def test_a_label_of_no_class_is_never_skipped():
    read = item_reader("classify", index_of(PACKED_TASKS["classify"]), DECODE, classes=3)
    fields = encode("classify", png_file(PIXELS), "a.png", {"label": 2})
    assert read(fields, "here")["label"] == 2
    for label in (3, -1):
        with pytest.raises(LabelError, match=rf"labels must be 0 to 2, got {label} in here a\.png"):
            read(encode("classify", png_file(PIXELS), "a.png", {"label": label}), "here")
    with pytest.raises(LabelError, match="labels must be 0 to 2"):
        read([fields[0], b"\0\0", fields[2]], "here")


def test_classes_in_another_order_move_labels_and_masks():
    places = np.array([1, 0, 2])
    read = item_reader("classify", index_of(PACKED_TASKS["classify"]), DECODE, classes=3, places=places)
    assert read(encode("classify", png_file(PIXELS), "", {"label": 0}), "")["label"] == 1
    mask = torch.tensor([[0, 1, 2, 255]] * 3, dtype=torch.uint8)
    index = index_of(PACKED_TASKS["segment"])
    read = item_reader("segment", index, DECODE, classes=3, places=places, ignore_index=255)
    assert read(encode("segment", png_file(PIXELS), "", {"mask": mask}), "")["mask"][0].tolist() == [
        1,
        0,
        2,
        255,
    ]
    for wrong, message in (
        (torch.full((3, 4), 3, dtype=torch.uint8), "mask values must be 0 to 2 or 255, got 3"),
        (mask[:2], "same size"),
    ):
        with pytest.raises(LabelError, match=message):
            read(encode("segment", png_file(PIXELS), "", {"mask": wrong}), "")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [5]},
        {"labels": [-1]},
        {"original_xyxy": [[0, 0, "x", 1]]},
        {"original_xyxy": []},
        {"original_xyxy": [[0, 0, float("nan"), 1]]},
        {"original_size": [9, 9]},
        {"crowd": [0, 1]},
    ],
)
def test_boxes_that_do_not_fit_are_refused(change):
    read = item_reader("detect", index_of(PACKED_TASKS["detect"]), DECODE, classes=2)
    truth = {
        "labels": [1],
        "original_xyxy": [[0, 0, 2, 1]],
        "original_size": [3, 4],
        "crowd": [False],
        "area": [2.0],
    }
    truth |= {"annotation_ids": [7], "image_id": 3, "file": "a.png"}
    fields = [png_file(PIXELS), json.dumps(truth).encode(), b"a.png"]
    assert read(fields, "here")["boxes_xyxy"].tolist() == [[0, 0, 2, 1]]
    with pytest.raises(
        LabelError, match=r"boxes must be .* in here a\.png|boxes must be numbers on their image"
    ):
        read([fields[0], json.dumps(truth | change).encode(), fields[2]], "here")


def test_a_pillow_image_of_litdata():
    read = item_reader("classify", index_of({"image": "pil", "class": "int"}), DECODE, classes=2)
    label, grey = struct.pack("<q", 1), bytes(range(6))
    found = read([pillow_field(b"L", 3, 2, grey), label], "here")
    assert found["image"][0].flatten().tolist() == list(grey)
    assert found["label"] == 1
    for content, message in (
        (
            pillow_field(b"L", 3, 2, grey[:5]),
            "3x2 pixels of mode 'L' must be as long as that says, got 5 bytes in here",
        ),
        (pillow_field(b"L", 2**31, 2**31, grey), "1 to 1000000 pixels, got 2147483648x2147483648 in here"),
        (pillow_field(b"??", 3, 2, grey), r"of mode '\?\?' must be"),
        (b"\0", "1 to 1000000 pixels, got 0x0"),
    ):
        with pytest.raises(FovealError, match=message):
            read([content, label], "here")


def test_fields_of_another_kind_are_refused():
    for fields, message in (
        (
            {"image": "pickle", "label": "int"},
            "an image file or a Pillow image, got 'pickle'; what is pickled stays so",
        ),
        (
            {"image": "bytes", "label": "pickle"},
            "a whole number, got 'pickle' in label; what is pickled stays so",
        ),
        (
            {"picture": "bytes", "label": "int"},
            r"image_column must be one of .* picture \(bytes\), label \(int\)",
        ),
        ({"image": "bytes", "kind": "int"}, r"label_column must be one of .* kind \(int\), got none"),
    ):
        with pytest.raises(FovealError, match=message):
            item_reader("classify", index_of(fields), DECODE, classes=2)
    fields = {"picture": "jpeg", "kind": "int"}
    item_reader("classify", index_of(fields), DECODE, classes=2, image_column="picture", label_column="kind")
