import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveal.data import open_dataset
from foveal.errors import FovealError


def png(size=(40, 30)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(file, "png")
    return file.getvalue()


def written(path, objects, names=("cat", "dog"), **columns):
    images = [{"bytes": png(), "path": f"{i}.png"} for i in range(len(objects))]
    features = {
        "image": {"_type": "Image"},
        "objects": {
            "feature": {"category": {"names": list(names), "_type": "ClassLabel"}},
            "_type": "Sequence",
        },
    }
    table = pa.table({"image": images, "objects": objects, **columns})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


LISTS = [
    {"bbox": [[2.0, 3, 10, 20], [0.0, 0, 5, 5]], "category": [1, 0], "id": [5, 6], "area": [90.0, 25.0]},
    {"bbox": [], "category": [], "id": [], "area": []},
    {"bbox": [[1.0, 1, 2, 2]], "category": [0], "id": [7], "area": [4.0]},
]


def opened(path, split="train", **options):
    return open_dataset(str(path), split, task="detect", val_share=0.3, **options)


@pytest.mark.parametrize("as_structs", [False, True])
def test_objects_in_both_of_their_forms(tmp_path, as_structs):
    objects = LISTS
    if as_structs:
        objects = [
            [dict(zip(one, values, strict=True)) for values in zip(*one.values(), strict=True)]
            for one in LISTS
        ]
    for part in ("train", "val"):
        written(tmp_path / f"{part}.parquet", objects, image_id=[40, 41, 42])
    data = opened(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert data[0]["boxes_xyxy"].tolist() == [[2, 3, 12, 23], [0, 0, 5, 5]]
    assert data[0]["labels"].tolist() == [1, 0]
    assert data[0]["annotation_ids"].tolist() == [5, 6]
    assert data[0]["image_id"] == 40
    assert data[0]["area"].tolist() == [90, 25]
    assert data[1]["boxes_xyxy"].shape == (0, 4)
    assert any("x, y, width, height" in note for note in data.notes)


def test_corners_by_option(tmp_path):
    for part in ("train", "val"):
        written(tmp_path / f"{part}.parquet", LISTS)
    data = opened(tmp_path, box_format="xyxy")
    assert data[0]["boxes_xyxy"].tolist() == [[2, 3, 10, 20], [0, 0, 5, 5]]
    assert not any("x, y, width, height" in note for note in data.notes)


def test_a_class_beyond_the_names_is_refused_with_its_row(tmp_path):
    for part in ("train", "val"):
        written(tmp_path / f"{part}.parquet", LISTS, names=["cat"])
    with pytest.raises(FovealError, match=r"train.parquet\[0\] 0.png, object 1: a class must be 0 to 0"):
        opened(tmp_path)


def test_one_box_an_image_and_images_without(tmp_path):
    table = pa.table(
        {
            "image": [{"bytes": png(), "path": f"{i}.png"} for i in range(3)],
            "label": ["dog", "cat", "cat"],
            "box_xyxy": [[1, 2, 5, 6], None, [3, 3, 9, 9]],
        }
    )
    for part in ("train", "val"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    data = opened(tmp_path)
    assert data[0]["boxes_xyxy"].tolist() == [[1, 2, 5, 6]]
    assert data[0]["labels"].tolist() == [1]
    assert data[1]["boxes_xyxy"].shape == (0, 4)


def test_numbers_mean_the_names_of_their_own_file(tmp_path):
    written(tmp_path / "train.parquet", LISTS)
    written(tmp_path / "val.parquet", LISTS, names=("dog", "cat"))
    val = opened(tmp_path, "val")
    assert (val.classes, val[0]["labels"].tolist()) == (["cat", "dog"], [0, 1])
    train = opened(tmp_path, classes=["dog", "cat"])
    assert (train.classes, train[0]["labels"].tolist()) == (["dog", "cat"], [0, 1])
