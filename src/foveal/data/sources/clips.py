"""Videos with one label each: in class folders, or listed in CSV files."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foveal.data.dataset import StoredDataset, empty_classes, few, file_looks_whole, refuse_repeated
from foveal.data.opening import LabelError
from foveal.data.sources.folder import find_layout, refuse_parts_inside, refuse_same_inside, spelled
from foveal.data.sources.lines import read_text, with_slashes
from foveal.data.split import SPLIT_NAMES, choose_part, hold_out, unread_lists
from foveal.data.video import ANIMATED, FORMATS, Video, find_videos, require_pyav
from foveal.errors import FovealError
from foveal.image_files import fingerprint

LABEL_COLUMNS = ("label", "class", "action")
PATH_COLUMNS = ("path", "file", "filename", "video", "video_path")
MOST_LINES = 10**7
TOGETHER = 32
"""Frames of a video that are decoded together where all of them are."""


class Listed(NamedTuple):
    """One video: its path below the root with ``/``, the name of its class, and the part it is said to be of."""

    path: str
    label: str
    split: str | None


class VideoFiles:
    """Source of (path below ``root``, label) pairs; see `foveal.data.dataset.Source`."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int], channels: int) -> None:
        self.root, self.paths, self.labels, self.channels = root, paths, labels, channels

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def sample(self, index: int) -> dict[str, Any]:
        """The video, of which nothing is decoded yet."""
        return {"image": Video(self.root / self.paths[index], self.channels), "label": self.labels[index]}

    def clip(self, index: int, choose: Callable[[int], list[int]]) -> dict[str, Any]:
        """The frames that ``choose`` takes of how many there are."""
        sample = self.sample(index)
        video = sample["image"]
        return {**sample, "image": video[:, choose(video.shape[1])]}

    def looks_whole(self, index: int) -> bool:
        path = self.root / self.paths[index]
        if path.suffix.lower() in ANIMATED:
            return file_looks_whole(os.fspath(path))
        # what a video file holds shows when it is read
        return path.is_dir() or (path.is_file() and path.stat().st_size > 0)

    def fingerprint(self, indices: Sequence[int]) -> str:
        return fingerprint([self.paths[index] for index in indices], self.root)


class StoredClips(StoredDataset):
    """A `StoredDataset` of videos, whose frames are read when they are asked for."""

    called = "videos"

    @property
    def files(self) -> list[str]:
        source: VideoFiles = self.source  # pyright: ignore[reportAssignmentType]
        return [os.fspath(source.root / name) for name in self.names]

    def clip(self, index: int, choose: Callable[[int], list[int]]) -> dict[str, Any]:
        """An item with the frames that ``choose`` takes of how many there are; where it cannot be read, the next one.

        Raises:
            FovealError: too many cannot be read.
        """
        return self.readable(index, lambda place: self.source.clip(place, choose))  # pyright: ignore[reportAttributeAccessIssue]

    def examined(self) -> Iterator[tuple[str, int, Video, str]]:
        """Of every item: its name, its label, its video, and why it cannot be read to its end, or nothing."""
        for place, name in zip(self._indices, self.names, strict=True):
            sample, reason = {"image": None, "label": -1}, ""
            try:
                sample = self.source.sample(place)
                for start in range(0, sample["image"].shape[1], TOGETHER):
                    sample["image"][:, start : start + TOGETHER]
            except (ValueError, OSError) as error:
                reason = str(error)
            yield name, sample["label"], sample["image"], reason


def open_clips(
    spec: str,
    split: str,
    *,
    root: str | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    channels: int = 3,
) -> StoredClips:
    """Open one split of stored videos.

    Args:
        spec: a folder of class folders, or of train, val and test folders with class folders inside; or a CSV file, or
            a folder with one for each part (``train.csv``, ``kinetics_val.csv``, ...).

            - In class folders a video is a file (mp4, m4v, mov, webm, mkv, avi, mpg; animated gif, webp and apng), or
              a folder that holds images: its frames, by the numbers in their names.
            - A CSV file has a line of names with ``label`` and ``path``, or with ``label``, ``youtube_id``,
              ``time_start`` and ``time_end`` as that of Kinetics, whose videos are called
              ``ID_000012_000022`` (or ``ID``) with any suffix at any depth; and perhaps ``split``. Or it has none, and
              a path and a label in each line, with a comma or a space between, as PySlowFast and mmaction2 write them.
        split: "train", "val" or "test"; data without parts are divided as `foveal.data.open_dataset` says.
        root: the folder that paths in a CSV file start from. Default: that of the file.
        classes: names that fix the order of the labels. Default: sorted; numbers by their size.
        val_share, split_seed, max_unreadable: as in `foveal.data.open_dataset`.
        channels: 3, or 1 for grey.

    Raises:
        FovealError: there is no such folder or file, no video, no part for the split, fewer than two classes; PyAV
            would be needed and is not installed.
    """
    where = Path(spec).expanduser()
    if not where.exists():
        raise FovealError(
            f"data of clips must be scenes, scenes:direction, or a folder or CSV file that exists, got {spec!r}"
        )
    tables = [where] if where.is_file() else sorted(p for p in where.glob("*.csv"))
    if where.is_file() and where.suffix.lower() not in (".csv", ".txt"):
        raise FovealError(f"a list of videos must end in .csv or .txt, got {spec}")
    below = Path(root).expanduser() if root is not None else where.parent if where.is_file() else where
    missing: dict[str, str] = {}
    if tables:
        listed, missing = _listed(tables, below)
    else:
        listed = _in_folders(where, classes)
    if not listed:
        raise FovealError(f"data of clips must hold videos in class folders, got none in {spec}")
    parts = {one.split for one in listed if one.split is not None}
    part, divide = choose_part(f"data {spec}", parts, split)
    every = (
        _ordered({one.label for one in listed}) if classes is None else [spelled(name) for name in classes]
    )
    refuse_repeated(every)
    if len(every) < 2:
        raise FovealError(f"a classifier needs at least 2 classes, got {every} in {spec}")
    chosen = [one for one in listed if part is None or one.split == part]
    number = {name: label for label, name in enumerate(every)}
    unknown = sorted({one.label for one in chosen} - number.keys())
    if unknown:
        raise LabelError(f"classes must be among {few(every)}, got {few(unknown)} in {spec}")
    if any(Path(one.path).suffix.lower() in FORMATS for one in chosen):
        require_pyav()
    paths, labels = [one.path for one in chosen], [number[one.label] for one in chosen]
    indices: Sequence[int] = range(len(paths))
    unread: list[str] = []
    if divide:
        indices = hold_out(paths, labels, split, val_share=val_share, split_seed=split_seed)
        unread = [] if tables else list(unread_lists(where, paths))
    return StoredClips(
        VideoFiles(below, paths, labels, channels), indices, every, max_unreadable=max_unreadable,
        left_out=missing, notes=[*empty_classes([labels[index] for index in indices], every, split), *unread],
    )  # fmt: skip


def _ordered(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _in_folders(root: Path, classes: Sequence[str] | None) -> list[Listed]:
    """The videos below class folders, in parts or not; refused where they may be read in two ways, as for images."""
    videos = find_videos(root)
    layout = find_layout(root, videos)
    if not layout.parts:
        refuse_parts_inside(root, videos)
    if classes is None:
        refuse_same_inside(root, layout.parts.get("train", ""), videos)
    found = []
    for split, folder in layout.parts.items() or [(None, "")]:
        start = f"{folder}/" if folder else ""
        for path in videos:
            label, slash, _ = path.removeprefix(start).partition("/")
            if path.startswith(start) and slash:
                found.append(Listed(path, spelled(label), split))
    return found


def _listed(tables: Sequence[Path], root: Path) -> tuple[list[Listed], dict[str, str]]:
    """The videos of all tables that are there, and name -> why for the others."""
    rows: list[tuple[Listed, str]] = []
    by_stem: dict[str, str] | None = None
    for table in tables:
        own = [SPLIT_NAMES[word] for word in re.findall(r"[a-z]+", table.stem.lower()) if word in SPLIT_NAMES]
        split = own[0] if len(set(own)) == 1 else None
        for line, row in _rows(table):
            said = SPLIT_NAMES.get(row.get("split", "").strip().lower(), split)
            label = next((row[name] for name in LABEL_COLUMNS if row.get(name)), None)
            if label is None:
                raise FovealError(f"every line must have a label, got none in {table}, line {line}")
            path = next((row[name] for name in PATH_COLUMNS if row.get(name)), None)
            if path is None:
                by_stem = _stems(root) if by_stem is None else by_stem
                path = _kinetics_path(row, by_stem, f"{table}, line {line}")
            rows.append(
                (Listed(with_slashes(path), spelled(label.strip()), said), f"{table.name}, line {line}")
            )
    _refuse_two_labels(rows)
    splits = {one.split for one, _ in rows}
    if None in splits and len(splits) > 1:
        raise FovealError(f"all videos must be of a part, or none, got both in {', '.join(map(str, tables))}")
    missing = {one.path: f"not there ({place})" for one, place in rows if not (root / one.path).exists()}
    return [one for one, _ in rows if one.path not in missing], missing


def _refuse_two_labels(rows: Sequence[tuple[Listed, str]]) -> None:
    first: dict[str, tuple[Listed, str]] = {}
    for one, place in rows:
        before, where = first.setdefault(one.path, (one, place))
        if before.label != one.label:
            raise LabelError(
                f"a video must be of one class, got {before.label} ({where}) and {one.label} ({place}) for {one.path}"
            )


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, column -> value) of a table; without a line of names the columns are path and label."""
    lines = read_text(table, "a list of videos").splitlines()
    if len(lines) > MOST_LINES:
        raise FovealError(f"a list may have at most {MOST_LINES:,} lines, got {len(lines):,} in {table}")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    names = [name.strip().lower() for name in next(csv.reader([numbered[0][1]]), [])] if numbered else []
    if set(names) & set(LABEL_COLUMNS) and set(names) & {*PATH_COLUMNS, "youtube_id"}:
        return [
            (number, dict(zip(names, (value.strip() for value in next(csv.reader([line]))), strict=False)))
            for number, line in numbered[1:]
        ]
    found = []
    for number, line in numbered:
        path, comma, label = line.rpartition("," if "," in line else " ")
        if not comma or not path.strip() or not label.strip():
            raise FovealError(
                f"a line must hold a path and a label, got {line[:80]!r} in {table}, line {number}"
            )
        found.append((number, {"path": path.strip().strip('"'), "label": label.strip()}))
    return found


def _kinetics_path(row: dict[str, str], by_stem: dict[str, str], place: str) -> str:
    """The file of a line of Kinetics, or the name it would have."""
    video = row.get("youtube_id", "")
    try:
        seconds = [int(float(row[name])) for name in ("time_start", "time_end")]
    except (KeyError, ValueError):
        seconds = []
    if not video:
        raise FovealError(f"every line must have a path or a youtube_id, got neither in {place}")
    names = [f"{video}_{seconds[0]:06}_{seconds[1]:06}"] if seconds else []
    return next((by_stem[name] for name in (*names, video) if name in by_stem), f"{(*names, video)[0]}.mp4")


def _stems(root: Path) -> dict[str, str]:
    """The videos below a folder by their names without suffix."""
    return {Path(path).stem: path for path in find_videos(root)}
