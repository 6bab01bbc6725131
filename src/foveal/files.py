"""Files and folders: written whole or not at all, never over something else, and one way to find images."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import secrets
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from foveal.errors import FovealError

# What Pillow reads; HEIC needs its plug-in pillow-heif, AVIF a Pillow built with it.
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif",
))  # fmt: skip
# Images that nothing here decodes: told of, so that nobody believes they were used.
UNREAD_SUFFIXES = frozenset((
    ".jxl", ".jxr", ".psd", ".svg", ".ico", ".pcx", ".sgi", ".exr", ".hdr", ".dcm", ".nii", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".rw2", ".raw", ".eps", ".djvu",
))  # fmt: skip
TAKEN = "a link to what is taken already"
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
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
            owner = ""
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


class Survey(NamedTuple):
    """What lies below a folder.

    Attributes:
        images: paths of image files below the folder, with ``/`` between their parts on every system, sorted.
        left_out: path -> why, for what looks like an image, or may hold some, and is not among ``images``.
    """

    images: list[str]
    left_out: dict[str, str]


def survey_images(folder: str | os.PathLike[str]) -> Survey:
    """Look through a folder for image files at any depth, and say what was left out.

    Hidden files and folders and those that systems make (``@eaDir``, ``__MACOSX``) do not count. Links are followed
    after everything that is really there, so each real file and folder is taken once, under its own name where it has
    one, and loops end. A file is an image by its suffix; one that is an image by its content only is left out.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name, content in (("a.png", b""), ("b.txt", b""), ("c.psd", b""), ("d", b"GIF89a")):
        ...     _ = (root / name).write_bytes(content)
        >>> survey_images(root).images
        ['a.png']
        >>> survey_images(root).left_out
        {'c.psd': 'images of this kind are not read', 'd': 'a GIF by its content, not by its suffix'}
    """
    images: list[str] = []
    left_out: dict[str, str] = {}
    for name, problem in _walk(os.fspath(folder)):
        if problem is not None:
            left_out[name] = problem
        elif is_image_name(name):
            images.append(name)
        elif reason := _image_in_disguise(os.path.join(folder, name)):
            left_out[name] = reason
    return Survey(sorted(images), dict(sorted(left_out.items())))


def find_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the image files at any depth below ``folder``, sorted by name: `survey_images` without the rest."""
    return [os.path.join(folder, *name.split("/")) for name in survey_images(folder).images]


def walk_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all files below ``folder``, sorted; what counts is as in `survey_images`."""
    found = (name for name, problem in _walk(os.fspath(folder)) if problem is None)
    return [os.path.join(folder, *name.split("/")) for name in sorted(found)]


def _walk(root: str) -> Iterator[tuple[str, str | None]]:
    """(path below ``root`` with ``/``, None) for every file; (path, why) for what cannot be taken.

    Links wait until all that is really there has been seen.
    """
    taken: set[tuple[int, int]] = set()
    waiting: list[str] = [""]
    links: deque[str] = deque()
    while waiting or links:
        if not waiting:
            link = links.popleft()
            kind, problem = _follow(os.path.join(root, link), taken)
            if kind == "folder":
                waiting.append(link)
            elif kind == "file" or problem == TAKEN or is_image_name(link):
                yield link, problem
            continue
        where = waiting.pop()
        try:
            status = os.stat(os.path.join(root, where))
            if (status.st_dev, status.st_ino) in taken:
                continue
            taken.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, where)) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield where or ".", f"the folder cannot be read: {error.strerror}"
            continue
        folders = []
        for entry in inside:
            name = f"{where}/{entry.name}" if where else entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_symlink():
                links.append(name)
            elif entry.is_dir():
                folders.append(name)
            elif entry.is_file():
                # files lie on their folder's device, so nothing more has to be asked of the disk
                taken.add((status.st_dev, entry.inode()))
                yield name, None
            elif is_image_name(name):
                yield name, "no regular file"
        waiting += reversed(folders)


def _follow(path: str, taken: set[tuple[int, int]]) -> tuple[str, str | None]:
    """Whether a link leads to a "file", a "folder" or neither, and why it cannot be followed; a file is then taken."""
    try:
        status = os.stat(path)
    except OSError:
        return "", "a link that leads nowhere"
    if (status.st_dev, status.st_ino) in taken:
        return "", TAKEN
    if stat.S_ISDIR(status.st_mode):
        return "folder", None
    if not stat.S_ISREG(status.st_mode):
        return "", "no regular file"
    taken.add((status.st_dev, status.st_ino))
    return "file", None


def _image_in_disguise(path: str) -> str | None:
    """Why a file without an image's suffix should be told of, None for a file that is no image."""
    if os.path.splitext(path)[1].lower() in UNREAD_SUFFIXES:
        return "images of this kind are not read"
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except (OSError, FovealError):
        return None
    kind = next((kind for start, kind in SIGNATURES if head.startswith(start)), None)
    if kind is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "WebP"
    if kind is None and head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1", b"ftypheix"):
        kind = "HEIF or AVIF image"
    return f"a {kind} by its content, not by its suffix" if kind else None


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
    inside = (path for path in Path(root).iterdir() if path.is_dir() and not is_hidden(path.name))
    # by name: paths of Windows compare without regard to capitals, and labels follow this order
    return sorted(inside, key=lambda path: path.name)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes; pipes, devices and sockets are refused at once instead of waited for.

    Raises:
        FovealError: the path is no regular file.
        OSError: it cannot be opened; IsADirectoryError for a folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    # a pipe that nobody writes to would be waited for in `open` already
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise FovealError(f"a file must be a regular file, got a pipe, socket or device, {os.fspath(path)}")
    return os.fdopen(descriptor, "rb")


def fingerprint(paths: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] = "") -> str:
    """A hash of the names, sizes and times of files, which changes when one of them does; one look at each.

    Files that are gone count as such.

    Args:
        paths: of the files.
        root: the folder they lie below, where ``paths`` are relative: the hash stays when that folder moves.
    """
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        name = os.fspath(path).replace(os.sep, "/")
        try:
            status = os.stat(os.path.join(root, path))
            line = f"{name!r} {status.st_size} {status.st_mtime_ns}\n"
        except OSError:
            line = f"{name!r} gone\n"
        digest.update(line.encode(errors="backslashreplace"))
    return digest.hexdigest()
