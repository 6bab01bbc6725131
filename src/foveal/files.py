"""Files and folders: written whole or not at all, never over something else, and one way to find images."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foveal.errors import FovealError

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)
SYSTEM_FOLDERS = frozenset(("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information"))

# ------------------------------------------------------------------------------------------------- writing whole files


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, bring it to the disk, then put it in its place in one step.

    On any error, a full disk or Ctrl-C among them, ``path`` keeps what it had and nothing is left beside it. After
    a loss of power there is the old file or the new one. Several processes may write the same file: the last
    one's stays.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``filename`` says which file.
    """
    temporary = temporary_path(path)
    try:
        # made here and not by the writer: a link that somebody put in this place is not followed
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def temporary_path(path: Path) -> Path:
    """Where a file is written before it is whole: hidden, beside its place, with a name nobody can guess.

    Example:
        >>> temporary_path(Path("net.safetensors")).name.startswith(".net.safetensors.")
        True
    """
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.part")


def _sync(path: Path) -> None:
    """Bring a file or the entries of a folder to the disk; file systems that cannot sync a folder are left alone."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """`atomic_write` of bytes."""
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """`atomic_write` of a UTF-8 text. File names that are no UTF-8 keep their bytes as ``\\udcXX`` escapes."""
    content = text.encode("utf-8", errors="backslashreplace")
    write_bytes(path, content)


def write_json(path: Path, content: Any) -> None:
    """`atomic_write` of a JSON document; numbers that are not finite become null."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """A JSON document, indented; numbers that are not finite become null, as JSON has no others."""
    return json.dumps(finite_or_none(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite_or_none(value: Any) -> Any:
    """``value`` as JSON can hold it: None for every number that is not finite, inside mappings and sequences too.

    Example:
        >>> finite_or_none({"mean": 0.5, "interval": (math.nan, 1.0)})
        {'mean': 0.5, 'interval': [None, 1.0]}
    """
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header line of all their names; figures to 6 significant digits.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.

    Example:
        >>> print(csv_text([{"epoch": 1, "loss": 0.12345678}]))
        epoch,loss
        1,0.123457
        <BLANKLINE>
    """
    text = io.StringIO()
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([csv_cell(name) for name in names])
        for row in rows:
            writer.writerow([csv_cell(row.get(name, "")) for name in names])
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """One value for a CSV file.

    Example:
        >>> csv_cell(1 / 3), csv_cell("=1+1"), csv_cell("-1"), csv_cell("cat")
        ('0.333333', "'=1+1", "'-1", 'cat')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


# ------------------------------------------------------------------------------------------------------------- folders


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
            with suppress(OSError):
                owner = os.read(descriptor, 32).decode(errors="replace").strip()
            raise FovealError(
                f"{what} already works in {folder}, process {owner or 'unknown'}; wait for it or stop it"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
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


# -------------------------------------------------------------------------------------------------------------- images


def find_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the image files at any depth below ``folder``, sorted by name; each real file once.

    Hidden files and folders and those that systems make (``@eaDir``, ``__MACOSX``) are left out. Links are
    followed; one that leads to a folder or file that was seen already is not taken again, so loops end.
    """
    return [path for path in walk_files(folder) if is_image_name(path)]


def is_image_name(path: str) -> bool:
    """Whether a file's suffix says that it is an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the person's: hidden, or made by a system.

    Example:
        >>> [is_hidden(name) for name in (".DS_Store", "@eaDir", "__MACOSX", "cats")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def folders_in(root: str | os.PathLike[str]) -> list[Path]:
    """The folders directly inside ``root`` that are not hidden, sorted by name."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and not is_hidden(path.name))


def walk_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all files below ``folder`` that are not hidden, sorted; each real file once, as `find_images` says."""
    found: list[str] = []
    folders_seen: set[tuple[int, int]] = set()
    files_seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        where = waiting.pop()
        with suppress(OSError):  # a folder that cannot be read, or that has just gone, holds nothing
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in folders_seen and status.st_ino:
                continue
            folders_seen.add((status.st_dev, status.st_ino))
            with os.scandir(where) as entries:
                inside = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
            folders = []
            for entry in inside:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    if entry.is_symlink():
                        status = entry.stat()
                        if (status.st_dev, status.st_ino) in files_seen:
                            continue
                        files_seen.add((status.st_dev, status.st_ino))
                    else:
                        files_seen.add((entry.stat().st_dev, entry.inode()))
                    found.append(entry.path)
            waiting += reversed(folders)
    return sorted(found)


def fingerprint(paths: Sequence[str | os.PathLike[str]]) -> str:
    """A hash of the names, sizes and times of files, which changes when one of them does; one look at each.

    Files that are gone count as such.
    """
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = os.stat(path)
            line = f"{os.fspath(path)!r} {status.st_size} {status.st_mtime_ns}\n"
        except OSError:
            line = f"{os.fspath(path)!r} gone\n"
        digest.update(line.encode(errors="backslashreplace"))
    return digest.hexdigest()
