import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.data.litdata_sets import write_set

from foveal.data.chunks import MOST_BYTES, ChunkReader, ChunkWriter, parse_index
from foveal.data.opening import ChunkError
from foveal.data.stores import LocalStore
from foveal.errors import FovealError


def reader(folder: Path) -> ChunkReader:
    store = LocalStore(str(folder))
    return ChunkReader(store, parse_index((folder / "index.json").read_bytes(), "", "index.json"))


def written(folder: Path, items: int = 7, chunk_bytes: int = 64) -> Path:
    folder.mkdir()
    writer = ChunkWriter(folder, {"image": "bytes", "label": "int"}, chunk_bytes)
    for i in range(items):
        writer.add([bytes([i]) * i, struct.pack("<q", i)])
    writer.close()
    return folder


def test_items_come_back_in_any_order(tmp_path: Path) -> None:
    found = reader(written(tmp_path / "a"))
    assert len(found) == 7
    assert len(found.index.chunks) > 2
    assert found.index.names == ["image", "label"]
    for i in (6, 0, 3, 1, 5, 2, 4):
        assert found.item(i) == [bytes([i]) * i, struct.pack("<q", i)]


def test_what_litdata_wrote_is_read(tmp_path: Path) -> None:
    found = reader(write_set("as_tuple", tmp_path / "a"))
    assert (found.index.names, found.index.kinds) == (["0", "1"], ["bytes", "int"])
    assert [found.item(i)[1] for i in range(4)] == [struct.pack("<q", i % 2) for i in range(4)]
    assert all(found.item(i)[0].startswith(b"\x89PNG") for i in range(4))
    assert reader(write_set("as_pil", tmp_path / "b")).index.names == ["index", "image", "class"]


def test_litdata_reads_what_is_written_here(tmp_path: Path) -> None:
    litdata = pytest.importorskip("litdata")
    items = litdata.StreamingDataset(str(written(tmp_path / "a")))
    assert [(bytes(item["image"]), item["label"]) for item in items] == [
        (bytes([i]) * i, i) for i in range(7)
    ]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """The fields are bytes, whatever they hold."""
    before = "pickle" in sys.modules and sys.modules["pickle"].loads
    found = reader(write_set("as_pickle", tmp_path / "a"))
    assert found.index.kinds == ["pickle", "int"]
    assert isinstance(found.item(0)[0], bytes)
    assert before == ("pickle" in sys.modules and sys.modules["pickle"].loads)


def changed(folder: Path, change) -> bytes:
    index = json.loads((folder / "index.json").read_bytes())
    change(index)
    return json.dumps(index).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i["chunks"][0].update(filename="../secret"),
            r"a file beside its index, got '\.\./secret'",
        ),
        (lambda i: i["chunks"][0].update(filename="/etc/passwd"), "a file beside its index"),
        (lambda i: i["chunks"][0].update(filename=".hidden"), "a file beside its index"),
        (
            lambda i: i["chunks"][0].update(chunk_size=2**40),
            "of 1099511627776 items must have 4398046511112 to",
        ),
        (lambda i: i["chunks"][0].update(chunk_size=-1), "must say how many items and bytes"),
        (lambda i: i["chunks"][0].update(chunk_size=1.5), "must say how many items and bytes"),
        (lambda i: i["chunks"][0].update(chunk_bytes=True), "must say how many items and bytes"),
        (lambda i: i["chunks"][0].update(chunk_bytes=MOST_BYTES + 1), f"to {MOST_BYTES} bytes, got"),
        (
            lambda i: i["config"].update(compression="zstd"),
            "no compression, got 'zstd' in index.json; write them",
        ),
        (lambda i: i["config"].update(encryption={"algorithm": "x"}), "no encryption"),
        (lambda i: i["config"].update(item_loader="TokensLoader"), "PyTreeLoader, got 'TokensLoader'"),
        (lambda i: i["config"].update(data_format=None), "must be an index of litdata"),
        (
            lambda i: i["config"].update(data_format=["bytes"] * 3),
            "must be a dictionary or a tuple of plain fields",
        ),
        (lambda i: i.update(chunks=None), "must be an index of litdata"),
        (lambda i: i.pop("config"), "must be an index of litdata, got KeyError: 'config'"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, change, message: str) -> None:
    content = changed(written(tmp_path / "a"), change)
    with pytest.raises(FovealError, match=message):
        parse_index(content, "", "index.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"config": 1, "chunks": 2}'])
def test_what_is_no_index_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(FovealError, match="index of litdata, got"):
        parse_index(content, "", "it")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 9, "must begin with its number of items"),
        (0, 2**32 - 1, "must begin with its number of items"),
        (1, 0, "must begin with its number of items"),
        (2, 2**32 - 1, "must begin with its number of items"),
        (-1, 2**31, "must begin with its number of items"),
    ],
)
def test_a_chunk_whose_beginning_lies_is_named(tmp_path: Path, place: int, value: int, message: str) -> None:
    folder = written(tmp_path / "a")
    path = folder / "chunk-0-0.bin"
    content = np.frombuffer(path.read_bytes()[: 4 * (reader(folder).index.chunks[0].items + 2)], "<u4").copy()
    content[place] = value
    path.write_bytes(content.tobytes() + path.read_bytes()[content.nbytes :])
    with pytest.raises(ChunkError, match=f"{message}.*chunk-0-0.bin"):
        reader(folder).item(0)


def test_an_item_whose_sizes_lie_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    path, first = folder / "chunk-0-0.bin", 4 * (reader(folder).index.chunks[0].items + 2)
    content = bytearray(path.read_bytes())
    content[first : first + 4] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(content)
    with pytest.raises(ChunkError, match=r"must have the 2 fields .* in item 0 of .*chunk-0-0\.bin"):
        reader(folder).item(0)


@pytest.mark.parametrize("left", [0, 3, 30])
def test_a_truncated_chunk_is_named(tmp_path: Path, left: int) -> None:
    folder = written(tmp_path / "a")
    path = folder / "chunk-0-1.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:left])
    found = reader(folder)
    with pytest.raises(
        ChunkError, match=rf"the {size} bytes that its index says, got {left} in .*chunk-0-1\.bin"
    ):
        found.item(int(found.starts[2]) - 1)
    path.unlink()
    with pytest.raises(ChunkError, match=r"No such file.*chunk-0-1\.bin"):
        found.item(int(found.starts[1]))


def test_chunks_have_about_the_size_that_was_asked_for(tmp_path: Path) -> None:
    found = reader(written(tmp_path / "a", items=200, chunk_bytes=2000))
    assert all(chunk.size <= 2012 for chunk in found.index.chunks)
    assert all(chunk.size > 1500 for chunk in found.index.chunks[:-1])
    assert sum((tmp_path / "a" / chunk.name).stat().st_size for chunk in found.index.chunks) == sum(
        chunk.size for chunk in found.index.chunks
    )
