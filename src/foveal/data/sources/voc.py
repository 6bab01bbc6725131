"""Boxes in the XML of PASCAL VOC: one file an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.data.boxes import Annotations, boxed_image
from foveal.data.dataset import few
from foveal.data.findings import Finding
from foveal.data.sources.lines import Element, read_text, read_xml
from foveal.data.split import choose_part, split_of
from foveal.errors import FovealError
from foveal.image_files import folders_in, survey_images

ANNOTATION_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def find_voc(root: Path) -> dict[str, tuple[Path, Path]]:
    """Part ("" for all of them together) -> (images, annotations) below a folder."""
    if not root.is_dir():
        return {}
    whole = _pair(root)
    if whole:
        return {"": whole}
    parts = {split_of(folder.name): _pair(folder) for folder in folders_in(root) if split_of(folder.name)}
    return {part: pair for part, pair in parts.items() if part and pair}


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """Images and XML files in two folders, or side by side."""
    for name in ANNOTATION_FOLDERS:
        annotations = folder / name
        if annotations.is_dir() and any(annotations.glob("*.xml")):
            images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), folder)
            return images, annotations
    return (folder, folder) if any(folder.glob("*.xml")) else None


def read_voc(
    root: Path, split: str, *, classes: Sequence[str] | None = None, voc_origin: int | None = None
) -> Annotations:
    """The images and boxes of one part. See `foveal.data.sources.detection.open_detection`.

    The parts are the lists of ``ImageSets/Main``, or folders called train, val and test.

    Args:
        classes: the names in the order of the labels; by default those of all files, sorted.
        voc_origin: 1: coordinates count from 1 and include the last pixel, PASCAL's rule and the default; 0: they are
            edges that count from 0.
    """
    if voc_origin not in (None, 0, 1):
        raise FovealError(f"voc_origin must be 0 or 1, got {voc_origin}")
    origin = 1 if voc_origin is None else voc_origin
    found = find_voc(root)
    lists = _lists(root) if "" in found else {}
    part, divide = choose_part(f"VOC data {root}", lists or [name for name in found if name], split)
    images_folder, folder = found[""] if "" in found else found[part or ""]
    findings: list[Finding] = []
    files = {name: sorted(folder.glob("*.xml")) for name, (_, folder) in found.items()}
    trees = {file: _tree(file, root, findings) for group in files.values() for file in group}
    named = {_text(o, "name") for tree in trees.values() if tree is not None for o in tree.find_all("object")}
    names = list(classes) if classes else sorted(named - {""})
    place_of = {name: label for label, name in enumerate(names)}
    survey = survey_images(images_folder)
    image_of = {Path(name).stem: name for name in survey.images}
    chosen, left_out = _chosen(
        root, lists.get(part or "") if part else None, folder, image_of, trees, images_folder
    )
    boxed, identity = [], 1
    for number, (stem, name) in enumerate(chosen, start=1):
        tree, where = trees.get(folder / f"{stem}.xml"), _below(root, folder / f"{stem}.xml")
        objects = tree.find_all("object") if tree is not None else []
        rows = []
        for element in objects:
            row = _row(element, where, place_of, origin, findings)
            if row is not None:
                rows.append({**row, "id": identity})
                identity += 1
        size = _size(tree) if tree is not None else None
        boxed.append(boxed_image(_below(root, images_folder / name), number, rows, size=size))
    # what is wrong with files of other parts is told when these are opened
    wanted = {_below(root, folder / f"{stem}.xml") for stem, _ in chosen}
    findings = [f for f in findings if f.where.partition(":")[0] in wanted]
    notes = []
    if voc_origin is None:
        notes.append(
            "boxes count from 1 and include the last pixel, as PASCAL VOC's own do; for files of tools that count from "
            "0: --data_options.voc_origin 0"
        )
    left_out = {**{_below(root, images_folder / n): why for n, why in survey.left_out.items()}, **left_out}
    return Annotations(root, boxed, names, list(range(1, len(names) + 1)), findings, left_out, divide, notes)


def _lists(root: Path) -> dict[str, list[str]]:
    """Split -> the names in ``ImageSets/Main``; trainval is no part of its own."""
    folder = root / "ImageSets" / "Main"
    found = {}
    for split in ("train", "val", "test"):
        file = folder / f"{split}.txt"
        if file.is_file():
            lines = [line.split() for line in read_text(file).splitlines()]
            # lists of one class have -1 behind the images without it
            found[split] = [words[0] for words in lines if words and words[-1] != "-1"]
    return found


def _chosen(
    root: Path,
    listed: Sequence[str] | None,
    folder: Path,
    image_of: Mapping[str, str],
    trees: Mapping[Path, Element | None],
    images_folder: Path,
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(name without suffix, image) of a part, and what is in none."""
    left_out = {}
    stems = sorted({file.stem for file in trees if file.parent == folder})
    if listed is None:
        for stem in sorted(set(image_of) - set(stems)):
            reason = "an image without an XML file, which is no image without objects"
            left_out[_below(root, images_folder / image_of[stem])] = reason
        listed = stems
    elif missing := [stem for stem in listed if stem not in stems]:
        for stem in missing:
            left_out[_below(root, folder / f"{stem}.xml")] = "listed in ImageSets/Main, and not there"
        listed = [stem for stem in listed if stem in stems]
    # an image that is missing is found unreadable later, by its name
    return [(stem, image_of.get(stem, f"{stem}.jpg")) for stem in listed], left_out


def _tree(file: Path, root: Path, findings: list[Finding]) -> Element | None:
    try:
        return read_xml(file)
    except (FovealError, OSError) as error:
        findings.append(Finding("XML files that cannot be read", "error", _below(root, file), str(error)))
        return None


def _text(element: Element, path: str) -> str:
    found = element.find(path)
    return found.text.strip() if found is not None else ""


def _row(
    element: Element, file: str, place_of: Mapping[str, int], origin: int, findings: list[Finding]
) -> dict[str, Any] | None:
    where, name = f"{file}:{element.line}", _text(element, "name")
    if name not in place_of:
        text = f"an object's name must be one of {few(list(place_of))}, got {name!r}"
        findings.append(Finding("boxes of unknown classes", "error", where, text))
        return None
    values = [_text(element, f"bndbox/{edge}") for edge in EDGES]
    try:
        x1, y1, x2, y2 = (float(value) for value in values)
    except ValueError:
        text = f"left out: bndbox must have {', '.join(EDGES)}, got {values}"
        findings.append(Finding("annotations without a box", "warning", where, text))
        return None
    return {"box": (x1 - origin, y1 - origin, x2, y2), "label": place_of[name], "place": where}


def _size(tree: Element) -> tuple[int, int] | None:
    try:
        height, width = int(float(_text(tree, "size/height"))), int(float(_text(tree, "size/width")))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
