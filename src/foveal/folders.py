"""Folders and names for output: new, never shared, never over something else."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foveal.errors import FovealError
from foveal.files import is_temporary


def new_folder(path: str | os.PathLike[str], option: str = "out", hint: str = "") -> Path:
    """Make ``path``, which must not exist or be empty.

    Args:
        path: the folder.
        option: what the person who asked for it calls it, for the message.
        hint: what to do instead, for the message.

    Raises:
        FovealError: the folder is not empty, or a file is in the way.
        OSError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FovealError(
            f"{option} must be a folder, got {folder}, where a file stands in the way"
        ) from None
    if any(folder.iterdir()):
        raise FovealError(f"{option} must be a new or empty folder, got {folder}, which is not empty{hint}")
    return folder


def require_absent(
    path: str | os.PathLike[str], option: str = "out", why: str = "which would be overwritten"
) -> None:
    """Refuse a place where there is something, a link to nothing too.

    Raises:
        FovealError: there is.
    """
    if os.path.lexists(path):
        raise FovealError(f"{option} must not exist yet, got {path}, {why}")


def new_file(path: str | os.PathLike[str], option: str = "out") -> Path:
    """The place of a file to come, which must not exist; its folder is made.

    Args:
        option: what the person who asked for it calls it, for the message.

    Raises:
        FovealError: it exists, or a file stands in the way of its folder.
    """
    place = Path(path)
    require_absent(place, option)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FovealError(
            f"{option} must lie in a folder, got {place}, where a file stands in the way"
        ) from None
    return place


def new_numbered_folder(parent: str | os.PathLike[str], name: str) -> Path:
    """Make and return the first of parent/NAME, parent/NAME-2, ... that did not exist.

    Making the folder decides, so that commands which start together get a folder each.

    Example:
        >>> import tempfile
        >>> parent = tempfile.mkdtemp()
        >>> [new_numbered_folder(parent, "a/b").name for _ in range(2)]
        ['a_b', 'a_b-2']
    """
    name = file_name(name)
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FovealError(f"{parent} must be a folder, got a file in its way") from None
    number = 1
    while True:
        folder = Path(parent) / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


@contextmanager
def whole_folder(
    path: str | os.PathLike[str] | None, parent: str | os.PathLike[str], name: str
) -> Iterator[tuple[Path, Path]]:
    """A folder that appears whole or not at all.

    Args:
        path: where it shall be; None is the first of parent/NAME, parent/NAME-2, ... that does not exist.
        parent, name: for that.

    Yields:
        The folder to fill, hidden beside its place, and its place, where it is moved at the end. After an error, or
        Ctrl-C, there is neither.

    Raises:
        FovealError: there is something at ``path`` already, or it names nothing.

    Example:
        >>> import tempfile
        >>> with whole_folder(None, tempfile.mkdtemp(), "a") as (folder, place):
        ...     _ = (folder / "b.txt").write_text("")
        >>> [file.name for file in place.iterdir()]
        ['b.txt']
    """
    if path is not None:
        if not Path(path).name:
            raise FovealError(f"out must name a folder, got {os.fspath(path)!r}")
        require_absent(path)
    # a numbered name is taken by an empty folder meanwhile
    place = new_numbered_folder(parent, name) if path is None else Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = place.with_name(f".{place.name[:150]}.{secrets.token_hex(6)}.part")
    try:
        folder.mkdir()
        yield folder, place
        if path is None:
            place.rmdir()
        require_absent(place, why="which has appeared meanwhile")
        os.rename(folder, place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if path is None:
            with suppress(OSError):
                place.rmdir()
        raise


def file_name(text: str) -> str:
    """``text`` as the name of one file or folder on any system.

    Example:
        >>> file_name("hf-hub:timm/resnet18.a1"), file_name("..")
        ('hf-hub_timm_resnet18.a1', '_')
    """
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "_", text).strip(". ")
    return name[:150] or "_"


class UniqueNames:
    """Names for output files that never repeat, whatever the case of their letters.

    Example:
        >>> unique = UniqueNames()
        >>> unique("bird", ".png"), unique("Bird", ".png"), unique("bird", ".png")
        ('bird.png', 'Bird-2.png', 'bird-3.png')
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, stem: str, suffix: str = "") -> str:
        stem = file_name(stem)
        name, number = f"{stem}{suffix}", 1
        while name.lower() in self._taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self._taken.add(name.lower())
        return name


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Be the only process that works in ``folder``; the lock ends with the process, however it ends.

    What a process that was killed left half-written below the folder is removed: nobody else writes there.

    Args:
        folder: exists already.
        what: what works there, such as "a comparison", for the message.

    Raises:
        FovealError: another process works there; the message names its number.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _try_lock(descriptor):
            owner = ""
            with suppress(OSError):
                owner = os.read(descriptor, 32).decode(errors="replace").strip()
            raise FovealError(
                f"{what} already works in {folder}, process {owner or 'unknown'}; wait for it or stop it"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        for left in folder.rglob(".*.part"):
            if is_temporary(left):
                left.unlink(missing_ok=True)
        yield
        with suppress(OSError):
            path.unlink()
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1000, os.SEEK_SET)  # a byte nobody reads: locked bytes cannot be read there
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
