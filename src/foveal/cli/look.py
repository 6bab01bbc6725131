"""``foveal look``: pictures, a page or numbers of what a trained network attends to.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.terminal import write_out

DEFAULT_PICTURES = 12
DEFAULT_SCORED = 256


def look(
    source: str,
    weights: str | None = None,
    query: str | None = None,
    sites: str = "*",
    grad_cam: bool = False,
    score: bool = False,
    html: str | None = None,
    out: str | None = None,
    split: Literal["train", "val", "test"] = "val",
    images: int | None = None,
    data_options: dict | None = None,
    device: str = "auto",
    blocks: list[str] | None = None,
) -> int:
    """Show what a trained network attends to: pictures of every site, one page with all maps, or numbers.

    Args:
        source: An image file, a folder of images, or a data set: "scenes", a folder with one folder a class, a
            Parquet file or folder, torchvision:NAME; of weights of clips videos and folders of frames. Of weights that
            generate seed:N, whose images are made.
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors, or a model with published
            weights. Default: the small network that comes with foveal, trained on the bundled scenes.
        query: Pixel y,x of the image whose attention row is drawn; of a clip t,y,x as the network sees it. Default: at
            each site the point whose row differs most from the others. Of detectors, whose answers are drawn by
            default, also the rows of this point.
        sites: Only sites whose path matches, such as "layer3.*"; quote it. Of detectors also these sites.
        grad_cam: Also draw Grad-CAM at each site, for comparison.
        score: Instead of pictures, measure over the data set: entropy, query dependence, gates, contribution and,
            where masks or boxes are known, how much of the attention lies on the object, against chance; with
            deletion and insertion curves against random order and Grad-CAM.
        html: Write only one HTML file to this path, with the maps of all sites inside and no other file.
        out: Folder to write to; must be new or empty. Default: the first free runs/look/NAME.
        split: Which part of a data set.
        images: How many images at most: of a folder the first, of a data set spread evenly over it. Default: 12 to
            draw, or 256 to score.
        data_options: More options of the data set. Default: those of the training, where source is its data.
        device: cpu, cuda or auto.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
    """
    from foveal.evaluate import data_options_for
    from foveal.inference import open_bundled, predictor
    from foveal.look.generated import GeneratedImages
    from foveal.look.images import NamedImages
    from foveal.look.pictures import PictureFolder, see

    if images is not None and images < 1:
        raise FovealError(f"images must be at least 1, got {images}")
    if score and (html is not None or query is not None or grad_cam):
        raise FovealError("score must be given without html, query and grad_cam, for it draws no image")
    if html is not None and (out is not None or query is not None or grad_cam):
        raise FovealError(
            "html must be given without out, query and grad_cam, for it writes that one file only"
        )
    ready = open_bundled() if weights is None else predictor(weights, device, blocks)
    of_clips = hasattr(ready.task, "example_size")
    if of_clips and grad_cam:
        raise FovealError("grad_cam is drawn over images, got weights of clips; score compares with it")
    point = _point(query, ("t", "y", "x") if of_clips else ("y", "x"))
    if hasattr(ready.task, "sample"):
        if score or grad_cam:
            raise FovealError("score and grad_cam are for images that are there, got weights that generate")
        made = GeneratedImages(ready, source, images or DEFAULT_PICTURES)
        return _look_at_sites(ready, made, made, html, out, sites, point, grad_cam)
    options = data_options_for(ready.info, source, data_options or {}, ready.task)
    limit = images or (DEFAULT_SCORED if score else DEFAULT_PICTURES)
    named = NamedImages(ready.task, source, split, limit, options, ready.read)
    write_out("".join(f"{note}\n" for note in named.notes))
    if score:
        return _score(ready, named, sites, out)
    if hasattr(ready.task, "look_pictures") and html is None:
        if grad_cam:
            raise FovealError(f"grad_cam must be left out for networks of task {ready.info.task}, got it")
        folder = _output_folder(out, named.source)
        asked = query is not None or sites != "*"
        return _look_at_answers(
            ready,
            named,
            folder,
            PictureFolder(ready, folder, sites=sites, point=point, cam=False) if asked else None,
        )
    seen = (see(ready, name, image) for name, image in named)
    return _look_at_sites(ready, named, seen, html, out, sites, point, grad_cam)


def _look_at_sites(
    ready: Any,
    named: Any,
    images: Iterable[Any],
    html: str | None,
    out: str | None,
    sites: str,
    point: tuple[int, ...] | None,
    grad_cam: bool,
) -> int:
    """A page with the maps of all sites of each image, and unless that alone is wanted a picture of each."""
    from foveal.look.pictures import PageFile, PictureFolder

    page, folder, pictures, total = PageFile(ready, sites), None, None, 0
    for seen in images:
        page.add(seen)
        if html is None:
            if folder is None or pictures is None:
                folder = _output_folder(out, named.source)
                pictures = PictureFolder(ready, folder, sites=sites, point=point, cam=grad_cam)
            made = pictures.draw(seen)
            total += made
            write_out(f"{seen.name}: {made} pictures\n")
    _write_skipped(named)
    if folder is None:
        write_out(page.write(Path(html or "")) + "\n")
        return 0
    write_out(page.write(folder / "index.html") + "\n")
    write_out(f"{total} pictures in {folder}; open {folder / 'index.html'} to move over them\n")
    return 0


def _look_at_answers(ready: Any, named: Any, folder: Path, sites: Any) -> int:
    """Pictures of what each answer looked at, where the task draws them itself; and of ``sites``, where asked for."""
    from foveal.folders import UniqueNames, file_name
    from foveal.look.pictures import save_picture, see

    unique, total = UniqueNames(), 0
    for name, image in named:
        stem = unique(file_name(Path(name).stem))
        for kind, picture in ready.task.look_pictures(ready, image):
            save_picture(picture, folder / f"{stem}--{file_name(kind)}.png")
            total += 1
        if sites is not None:
            total += sites.draw(see(ready, name, image))
        write_out(f"{name}: drawn\n")
    _write_skipped(named)
    write_out(f"{total} pictures in {folder}\n")
    return 0


def _score(ready: Any, named: Any, sites: str, out: str | None) -> int:
    from foveal.look.images import prepared_batches
    from foveal.look.pictures import write_site_scores
    from foveal.look.report import table
    from foveal.tasks import items_of

    batches = list(prepared_batches(ready, named))
    _write_skipped(named)
    folder = _output_folder(out, named.source)
    scores = write_site_scores(ready, batches, folder, sites)
    total = sum(len(batch["image"]) for batch in batches)
    items = items_of(ready.task)
    title = f"{ready.name} on {total} {items} of {named.source}; mean [95 % interval over {items}]"
    write_out(f"{title}\n\n{table(scores)}\n\nscores.csv and scores.json in {folder}\n")
    return 0


def _write_skipped(named: Any) -> None:
    write_out("".join(f"skipped: {' '.join(reason.split())}\n" for reason in named.unreadable.values()))


def _point(query: str | None, axes: tuple[str, ...]) -> tuple[int, ...] | None:
    if query is None:
        return None
    parts = query.split(",")
    if len(parts) != len(axes) or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        what = "y,x in pixels of the image, such as 120,64"
        if len(axes) == 3:
            what = "t,y,x in frames and pixels of the clip, such as 3,120,64"
        raise FovealError(f"query must be {what}, got {query!r}")
    return tuple(int(part) for part in parts)


def _output_folder(out: str | None, source: str) -> Path:
    from foveal.folders import new_folder, new_numbered_folder

    if out is not None:
        return new_folder(out)
    path = Path(source)
    return new_numbered_folder("runs/look", (path.stem if path.is_file() else path.name) or "here")
