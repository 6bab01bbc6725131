import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal import packing
from foveal.check import check
from foveal.data import open_dataset, packed_items
from foveal.data.chunks import ChunkWriter
from foveal.errors import FovealError
from foveal.evaluate import evaluate
from foveal.folders import locked
from foveal.packing import pack
from foveal.train import TrainConfig, fit
from tests.data.boxes_by_hand import box, coco
from tests.file_server import served


def test_image_files_are_stored_byte_for_byte_with_names_and_classes(
    coloured_folder: Path, tmp_path: Path
) -> None:
    packed = pack(str(coloured_folder), tmp_path / "out", chunk_bytes=2000)
    assert packed.items == {"train": 48, "val": 18}
    assert packed.chunks["train"] > 3
    for split in ("train", "val"):
        stored, original = (
            open_dataset(str(tmp_path / "out"), split),
            open_dataset(str(coloured_folder), split),
        )
        assert stored.classes == original.classes
        assert sorted(stored.names) == sorted(original.names)
        for i, name in enumerate(stored.names):
            assert stored.encoded(i) == (coloured_folder / name).read_bytes()
            assert stored.classes[stored[i]["label"]] == name.split("/")[1]
        assert (stored.names == original.names) == (split == "val"), "only images for training are shuffled"


def test_parts_stay_as_they_were_divided(coloured_folder: Path, tmp_path: Path) -> None:
    options = {"val_share": 0.25, "split_seed": 3}
    data = str(coloured_folder / "train")
    pack(data, tmp_path / "out", data_options=options)
    stored = open_dataset(str(tmp_path / "out"), "val")
    assert stored.names == open_dataset(data, "val", **options).names
    assert len(stored) == 12


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_masks_and_boxes_come_back(task: str, tmp_path: Path) -> None:
    data, options = "scenes", {"length": 6}
    if task == "detect":
        boxes = [
            box(1, [1, 2, 10, 9]),
            box(2, [5, 5, 8, 8], category=7, iscrowd=1),
            box(3, [0, 0, 4, 4], image_id=2),
        ]
        coco(tmp_path / "data", boxes)
        shutil.copytree(tmp_path / "data" / "annotations", tmp_path / "copy")
        data, options = str(tmp_path / "data"), {"val_share": 0.5}
    pack(data, tmp_path / "out", task=task, data_options=options, chunk_bytes=2000)
    found = check(str(tmp_path / "out"), task=task, out=tmp_path / "check")
    assert found.sound
    assert set(found.parts) >= {"train", "val"}
    for split in ("train", "val"):
        stored = open_dataset(str(tmp_path / "out"), split, task=task)
        original = open_dataset(data, split, task=task, **options)
        assert (stored.classes, stored.ignore_index) == (
            original.classes,
            getattr(original, "ignore_index", None),
        )
        assert getattr(stored, "category_ids", None) == getattr(original, "category_ids", None)
        assert stored.object_counts == getattr(original, "object_counts", None)
        by_name = {name: stored[i] for i, name in enumerate(stored.names)}
        for name, wanted in zip(original.names, original, strict=True):
            found = by_name[name]
            assert found.keys() == wanted.keys()
            for entry, value in wanted.items():
                same = (
                    torch.equal(found[entry], value)
                    if isinstance(value, torch.Tensor)
                    else found[entry] == value
                )
                assert same, entry


def test_grey_values_keep_the_bits_that_were_said_when_they_were_packed(tmp_path: Path) -> None:
    """Read with the range of 16 bits, images of 12 are nearly black."""
    for kind in "ab":
        (tmp_path / "xray" / kind).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "xray" / kind / f"{i}.png")
    options = {"grey_bits": 12, "val_share": 0.5}
    pack(str(tmp_path / "xray"), tmp_path / "out", data_options=options)
    pack(str(tmp_path / "out"), tmp_path / "again")
    for name in ("out", "again"):
        data = open_dataset(str(tmp_path / name), "train")
        assert [int(item["image"].min()) for item in data] == [255] * 4
    config = TrainConfig(data=str(tmp_path / "out"), batch_size=2, epochs=1, out=str(tmp_path / "run"))
    assert foveal.predictor(fit(config, quiet=True).weights, "cpu").info.grey_bits == 12
    with pytest.raises(FovealError, match="channels must be said where packed images are read"):
        pack(str(tmp_path / "xray"), tmp_path / "grey", data_options={"channels": 1})


def test_a_bit_that_changed_in_a_chunk_is_found_by_a_check(coloured_folder: Path, tmp_path: Path) -> None:
    """A label has no checksum of its own: another one is as good."""
    pack(str(coloured_folder), tmp_path / "out", chunk_bytes=2000)
    assert check(str(tmp_path / "out"), out=tmp_path / "sound").sound
    path = tmp_path / "out/train/chunk-0-1.bin"
    content = bytearray(path.read_bytes())
    reader = open_dataset(str(tmp_path / "out"), "train").source.reader
    item = int(reader.starts[1])
    image, label, _ = reader.item(item)
    place = content.index(image) + len(image)
    content[place] = (label[0] + 1) % 3
    path.write_bytes(content)
    damaged = check(str(tmp_path / "out"), out=tmp_path / "damaged")
    assert [(split, f.kind, f.where) for split, f in damaged.findings if f.severity == "error"] == [
        ("train", "chunks that are damaged", "train/chunk-0-1.bin")
    ]


def test_it_appears_whole_or_not_at_all(
    coloured_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(FovealError, match=r"out must not exist yet, got .*there"):
        pack(str(coloured_folder), tmp_path / "there")
    with pytest.raises(FovealError, match=r"out must lie outside the data, got .*/packed"):
        pack(str(coloured_folder), coloured_folder / "packed")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ChunkWriter, "close", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack(str(coloured_folder), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there"], "no chunk was whole yet"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_stopped_goes_on_after_its_last_whole_chunk_to_the_same_bytes(
    coloured_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(coloured_folder, tmp_path / "data")
    (data / "train/red/05.png").rename(data / "train/red/caf\udce9.png")  # a name that is no UTF-8
    for name in ("train/red/03.png", "train/blue/01.png"):
        (data / name).write_bytes((data / name).read_bytes()[:40])
    pack(str(data), tmp_path / "whole", chunk_bytes=2000)
    encoded: list[str] = []
    stop_at = 0

    def encode(task: str, image: bytes, name: str, truth: Mapping[str, Any]) -> list[bytes]:
        if len(encoded) == stop_at:
            raise KeyboardInterrupt if stop_at < 60 else OSError(28, "No space left on device")
        encoded.append(name)
        return packed_items.encode(task, image, name, truth)

    monkeypatch.setattr(packing, "encode", encode)
    for stop_at in (30, 64):
        with pytest.raises((KeyboardInterrupt, OSError)) as stopped:
            pack(str(data), tmp_path / "out", chunk_bytes=2000)
        progress = tmp_path / ".out.unfinished" / "train" / packing.PROGRESS
        lines = progress.read_text().splitlines()
        assert len(lines) == len(list(progress.parent.glob("chunk-*.bin"))), "each chunk is told of once"
        with open(progress, "a") as file:  # as a process leaves it that is killed while it writes
            file.write(lines[-1][:20])
        if stop_at == 30:
            assert str(stopped.value).startswith(
                f"stopped; whole chunks are kept in {tmp_path}/.out.unfinished"
            )
    stop_at = -1
    packed = pack(str(data), tmp_path / "out", chunk_bytes=2000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert set(packed.left_out) == {"train/red/03.png", "train/blue/01.png"}
    again = len(encoded) - len(set(encoded))
    assert 0 < again < 20, "images of the chunks that were not whole yet"
    assert not (tmp_path / ".out.unfinished").exists()


def test_chunks_of_other_data_are_not_gone_on_with(
    coloured_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(coloured_folder, tmp_path / "data")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(packing, "_write_items", stopped)
        with pytest.raises(KeyboardInterrupt):
            pack(str(data), tmp_path / "out", chunk_bytes=2000)
    assert list((tmp_path / ".out.unfinished" / "train").glob("chunk-*.bin"))
    Image.new("RGB", (9, 9), (1, 2, 3)).save(data / "train" / "red" / "00.png")
    pack(str(data), tmp_path / "out", chunk_bytes=2000)
    pack(str(data), tmp_path / "whole", chunk_bytes=2000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_one_process_packs_to_a_place(coloured_folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    with (
        locked(tmp_path / ".out.unfinished", "foveal pack"),
        pytest.raises(FovealError, match=r"foveal pack already works in .*\.out\.unfinished, process \d+"),
    ):
        pack(str(coloured_folder), tmp_path / "out")


def test_unreadable_images_are_left_out_and_named(coloured_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(coloured_folder, tmp_path / "data")
    broken = data / "train" / "red" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    packed = pack(str(data), tmp_path / "out")
    assert packed.items["train"] == 47
    assert list(packed.left_out) == ["train/red/03.png"]
    assert len(open_dataset(str(tmp_path / "out"), "train")) == 47


def test_what_cannot_be_packed_is_refused(coloured_folder: Path, tmp_path: Path) -> None:
    for words, message in (
        ({"task": "clips"}, "task must be one of classify, segment, detect, got 'clips'"),
        ({"chunk_bytes": 10}, "chunk_bytes must be 1024 to 4294967295, got 10"),
        ({"data_options": {"classes": ["a", "b"]}}, "class folders must be among a, b"),
    ):
        with pytest.raises(FovealError, match=message):
            pack(str(coloured_folder), tmp_path / "out", **words)
    assert list(tmp_path.iterdir()) == []


def test_a_packed_set_can_be_packed_again(coloured_folder: Path, tmp_path: Path) -> None:
    pack(str(coloured_folder), tmp_path / "a", chunk_bytes=2000)
    pack(str(tmp_path / "a"), tmp_path / "b", chunk_bytes=5000)
    a, b = (open_dataset(str(tmp_path / name), "val") for name in "ab")
    assert [a.encoded(i) for i in range(len(a))] == [b.encoded(i) for i in range(len(b))]


def test_a_file_known_by_its_name_alone_is_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "data" / name / f"{i}.tga")
    pack(str(tmp_path / "data"), tmp_path / "out")
    assert open_dataset(str(tmp_path / "out"), "val")[0]["image"][:, 0, 0].tolist() == [9, 8, 7]


def test_training_and_evaluation_take_it_as_they_take_the_folder(
    coloured_folder: Path, tmp_path: Path
) -> None:
    pack(str(coloured_folder), tmp_path / "packed", chunk_bytes=2000)
    options = {"model": "cifar_resnet8", "epochs": 1, "batch_size": 16, "workers": 0, "accelerator": "cpu"}
    result = fit(TrainConfig(data=str(tmp_path / "packed"), out=str(tmp_path / "run"), **options), quiet=True)
    weights = tmp_path / "run" / "weights" / "best.safetensors"
    near = evaluate(str(weights), device="cpu")
    assert near.images == 18
    assert near.figures["accuracy"] == pytest.approx(result.best["val_accuracy"])
    folder = evaluate(str(weights), str(coloured_folder), device="cpu")
    assert folder.figures == near.figures, "validation keeps its order"
    with served(tmp_path / "packed") as site:
        cache = {"cache": str(tmp_path / "cache")}
        config = TrainConfig(
            data=site.url, data_options=cache, out=str(tmp_path / "far"), **{**options, "workers": 2}
        )
        assert fit(config, quiet=True).best["val_loss"] == result.best["val_loss"]
        weights = tmp_path / "far" / "weights" / "best.safetensors"
        with pytest.raises(FovealError, match="data on the network must be named"):
            evaluate(str(weights), device="cpu")
        assert evaluate(str(weights), site.url, data_options=cache, device="cpu").figures == near.figures


def test_a_chunk_out_of_reach_ends_a_run_in_one_line_that_names_it(
    coloured_folder: Path, tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.data.stores.WAIT_S", 0.0)
    pack(str(coloured_folder), tmp_path / "packed", chunk_bytes=2000)
    with served(tmp_path / "packed") as site:
        site.faults["train/chunk-0-2.bin"] = [lambda content: None] * 99
        words = ["--data", site.url, "--data_options.cache", tmp_path / "cache", "--out", tmp_path / "run"]
        status, _, err = said(
            "train", *words, "--epochs", 1, "--workers", 1, "--accelerator", "cpu", "--batch_size", 8
        )
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"train: {site.url}/train/chunk-0-2.bin could not be fetched: HTTP Error 503")
    assert "Traceback" not in last
