import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.test_chunks import written
from tests.file_server import Served, served

from foveal.data import stores
from foveal.data.chunks import Chunk, ChunkReader, parse_index
from foveal.data.opening import ChunkError
from foveal.data.stores import LocalStore, RemoteStore
from foveal.errors import FovealError

NAME = "chunk-0-0.bin"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(stores, "WAIT_S", 0.0)
    written(tmp_path / "site", items=40, chunk_bytes=200)
    with served(tmp_path / "site") as known:
        yield known


def remote(site: Served, tmp_path: Path, cache_bytes: int = 2**20) -> ChunkReader:
    store = RemoteStore(site.url, tmp_path / "cache", cache_bytes)
    content = store.read("index.json")
    assert content is not None
    return ChunkReader(store, parse_index(content, "", "index.json"))


def test_items_on_the_network_are_those_of_the_folder_and_each_chunk_is_fetched_once(
    site: Served, tmp_path: Path
) -> None:
    far = remote(site, tmp_path)
    near = ChunkReader(LocalStore(str(tmp_path / "site")), far.index)
    assert [far.item(i) for i in range(40)] == [near.item(i) for i in range(40)]
    again = remote(site, tmp_path)
    assert again.item(39) == near.item(39)
    chunks = [name for name in site.asked if name.endswith(".bin")]
    assert len(chunks) == len(set(chunks)) == len(far.index.chunks) > 8


def test_the_cache_keeps_to_its_size_and_removes_what_was_used_longest_ago(
    site: Served, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights.bin").write_bytes(b"mine" * 200)
    far = remote(site, tmp_path, cache_bytes=700)
    sizes, store = [], far.store
    for i in range(40):
        far.item(i)
        far.item(0)  # in use all the time
        kept = list((tmp_path / "cache").glob("????????????????????????????????.bin"))
        sizes.append(sum(path.stat().st_size for path in kept))
    assert 400 < max(sizes) <= 700
    assert site.asked.count(NAME) == 1
    assert isinstance(store, RemoteStore)
    assert store.place(far.index.chunks[0]).exists()
    assert not store.place(far.index.chunks[2]).exists()
    assert (tmp_path / "cache" / "weights.bin").exists()


def test_a_chunk_that_another_process_removed_is_fetched_again(site: Served, tmp_path: Path) -> None:
    far = remote(site, tmp_path)
    before = far.item(0)
    for path in (tmp_path / "cache").glob("*.bin"):
        path.unlink()
    assert far.item(0) == before
    assert site.asked.count(NAME) == 2


def test_where_several_want_a_chunk_one_fetches_it(site: Served, tmp_path: Path) -> None:
    readers = [remote(site, tmp_path) for _ in range(6)]
    threads = [threading.Thread(target=one.item, args=(0,)) for one in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.asked.count(NAME) == 1


def test_an_answer_that_breaks_off_is_asked_for_again(site: Served, tmp_path: Path) -> None:
    far = remote(site, tmp_path)
    site.faults[NAME] = [lambda content: content[:50], lambda content: None]
    assert far.item(0)[0] == b""
    assert site.asked.count(NAME) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda content: content[:50], r"chunk-0-0\.bin ended after 50 of \d+ bytes, 4 times"),
        (lambda content: None, r"chunk-0-0\.bin could not be fetched: .*503.*, 4 times"),
        (lambda content: content + b"x" * 2**22, "must be the one of its index, got another content"),
        (lambda content: content[:-1] + b"?", "must be the one of its index, got another content"),
    ],
)
def test_a_chunk_that_is_not_what_its_index_says_is_named_and_not_kept(
    site: Served, tmp_path: Path, fault, message: str
) -> None:
    far = remote(site, tmp_path)
    site.faults[NAME] = [fault] * 9
    with pytest.raises(ChunkError, match=message):
        far.item(0)
    assert list((tmp_path / "cache").glob("*.bin")) == []
    assert list((tmp_path / "cache").glob("*.part")) == []


def test_a_file_that_is_not_there(site: Served, tmp_path: Path) -> None:
    store = RemoteStore(site.url, tmp_path / "cache", 2**20)
    assert store.read("none.json") is None
    assert LocalStore(str(tmp_path)).read("none.json") is None
    with pytest.raises(ChunkError, match=r"where its index is, got none at http.*/none\.bin"):
        store.fetch(Chunk("none.bin", 1, 100))
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:1/index\.json could not be fetched"):
        RemoteStore("http://127.0.0.1:1", tmp_path, 2**20).read("index.json")
    with pytest.raises(ConnectionError, match="could not be fetched: Protocol not known: nothing-such"):
        RemoteStore("nothing-such://x", tmp_path, 2**20).read("index.json")


def test_other_places_are_read_through_fsspec(site: Served, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "site"), "/site", recursive=True)
    store = RemoteStore("memory://site", tmp_path / "cache", 2**20)
    content = store.read("index.json")
    assert content is not None
    assert store.read("none.json") is None
    far = ChunkReader(store, parse_index(content, "", "index.json"))
    near = ChunkReader(LocalStore(str(tmp_path / "site")), far.index)
    assert [far.item(i) for i in range(40)] == [near.item(i) for i in range(40)]


def test_a_small_file_that_is_large_is_refused(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MOST_SMALL", 20)
    monkeypatch.setattr(stores, "BLOCK", 8)
    for store in (RemoteStore(site.url, tmp_path / "cache", 2**20), LocalStore(str(tmp_path / "site"))):
        with pytest.raises(FovealError, match="at most 20 bytes, got"):
            store.read("index.json")


def test_chunks_are_fetched_before_they_are_read(site: Served, tmp_path: Path) -> None:
    far = remote(site, tmp_path)
    store = far.store
    assert isinstance(store, RemoteStore)
    site.faults["chunk-0-1.bin"] = [lambda content: content[:-1] + b"?"]
    store.prefetch(far.index.chunks[:3])
    assert store._coming is not None
    store._coming.join()
    assert [store.place(chunk).exists() for chunk in far.index.chunks[:4]] == [True, False, True, False]
    asked = list(site.asked)
    far.item(0)
    assert site.asked == asked
    far.item(int(far.starts[1]))
    assert site.asked == [*asked, "chunk-0-1.bin"], "what went wrong is tried again when it is read"
    assert pickle.loads(pickle.dumps(store))._coming is None


def test_what_fetches_ahead_ends_with_its_store(site: Served, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    store = RemoteStore(site.url, tmp_path / "cache", 2**20)
    store.prefetch([Chunk("none.bin", 1, 100)])  # what cannot be had keeps nothing either
    threads = {thread for thread in threading.enumerate() if "_fetch_all" in thread.name} - before
    assert len(threads) == stores.READ_AHEAD_THREADS
    assert store._coming is not None
    store._coming.join()
    del store
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_what_killed_processes_left_in_the_cache_is_removed(site: Served, tmp_path: Path) -> None:
    far = remote(site, tmp_path)
    (tmp_path / "cache").mkdir()
    old, new, other = (
        tmp_path / "cache" / name
        for name in (".a.bin.0123456789ab.part", ".b.bin.0123456789ab.part", ".mine.part")
    )
    for path in (old, new, other):
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    os.utime(new)
    far.item(0)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]
