"""The verbs ``foveal look`` and ``foveal serve``: from what a person types to pictures, numbers and a page.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveal.errors import FovealError

if TYPE_CHECKING:
    from torch import Tensor

    from foveal.look.network import Network

DRAWN = 12
SCORED = 256
IN_PAGE = 24


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
) -> int:
    """Show what a trained network attends to: pictures of every site, one page with all maps, or numbers.

    Args:
        source: An image file, a folder of images, or a data set: "scenes", a folder with one folder a class, a
            Parquet file or folder, torchvision:NAME.
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors. Default: the small network
            that comes with foveal, trained on the bundled scenes.
        query: Pixel y,x of the image whose attention row is drawn. Default: at each site the point whose row
            differs most from the others.
        sites: Only sites whose path matches, such as "layer3.*"; quote it.
        grad_cam: Also draw Grad-CAM at each site, for comparison.
        score: Instead of pictures, measure over the data set: entropy, query dependence, gates, contribution and,
            where masks or boxes are known, how much of the attention lies on the object, against chance; with
            deletion and insertion curves against random order and Grad-CAM.
        html: Write only one HTML file to this path, with the maps inside and no other file.
        out: Folder to write to; must be new or empty. Default: the first free runs/look/NAME.
        split: Which part of a data set.
        images: How many images at most. Default: 12 pictures, or 256 to score.
        data_options: More options of the data set. Default: those of the training, where source is its data.
    """
    from foveal.look.images import images_of
    from foveal.look.network import open_network

    if images is not None and images < 1:
        raise FovealError(f"images must be at least 1, got {images}")
    if score and (html is not None or query is not None or grad_cam):
        raise FovealError("score must be given without html, query and grad_cam, for it draws no image")
    pixel = _pixel(query)
    network = open_network(weights)
    options = data_options or (network.data_options if source == network.data else {})
    if score:
        return _score(network, source, sites, out, split, images or SCORED, options)
    samples = images_of(network.task, source, split, images or DRAWN, options)
    if html is not None:
        _write_page(network, samples, Path(html))
        return 0
    folder = _new_folder(out, source)
    pictures = 0
    for name, image in samples:
        made = _draw(network, name, image, pixel, sites, grad_cam, folder)
        pictures += made
        print(f"{name}: {made} pictures")
    _write_page(network, samples, folder / "index.html")
    print(f"{pictures} pictures in {folder}; open {folder / 'index.html'} to move over them")
    return 0


def serve(
    weights: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_hosts: list[str] | None = None,
) -> int:
    """Open a page on this machine where one moves over an image and sees what each point attends to.

    Args:
        weights: Weights files of runs; repeat the option to compare several side by side. Default: the small
            network that comes with foveal, trained on the bundled scenes.
        host: Address to listen on. The default is reachable from this machine alone; anybody who can reach the
            address may use the page.
        port: Port to listen on.
        allow_hosts: Names besides localhost and IP addresses by which the page may be called.
    """
    import socket

    from foveal.look.images import bundled_images
    from foveal.look.network import open_network
    from foveal.look.serve import make_app, run_server

    networks = [open_network(path) for path in weights or [None]]
    if not 0 <= port <= 65535:
        raise FovealError(f"port must be from 0 to 65535, got {port}")
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    app = make_app(networks, bundled_images(task=networks[0].task), allow_hosts=tuple(allow_hosts or ()))
    shown = f"[{host}]" if ":" in host else host
    print(f"open http://{shown}:{port} (Ctrl-C ends)", flush=True)
    run_server(app, listener)
    return 0


# ------------------------------------------------------------------------------------------------------- pictures


def _draw(
    network: Network,
    name: str,
    image: Tensor,
    pixel: tuple[int, int] | None,
    sites: str,
    cam: bool,
    folder: Path,
) -> int:
    """Every picture of one image; returns how many."""
    from fnmatch import fnmatchcase

    from foveal.look import draw
    from foveal.look.cam import grad_cam
    from foveal.look.score import automatic_query

    view = network.view({"image": image})["image"]
    point = network.point((image.shape[1], image.shape[2]), pixel) if pixel is not None else None
    prediction, seen = network.look(view)
    chosen = [r for r in seen.values() if fnmatchcase(r.name, sites) or fnmatchcase(r.name, f"{sites}.*")]
    if not chosen:
        raise FovealError(f"sites must match one of {', '.join(seen)}, got {sites!r}")
    count = 0
    if prediction.class_map is not None:
        figure = draw.draw_segmentation(view, prediction.class_map, network.classes, network.weights)
        figure.savefig(folder / f"{Path(name).stem}--classes.png")
        count += 1
    for record in chosen:
        shows = record.shows()
        figures: dict[str, Any] = {}
        if "channel_gate" in shows:
            figures["gates"] = draw.draw_gates(record)
        if "spatial_mask" in shows:
            figures["mask"] = draw.draw_mask(record, view)
        if "rows" in shows:
            query = point if point is not None else record.pixel(automatic_query(record))
            figures["row"] = draw.draw_rows(record, view, [query])
            figures["atlas"] = draw.draw_atlas(record, view)
        if "channel_matrix" in shows:
            figures["channels"] = draw.draw_channels(record)
        if cam and not record.tokens:
            cams, _ = grad_cam(network.net, network.prepare(view)[None], [record.name])
            figures["grad-cam"] = draw.draw_grad_cam(
                record, view, cams[record.name][0], prediction.labels[0][0]
            )
        for kind, figure in figures.items():
            figure.savefig(folder / f"{Path(name).stem}--{record.name}--{kind}.png")
        count += len(figures)
    return count


def _write_page(network: Network, samples: list[tuple[str, Tensor]], path: Path) -> None:
    from foveal.files import write_text
    from foveal.look.html import page_with
    from foveal.look.payload import image_payload

    images = []
    for name, image in samples[:IN_PAGE]:
        view = network.view({"image": image})["image"]
        images.append(
            {"name": name, "networks": [image_payload(network, name, view, *network.look(view), rows=True)]}
        )
    note = f"This file holds the first {IN_PAGE} of {len(samples)} images." if len(samples) > IN_PAGE else ""
    text = page_with(images, note)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(f"{path}: {len(text) / 1e6:.1f} MB, opens without a network")


# -------------------------------------------------------------------------------------------------------- numbers


def _score(
    network: Network,
    source: str,
    sites: str,
    out: str | None,
    split: str,
    limit: int,
    options: dict[str, Any],
) -> int:
    from foveal.look import draw
    from foveal.look.images import batches_of
    from foveal.look.profile import gate_profile
    from foveal.look.report import table, write_scores
    from foveal.look.score import score_sites

    batches = batches_of(network, source, split, limit, options)
    scores = score_sites(network.net, batches, sites=sites)
    folder = _new_folder(out, source)
    total = sum(len(batch["image"]) for batch in batches)
    print(f"{network.weights} on {total} images of {source}; mean [95 % interval over images]\n")
    print(table(scores))
    write_scores(scores, folder)
    if all("label" in batch for batch in batches):
        profile = gate_profile(network.net, batches, len(network.classes))
        if profile:
            figure = draw.draw_gate_profile(profile, network.classes, network.weights)
            figure.savefig(folder / "gates-by-class.png")
    print(f"\nscores.csv and scores.json in {folder}")
    return 0


# -------------------------------------------------------------------------------------------------- what is asked


def _pixel(query: str | None) -> tuple[int, int] | None:
    if query is None:
        return None
    parts = query.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise FovealError(f"query must be y,x in pixels of the image, such as 120,64, got {query!r}")
    return int(parts[0]), int(parts[1])


def _new_folder(out: str | None, source: str) -> Path:
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FovealError(f"out must be a new or empty folder, got {folder}")
    else:
        name = Path(source).stem.replace(":", "_") or "here"
        names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10**6))
        folder = next(Path("runs/look") / one for one in names if not (Path("runs/look") / one).exists())
    folder.mkdir(parents=True, exist_ok=True)
    return folder
