"""One way to find images in folders, and to tell when files have changed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
SYSTEM_FOLDERS = frozenset((
    "@eadir", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found",
    "lost.dir",
))  # fmt: skip


class Survey(NamedTuple):
    """What lies below a folder.

    Attributes:
        images: paths of image files below the folder, with ``/`` between their parts on every system, sorted.
        left_out: path -> why, for what looks like an image, or may hold some, and is not among ``images``.
    """

    images: list[str]
    left_out: dict[str, str]


def survey_images(folder: str | os.PathLike[str], also: Collection[str] = ()) -> Survey:
    """Look through a folder for image files at any depth, and say what was left out.

    Args:
        folder: where to look.
        also: suffixes of other files to take, in lower case, such as ``".mp4"``.

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
        elif is_image_name(name) or os.path.splitext(name)[1].lower() in also:
            images.append(name)
        elif reason := _image_in_disguise(os.path.join(folder, name)):
            left_out[name] = reason
    return Survey(sorted(images), dict(sorted(left_out.items())))


def find_images(folder: str | os.PathLike[str], also: Collection[str] = ()) -> list[str]:
    """Paths of the image files at any depth below ``folder``, sorted by name: `survey_images` without the rest."""
    return [os.path.join(folder, *name.split("/")) for name in survey_images(folder, also).images]


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
