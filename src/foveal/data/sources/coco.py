"""Boxes in the JSON of COCO: one file a part, as COCO itself, Roboflow, CVAT, Label Studio and others write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.data.boxes import Annotations, boxed_image
from foveal.data.dataset import few
from foveal.data.findings import Finding
from foveal.data.sources.lines import read_json_lists, with_slashes
from foveal.data.split import choose_part, splits_in
from foveal.errors import FovealError
from foveal.image_files import folders_in, survey_images

LARGEST_ID = 2**63
PROBED = 32  # file names by which the folder of the images is found


def find_coco(root: Path) -> dict[str, list[Path]]:
    """Split ("" for none) -> the JSON files below a folder that look like COCO's, or the file itself."""
    if root.is_file():
        return {"": [root]}
    folders = [root, *folders_in(root)]
    found: dict[str, list[Path]] = {}
    for folder in folders:
        files = sorted(
            path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith(".")
        )
        for file in files:
            if not _looks_like_coco(file):
                continue
            spoken = splits_in(file.stem) or (splits_in(folder.name) if folder != root else set())
            found.setdefault(spoken.pop() if len(spoken) == 1 else "", []).append(file)
    return found


def _looks_like_coco(path: Path) -> bool:
    """By its first and last bytes: three lists, of which the file may be too large to be read just to look.

    A file that ends too early has one of them, perhaps: it is taken, so that reading it says what is wrong.
    """
    with path.open("rb") as file:
        head = file.read(2**16)
        length = file.seek(0, 2)
        file.seek(max(0, length - 2**16))
        both = head + file.read()
    if not head.lstrip(b"\xef\xbb\xbf \n\r\t").startswith(b"{"):
        return False
    named = sum(name in both for name in (b'"images"', b'"annotations"', b'"categories"'))
    return named >= (2 if both.rstrip().endswith(b"}") else 1)


def read_coco(
    root: Path,
    split: str,
    *,
    annotations: str | None = None,
    images: str | None = None,
    box_format: str | None = None,
) -> Annotations:
    """The images and boxes of one COCO JSON file. See `foveal.data.sources.detection.open_detection`.

    Args:
        root: the folder of the data set, or the JSON file.
        annotations: the JSON file, below ``root``, where several could be meant.
        images: the folder of the images, below ``root``.
        box_format: "xywh" (COCO's own) or "xyxy".

    Raises:
        FovealError: no such file, or one without what COCO's have; the message has the line.
    """
    parts = find_coco(root)
    file, divide = _file_of(root, parts, split, annotations)
    content, lines = read_json_lists(file)
    entries = {name: _list(file, content, name) for name in ("images", "annotations", "categories")}
    at = {name: [f"{file.name}:{line}" for line in lines.get(name, [])] for name in entries}
    classes, ids = _categories(entries["categories"], at["categories"])
    place_of = {identity: label for label, identity in enumerate(ids)}
    findings: list[Finding] = []
    listed = _listed(entries["images"], at["images"], findings)
    rows = _rows(entries["annotations"], at["annotations"], listed, place_of, box_format or "xywh", findings)
    names = [with_slashes(str(image["file_name"])) for image in listed.values()]
    base = root if root.is_dir() else root.parent
    where = _image_folder(base, file, names, images)
    chosen = [
        boxed_image(
            (where / name).relative_to(base).as_posix()
            if (where / name).is_relative_to(base)
            else str(where / name),
            identity,
            rows[identity],
            size=_size(image),
        )
        for (identity, image), name in zip(listed.items(), names, strict=True)
    ]
    path_of = {name: image.path for name, image in zip(names, chosen, strict=True)}
    findings = [finding._replace(image=path_of.get(finding.image, finding.image)) for finding in findings]
    left_out = _unlisted(
        base, where, [image.path for image in chosen], [f for fs in parts.values() for f in fs], file
    )
    return Annotations(base, chosen, classes, ids, findings, left_out, divide)


def _file_of(root: Path, parts: Mapping[str, list[Path]], split: str, asked: str | None) -> tuple[Path, bool]:
    """The JSON file of a split, and whether train and val are to be split off it."""
    if asked is not None:
        file = root / asked if root.is_dir() else Path(asked)
        if not file.is_file():
            raise FovealError(f"annotations must be a file below {root}, got {asked}")
        return file, split != "test" and not splits_in(file.stem)
    named = [name for name in parts if name]
    part, divide = choose_part(f"COCO data {root}", named, split)
    files = parts[part or ""]
    # COCO's own archive has captions and key points beside the boxes
    files = [file for file in files if "instances" in file.stem] or files
    if len(files) > 1:
        raise FovealError(
            f"one annotation file must hold for {split}, got {few([f.relative_to(root).as_posix() for f in files])} in "
            f"{root}; choose by option annotations"
        )
    return files[0], divide


def _list(file: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = content.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise FovealError(
            f"COCO annotations must have lists of images, annotations and categories, got {type(value).__name__} for "
            f"{name} in {file}"
        )
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST_ID <= value < LARGEST_ID


def _categories(entries: Sequence[dict[str, Any]], at: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names and ids in the order of the ids."""
    for entry, where in zip(entries, at, strict=True):
        if not _whole(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise FovealError(f"a category must have a whole number id and a name, got {entry} in {where}")
    ordered = sorted(entries, key=lambda entry: entry["id"])
    ids = [entry["id"] for entry in ordered]
    repeated = sorted({identity for identity in ids if ids.count(identity) > 1})
    if repeated:
        raise FovealError(f"ids of categories must differ, got {repeated[0]} more than once in {at[0]}")
    return [entry["name"] for entry in ordered], ids


def _listed(
    entries: Sequence[dict[str, Any]], at: Sequence[str], findings: list[Finding]
) -> dict[int | str, dict[str, Any]]:
    """Id -> entry of each image."""
    listed: dict[int | str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for entry, where in zip(entries, at, strict=True):
        identity, name = entry.get("id"), entry.get("file_name")
        if not isinstance(identity, int | str) or not isinstance(name, str) or not name:
            raise FovealError(f"an image must have an id and a file_name, got {entry} in {where}")
        if identity in listed:
            raise FovealError(f"ids of images must differ, got {identity!r} for a second time in {where}")
        if name in names:
            text = f"{name} is listed as in {names[name]}, under another id"
            findings.append(Finding("images that are listed twice", "warning", where, text))
        names.setdefault(name, where)
        listed[identity] = entry
    return listed


def _rows(
    entries: Sequence[dict[str, Any]],
    at: Sequence[str],
    listed: Mapping[int | str, Any],
    place_of: Mapping[int, int],
    box_format: str,
    findings: list[Finding],
) -> dict[int | str, list[dict[str, Any]]]:
    """Image id -> its annotations."""
    rows: dict[int | str, list[dict[str, Any]]] = {identity: [] for identity in listed}
    taken: set[int] = set()
    for number, (entry, line) in enumerate(zip(entries, at, strict=True)):
        identity = entry.get("id")
        where = f"{line}, annotation {identity if identity is not None else f'number {number + 1}'}"
        box, image, category = entry.get("bbox"), entry.get("image_id"), entry.get("category_id")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            text = f"left out: bbox must be four numbers, got {box}"
            findings.append(Finding("annotations without a box", "warning", where, text))
            continue
        if not isinstance(image, int | str) or image not in rows:
            text = f"left out: image_id must be that of a listed image, got {image!r}"
            findings.append(Finding("boxes of images that are not listed", "warning", where, text))
            continue
        if not isinstance(category, int) or category not in place_of:
            known = few([str(known) for known in place_of])
            text = f"category_id must be one of {known}, got {category!r}"
            findings.append(
                Finding("boxes of unknown classes", "error", where, text, str(listed[image]["file_name"]))
            )
            continue
        if not _whole(identity) or identity in taken:
            identity = number + 1 if identity is None else identity
            if not _whole(identity) or identity in taken:
                text = f"the id of an annotation must be a whole number of its own, got {identity!r}"
                findings.append(Finding("ids that are no numbers or there twice", "note", where, text))
                identity = number + 1
        if identity == 0:
            text = "COCO's own evaluation takes id 0 for 'not found'; here it is counted right"
            findings.append(Finding("annotations with id 0", "note", where, text))
        assert identity is not None
        taken.add(identity)
        x1, y1, x2, y2 = box if box_format == "xyxy" else (box[0], box[1], box[0] + box[2], box[1] + box[3])
        area = entry.get("area")
        rows[image].append(
            {
                "box": (x1, y1, x2, y2),
                "label": place_of[category],
                "crowd": bool(entry.get("iscrowd", 0)),
                "area": area if isinstance(area, int | float) else float("nan"),
                "id": identity,
                "place": where,
            }
        )
    return rows


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (
        (height, width) if isinstance(height, int) and isinstance(width, int) and height * width > 0 else None
    )


def _image_folder(root: Path, file: Path, names: Sequence[str], asked: str | None) -> Path:
    """The folder that the file names are below: the only one, or the first, with the most of them."""
    if asked is not None:
        if not (root / asked).is_dir():
            raise FovealError(f"images must be a folder below {root}, got {asked}")
        return root / asked
    beside = file.parent
    candidates = [beside, root, *folders_in(root), *folders_in(beside)]
    candidates += [inner for folder in candidates[2:] for inner in folders_in(folder)]
    step = max(1, len(names) // PROBED)
    probed = names[::step]
    counts = {
        folder: sum((folder / name).is_file() for name in probed) for folder in dict.fromkeys(candidates)
    }
    best = max(counts, key=lambda folder: counts[folder])
    if probed and counts[best] == 0:
        raise FovealError(
            f"the images of {file.name} must lie beside it or in a folder of {root}, got none such as {probed[0]}; "
            "name their folder by option images"
        )
    return best


def _unlisted(
    root: Path, where: Path, used: Sequence[str], files: Sequence[Path], chosen: Path
) -> dict[str, str]:
    """Images beside those that the file lists, which no other annotation file lists either."""
    survey = survey_images(where)
    prefix = where.relative_to(root).as_posix() if where.is_relative_to(root) else str(where)
    below = {name: name if prefix == "." else f"{prefix}/{name}" for name in survey.images}
    unlisted = {path: name for name, path in below.items() if path not in set(used)}
    for other in files if unlisted else ():
        if other != chosen:
            try:
                content, _ = read_json_lists(other)
            except FovealError:
                continue
            elsewhere = {
                with_slashes(str(entry.get("file_name")))
                for entry in content.get("images", ())
                if isinstance(entry, dict)
            }
            unlisted = {path: name for path, name in unlisted.items() if name not in elsewhere}
    found = dict.fromkeys(
        unlisted, f"an image that {chosen.name} does not list, which is no image without objects"
    )
    return {**survey.left_out, **found}
