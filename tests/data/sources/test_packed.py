import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tests.data.litdata_sets import write_set
from tests.file_server import served

from foveal.data import open_dataset, train_transform
from foveal.data.loader import EpochBatchSampler, collate_by_size, make_loader
from foveal.data.opening import ChunkError
from foveal.data.split import NoPartError
from foveal.errors import FovealError
from foveal.packing import pack

SMALL = {"length": 12, "size": 24}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "scenes"
    pack("scenes", out, data_options=SMALL, chunk_bytes=4000)
    return out


def test_a_packed_set_says_what_the_original_says(packed):
    for split in ("val", "test"):
        stored, original = open_dataset(str(packed), split), open_dataset("scenes", split, **SMALL)
        assert (stored.classes, stored.mirror) == (original.classes, original.mirror)
        assert stored.names == list(original.names)
        assert stored.labels == [item["label"] for item in original]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(stored, original, strict=True))
        assert all(torch.equal(a["box_xyxy"], b["box_xyxy"]) for a, b in zip(stored, original, strict=True))


def test_a_packed_set_can_be_sent_to_a_process_that_is_not_forked(packed):
    """As reading processes begin on macOS, on Windows, and from Python 3.14 on."""
    data = open_dataset(str(packed), "val")
    sent = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(sent, data, strict=True))
    assert sent.labels == data.labels


def test_a_set_on_the_network_is_that_of_the_folder(packed, tmp_path):
    near = open_dataset(str(packed), "val")
    with served(packed) as site:
        far = open_dataset(site.url, "val", cache=str(tmp_path / "cache"))
        assert "val/items.parquet" not in site.asked, "names are fetched when they are asked for"
        assert far.fingerprint == near.fingerprint
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(far, near, strict=True))
        assert (far.names, far.labels, far.chunks.tolist()) == (near.names, near.labels, near.chunks.tolist())
        assert len(far.chunks) == 12
        assert len(set(far.chunks.tolist())) > 2
        with pytest.raises(FovealError, match=r"cache_gib must hold 16 chunks, at least .*, got 9.99e-07"):
            open_dataset(site.url, "val", cache_gib=1e-6)
        with pytest.raises(FovealError, match=r"must have index\.json, got none at http"):
            open_dataset(f"{site.url}/nothing", "train", classes=["a", "b"], cache=str(tmp_path))


def read_epoch(spec, workers, start, **options):
    """The images of an epoch from its batch ``start`` on."""
    data = open_dataset(str(spec), "train", **options)
    batches = EpochBatchSampler(len(data), 2, seed=0, chunks=data.chunks)
    batches.start_at(1, start)
    loader = make_loader(data, train_transform(24), batches, collate_by_size, seed=3, workers=workers)
    return [batch["image"] for parts in loader for batch in parts]


def test_a_continued_epoch_gives_the_same_batches_with_any_number_of_reading_processes(packed, tmp_path):
    whole = read_epoch(packed, 0, 0)
    with served(packed) as site:
        left = read_epoch(site.url, 2, 2, cache=str(tmp_path / "cache"))
        asked = [name for name in site.asked if name.endswith(".bin")]
    assert len(whole) == 6
    assert len(left) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], left, strict=True))
    assert len(asked) == len(set(asked)), (
        "two reading processes and the one that reads ahead fetch a chunk once"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bucket_of_s3_gives_the_same_epoch_and_the_same_rest_of_it(packed, tmp_path, monkeypatch):
    """Where ``pip install s3fs "moto[server]"`` has been said: its packages are large, and none of foveal's."""
    s3fs, server = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    site = server.ThreadedMotoServer("127.0.0.1", port=0)
    site.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*site.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        bucket = s3fs.S3FileSystem()
        bucket.mkdir("data")
        bucket.put(f"{packed}/", "data/sets/packed", recursive=True)
        far = {"cache": str(tmp_path / "cache")}
        whole = read_epoch(packed, 0, 0)
        assert all(map(torch.equal, whole, read_epoch("s3://data/sets/packed", 0, 0, **far)))
        shutil.rmtree(tmp_path / "cache")
        left = read_epoch("s3://data/sets/packed", 2, 2, **far)
        assert len(left) == len(whole) - 2
        assert all(map(torch.equal, whole[2:], left))
        with pytest.raises(FovealError, match=r"must have index\.json, got none at s3://data/sets/none/"):
            open_dataset("s3://data/sets/none", "train", classes=["a", "b"], **far)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        site.stop()


def test_a_file_system_whose_package_is_missing_is_told_of_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(FovealError, match=r"gs://data/packed needs a package that is missing: .*gcsfs.*"):
        open_dataset("gs://data/packed", "train", cache=str(tmp_path))


def test_the_fingerprint_changes_with_items_and_classes(packed, tmp_path):
    print_of = open_dataset(str(packed), "val").fingerprint
    moved = shutil.copytree(packed, tmp_path / "moved")
    assert open_dataset(str(moved), "val").fingerprint == print_of
    assert open_dataset(str(packed), "test").fingerprint != print_of
    pack("scenes", tmp_path / "other", data_options={**SMALL, "seed": 3}, chunk_bytes=4000)
    assert open_dataset(str(tmp_path / "other"), "val").fingerprint != print_of


def test_given_classes_fix_the_order_of_the_labels(packed):
    usual = open_dataset(str(packed), "val")
    turned = open_dataset(str(packed), "val", classes=usual.classes[::-1])
    assert [item["label"] for item in turned] == [9 - item["label"] for item in usual]
    with pytest.raises(FovealError, match="classes must be among a, b, got 0, 1"):
        open_dataset(str(packed), "val", classes=["a", "b"])


def test_what_cannot_be_opened_is_said_in_one_line(packed, tmp_path):
    with pytest.raises(FovealError, match="is packed for task classify, got task segment"):
        open_dataset(str(packed), "val", task="segment")
    with pytest.raises(FovealError, match="chunks hold items for classify, segment, detect, got task clips"):
        open_dataset(str(packed), "val", task="clips")
    with pytest.raises(FovealError, match=r"options of .* got 'image_size'"):
        open_dataset(str(packed), "val", image_size=3)
    copy = shutil.copytree(packed, tmp_path / "copy")
    for content, message in (
        ("{}", "must be what foveal pack wrote, got KeyError: 'format'"),
        ("[", "must be what foveal pack wrote"),
        ('{"format": 2}', "must have format 1"),
        ('{"format": 1, "classes": [1], "parts": []}', "must name classes, parts and grey_bits"),
        ('{"format": 1, "parts": ["../.."]}', "must name classes, parts and grey_bits"),
        ('{"format": 1, "parts": [], "grey_bits": "12"}', "must name classes, parts and grey_bits"),
        ('{"format": 1, "run": "x"}', "unexpected keyword argument"),
    ):
        (copy / "foveal.json").write_text(content)
        with pytest.raises(FovealError, match=message):
            open_dataset(str(copy), "val")


def test_a_part_that_was_not_packed_is_none(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    manifest = json.loads((copy / "foveal.json").read_text())
    (copy / "foveal.json").write_text(json.dumps({**manifest, "parts": ["train", "val"]}))
    with pytest.raises(NoPartError, match="no part for split 'test'"):
        open_dataset(str(copy), "test")


def test_a_chunk_that_is_missing_or_truncated_is_named_when_the_data_are_opened(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    path = copy / "val" / "chunk-0-1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChunkError, match=r"got \d+ in .*val/chunk-0-1\.bin, which is truncated"):
        open_dataset(str(copy), "val")
    path.unlink()
    with pytest.raises(ChunkError, match=r"No such file or directory: .*val/chunk-0-1\.bin"):
        open_dataset(str(copy), "val")
    assert len(open_dataset(str(copy), "train")) == 12


def test_damage_inside_a_chunk_is_skipped_for_an_image_and_named_for_a_chunk(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    data = open_dataset(str(copy), "val", max_unreadable=0.5)
    reader = data.source.reader
    path = copy / "val" / "chunk-0-0.bin"
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT")
    content[place + 4 : place + 40] = bytes(36)
    path.write_bytes(content)
    data[0]
    assert list(data.skipped) == [data.names[0]]
    path.write_bytes(content[:100])
    reader._offsets.clear()
    with pytest.raises(ChunkError, match=r"chunk-0-0\.bin"):
        data[1]


def test_sets_of_litdata_need_their_classes(tmp_path):
    folder = write_set("as_tuple", tmp_path / "a")
    with pytest.raises(FovealError, match=r"do not say their classes: .*--data_options\.classes"):
        open_dataset(str(folder), "train")
    parts = [
        open_dataset(str(folder), split, classes=["x", "y"], val_share=0.25) for split in ("train", "val")
    ]
    assert [len(part) for part in parts] == [3, 1]
    assert sorted(name for part in parts for name in part.names) == [
        "chunk-0-0.bin[0]", "chunk-0-0.bin[1]", "chunk-0-0.bin[2]", "chunk-0-1.bin[0]",
    ]  # fmt: skip
    assert {(int(i["image"][0, 0, 0]) // 10 % 2, i["label"]) for part in parts for i in part} == {
        (0, 0),
        (1, 1),
    }
    with pytest.raises(FovealError, match="what is pickled stays so"):
        open_dataset(str(write_set("as_pickle", tmp_path / "b")), "train", classes=["x", "y"])
    with pytest.raises(FovealError, match="must come from foveal pack --task segment"):
        open_dataset(str(folder), "train", task="segment")


def test_parts_of_litdata_are_folders(tmp_path):
    write_set("as_pil", tmp_path / "a" / "train")
    write_set("as_pil", tmp_path / "a" / "val")
    assert [len(open_dataset(str(tmp_path / "a"), s, classes=["x", "y"])) for s in ("train", "val")] == [4, 4]
