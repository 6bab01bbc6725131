"""Boxes in the text files of YOLO: one a image, ``class x y width height`` a line, as shares of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foveal.data.boxes import Annotations, boxed_image
from foveal.data.dataset import few, renumbered
from foveal.data.findings import Finding
from foveal.data.sources.class_names import find_class_list
from foveal.data.sources.lines import read_text, with_slashes
from foveal.data.split import choose_part, split_of
from foveal.errors import FovealError
from foveal.image_files import folders_in, is_image_name, survey_images

LARGEST_YAML = 2**20
LARGEST_SHARE = 1.5
"""Above this a value is in pixels, not a share that left the image a little."""
NO_FILE = "images without a label file count as images without objects"


def find_yolo(root: Path) -> Path | None:
    """The YAML file of a YOLO data set, or the folder itself where it has images and text labels; None if neither."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    described = [file for file in files if _describes_data(file)]
    if len(described) > 1:
        raise FovealError(
            f"one YAML file must describe {root}, got {few([f.name for f in described])}; name it as data"
        )
    if described:
        return described[0]
    return root if _label_folders(root) else None


def _describes_data(file: Path) -> bool:
    content = _yaml(file)
    return (
        isinstance(content, dict) and "names" in content and any(part in content for part in ("train", "val"))
    )


def _yaml(file: Path, loader: Any = yaml.SafeLoader) -> Any:
    if file.stat().st_size > LARGEST_YAML:
        raise FovealError(f"a data set's YAML file may have at most {LARGEST_YAML} bytes, got more in {file}")
    try:
        return yaml.load(read_text(file), Loader=loader)
    except yaml.YAMLError as error:
        raise FovealError(
            f"a data set's YAML file must be YAML, got {file}: {' '.join(str(error).split())}"
        ) from None


def _label_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Part ("" for none) -> (images, labels), in the layouts of `foveal.data.sources.pairs`, where labels are text."""
    found: dict[str, tuple[Path, Path]] = {}
    images, labels = root / "images", root / "labels"
    if images.is_dir() and labels.is_dir():
        for folder in folders_in(images):
            part = split_of(folder.name)
            if part and (labels / folder.name).is_dir():
                found[part] = (folder, labels / folder.name)
        found = found or {"": (images, labels)}
    for folder in folders_in(root):
        part = split_of(folder.name)
        if part and (folder / "images").is_dir() and (folder / "labels").is_dir():
            found[part] = (folder / "images", folder / "labels")
    return found if any(any(labels.rglob("*.txt")) for _, labels in found.values()) else {}


def read_yolo(root: Path, split: str, *, classes: Sequence[str] | None = None) -> Annotations:
    """The images and boxes of one part. See `foveal.data.sources.detection.open_detection`.

    Args:
        root: the YAML file, or the folder it lies in, or a folder with ``images``, ``labels`` and a class list.
        classes: names in the order of the labels; where no file has names, that of the numbers.

    Raises:
        FovealError: no such part, or names that do not fit.
    """
    found = find_yolo(root)
    if found is None:
        raise FovealError(
            f"YOLO data must have a data.yaml, or folders images and labels, got neither in {root}"
        )
    if found.is_file():
        base, names, pairs, divide = _from_yaml(found, split)
        keypoints = _keypoints(found)
    else:
        base, parts, keypoints = root, _label_folders(root), 0
        part, divide = choose_part(f"YOLO data {root}", [name for name in parts if name], split)
        folder, labels = parts[part or ""]
        names = _listed_names([root, folder.parent, labels, labels.parent], classes)
        pairs = {image: _mirrored(image, folder, labels) for image in _images_in(folder)}
    classes = list(classes or names)
    numbers = renumbered(names, classes)
    findings: list[Finding] = []
    images, without = [], 0
    identity = 1
    for number, (image, label) in enumerate(sorted(pairs.items()), start=1):
        rows: list[dict[str, Any]] = []
        if label.is_file():
            rows = _rows(label, base, numbers, identity, findings, keypoints)
            identity += len(rows)
        else:
            without += 1
        images.append(boxed_image(_below(base, image), number, rows, relative=True))
    left_out = _orphans(base, pairs)
    notes = [f"{without} of {len(pairs)} {NO_FILE}"] if without else []
    stored = {label: number for number, label in numbers.items()}
    ids = [stored.get(label, label) for label in range(len(classes))]
    return Annotations(base, images, classes, ids, findings, left_out, divide, notes)


def _listed_names(folders: Sequence[Path], classes: Sequence[str] | None) -> list[str]:
    """The names in the order of the numbers: those of a list, or where there is none those given."""
    try:
        return find_class_list(folders).names
    except FovealError:
        if not classes:
            raise
        return list(classes)


def _from_yaml(file: Path, split: str) -> tuple[Path, list[str], dict[Path, Path], bool]:
    content = _yaml(file)
    if not isinstance(content, dict):
        raise FovealError(
            f"a data set's YAML file must map names to values, got {type(content).__name__} in {file}"
        )
    # as they are written: YAML would make a truth value of a class called no, and a number of one called 007
    names = _names(_yaml(file, yaml.BaseLoader).get("names"), content.get("nc"), file)
    parts = {part: content[part] for part in ("train", "val", "test") if content.get(part)}
    part, divide = choose_part(f"YOLO data {file}", parts, split)
    if part is None:
        raise FovealError(f"a data set's YAML file must have train or val, got neither in {file}")
    given = parts[part] if isinstance(parts[part], list) else [parts[part]]
    pairs: dict[Path, Path] = {}
    base = file.parent.resolve()
    for one in given:
        place = _place(base, content.get("path"), str(one), file)
        found = _listed_in(place) if place.is_file() else _images_in(place)
        if not found:
            raise FovealError(
                f"a part of YOLO data must hold images, got none in {place}, which {part} of {file} names"
            )
        pairs |= {image: label_file(image) for image in found}
    return base, names, pairs, divide


def _keypoints(file: Path) -> int:
    """How many values of keypoints follow each box."""
    shape = _yaml(file).get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n > 0 for n in shape)):
        raise FovealError(f"kpt_shape must be two whole numbers above 0, got {shape!r} in {file}")
    return shape[0] * shape[1]


def _names(value: Any, count: Any, file: Path) -> list[str]:
    """A list, or a mapping from 0, 1, 2, ..."""
    if isinstance(value, dict):
        numbers = [str(number) for number in range(len(value))]
        if {*value} != {*numbers}:
            raise FovealError(
                f"numbers of names must count from 0, got {few(list(map(str, value)))} in {file}"
            )
        value = [value[number] for number in numbers]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise FovealError(f"names must be a list of classes, got {value!r} in {file}")
    if count is not None and count != len(value):
        raise FovealError(f"nc must be the number of names, {len(value)}, got {count} in {file}")
    return value


def _place(base: Path, path: Any, given: str, file: Path) -> Path:
    """A folder or a list of files: below ``path``, or below the YAML's folder, as some exports have one ../ more."""
    starts, given = [base / with_slashes(str(path))] if path else [], with_slashes(given)
    tried = [start / name for name in (given, given.removeprefix("../")) for start in [*starts, base]]
    for candidate in tried:
        if candidate.exists():
            return candidate.resolve()
    raise FovealError(f"a part of YOLO data must exist, got {given} in {file}, looked for as {tried[0]}")


def _images_in(folder: Path) -> list[Path]:
    return [folder / name for name in survey_images(folder).images]


def _listed_in(file: Path) -> list[Path]:
    lines = [with_slashes(line.strip()) for line in read_text(file).splitlines()]
    return [(file.parent / line).resolve() for line in lines if line and is_image_name(line)]


def label_file(image: Path) -> Path:
    """Where the labels of an image are: the last folder called images becomes labels, else beside the image.

    Example:
        >>> label_file(Path("data/images/train/1.jpg")).as_posix()
        'data/labels/train/1.txt'
    """
    parts = list(image.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _mirrored(image: Path, images: Path, labels: Path) -> Path:
    return (labels / image.relative_to(images)).with_suffix(".txt")


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _rows(
    file: Path, base: Path, numbers: Mapping[int, int], first_id: int, findings: list[Finding], keypoints: int
) -> list[dict[str, Any]]:
    """The boxes of one label file; outlines count by the box around them, ``keypoints`` values behind a box do not."""
    rows: list[dict[str, Any]] = []
    name = _below(base, file)
    try:
        lines = read_text(file).splitlines()
    except (FovealError, OSError) as error:
        findings.append(Finding("label files that cannot be read", "error", name, str(error)))
        return rows
    for number, line in enumerate(lines, start=1):
        words, where = line.split(), f"{name}:{number}"
        if not words:
            continue
        try:
            label, *values = (float(word) for word in words)
        except ValueError:
            findings.append(Finding("lines that are no numbers", "error", where, f"got {line[:60]!r}"))
            continue
        if keypoints and len(values) == 4 + keypoints:
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            text = f"a line must be class x y width height, or class and an outline, got {len(words)} values"
            findings.append(Finding("lines of a wrong length", "error", where, text))
            continue
        if label not in numbers:
            text = f"a class must be 0 to {max(numbers)}, as names counts from 0, got {label:g}"
            findings.append(Finding("boxes of unknown classes", "error", where, text))
            continue
        if max(values) > LARGEST_SHARE:
            text = f"values must be shares of the image, 0 to 1, got {max(values):g}; pixels?"
            findings.append(Finding("values that are no shares", "error", where, text))
            continue
        box = _corners(values)
        rows.append({"box": box, "label": numbers[int(label)], "id": first_id + len(rows), "place": where})
    return rows


def _corners(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _orphans(base: Path, pairs: Mapping[Path, Path]) -> dict[str, str]:
    """Label files without an image, in the folders of those that have one."""
    used = set(pairs.values())
    # darknet's lists of classes lie among the labels
    lists = {"classes.txt", "labels.txt"}
    folders = {label.parent for label in used}
    orphans = [
        file
        for folder in sorted(folders)
        if folder.is_dir()
        for file in sorted(folder.glob("*.txt"))
        if file not in used and file.name not in lists
    ]
    return {_below(base, file): "a label file without an image" for file in orphans}
