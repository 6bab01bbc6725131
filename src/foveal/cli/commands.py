"""The commands: from what a person types to a run, figures, answers, pictures or a page.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import glob
import sys
from pathlib import Path
from typing import Any, Literal

from foveal.cli.terminal import write_error, write_out
from foveal.errors import FovealError
from foveal.train.config import TrainConfig

DEFAULT_PICTURES = 12
DEFAULT_SCORED = 256


def train(config: TrainConfig, resume: str | None = None) -> int:
    """Train a network, with attention blocks if wanted, and keep all it made in one run folder.

    Args:
        config: every option of training.
        resume: Folder of a run that was stopped; it continues as if it never had been. auto: continue the run in
            --out if there is one, else begin it.
    """
    from foveal.cli.tables import run_summary
    from foveal.train.run import fit

    result = fit(config, resume=resume)
    if result.first_process:
        _print(run_summary(result))
    return 0


def evaluate(
    weights: str,
    inference: dict[str, Any],
    data: str | None = None,
    split: Literal["train", "val", "test"] = "val",
    data_options: dict | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    blocks: list[str] | None = None,
    out: str | None = None,
    html: str | None = None,
    results: str | None = None,
) -> int:
    """Measure trained weights on a data set: the figures of their task.

    Args:
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors, or a model with published weights.
        inference: options of the task.
        data: As for train. Default: the data the weights were trained on.
        split: Which part of the data.
        data_options: More options of the data set. On the data of the training its options hold, but for these.
        batch_size: Images at a time. Default: twice the task's number in training.
        workers: Processes that read images. Default: none for small images, else one a core up to 8.
        device: cpu, cuda or auto.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
        out: Also write the figures to this JSON file, which must not exist.
        html: Also write one page with figures by class and the worst images to this file, which must not exist.
        results: To detect: also write every detection to this JSON file, as COCO results with the annotations' own ids.
    """
    from foveal.evaluate import evaluate
    from foveal.evaluation_page import write_page
    from foveal.files import write_json
    from foveal.inference import predictor

    for name, path in (("out", out), ("html", html), ("results", results)):
        if path is not None and Path(path).exists():
            raise FovealError(f"{name} must not exist yet, got {path}, which would be overwritten")

    ready = predictor(weights, device, blocks)
    if results is not None and not hasattr(ready.task, "results"):
        raise FovealError(f"results are for weights that detect, got those of task {ready.info.task}")
    result = evaluate(
        ready,
        data,
        split=split,
        data_options=data_options,
        inference=inference,
        batch_size=batch_size,
        workers=workers,
    )
    _print(ready.task.show(result))
    if out is not None:
        write_json(Path(out), {**result.to_dict(), "weights": weights})
    if results is not None:
        write_json(Path(results), ready.task.results(result.gathered, ready.info))  # pyright: ignore[reportAttributeAccessIssue]
    if html is not None:
        write_page(Path(html), result, ready)
        sys.stdout.write(f"open {html} for figures by class and the worst images\n")
    return 0


def predict(
    weights: str,
    inference: dict[str, Any],
    paths: list[str] | None = None,
    format: Literal["csv", "json"] | None = None,
    out: str | None = None,
    batch_size: int = 32,
    every: int = 1,
    watch: bool = False,
    device: str = "auto",
    blocks: list[str] | None = None,
) -> int:
    """Answer for image files, folders of them, videos and cameras: labels, or masks with pictures.

    Labels and probabilities go to the standard output; of weights that segment, masks, colours, overlays and the
    share of each class go to a folder.

    Args:
        paths: Image files, folders to search for them, video files (pip install "foveal[video]"), or one camera:
            camera:0; none for weights that generate.
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors, or a model with published weights.
        inference: options of the task.
        format: csv: one row a file; json: a list, and the unreadable files with the reason. Default: as the name of
            --out ends, else csv.
        out: Write to this file instead, which must not exist; to segment: to this folder, new or empty, by default
            runs/predict/MODEL.
        batch_size: Images at a time, fewer where they are large.
        every: Of a video or a camera, take each so-many-th frame.
        watch: Answer for what comes into the one folder that is given, too, until Ctrl-C.
        device: cpu, cuda or auto.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
    """
    from foveal.inference import predictor
    from foveal.predict import predict, predict_as_they_come

    # before weights are read
    endless = watch or any(path.startswith("camera:") for path in paths or [])
    paths = [one for path in paths or [] for one in _matching(path)]
    for path in paths:
        if not Path(path).exists() and not endless:
            raise FileNotFoundError(f"a path must exist, got {path}")
    if endless and (len(paths) != 1 or format == "json"):
        raise FovealError(
            f"a camera or --watch answers for one source, as csv, got {len(paths)} paths and {format or 'csv'}"
        )
    if format is None:
        format = "json" if out is not None and out.endswith(".json") else "csv"
    ready = predictor(weights, device, blocks)
    if endless:
        found = predict_as_they_come(
            ready, (paths or [])[0], _print_at_once, out=out, inference=inference, every=every
        )
    else:
        found = predict(
            ready,
            paths or [],
            out=out,
            format=format,
            inference=inference,
            batch_size=batch_size,
            every=every,
        )
    sys.stdout.write(found.text)
    for reason in found.unreadable.values():
        write_error(f"predict: skipped: {reason}")
    if found.unreadable:
        broken = len(found.unreadable)
        write_error(f"predict: {broken} of {found.count + broken} files could not be read")
    return 0 if found.count else 2


def _matching(path: str) -> list[str]:
    """The files of a pattern that no shell has replaced, as it was quoted or on Windows; a path is itself."""
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def check(
    data: str,
    task: str = "classify",
    splits: list[str] | None = None,
    data_options: dict | None = None,
    out: str | None = None,
) -> int:
    """Read every annotation and image of a data set once, and say by file and line what is wrong.

    Args:
        data: As for train.
        task: Whose annotations to look at: classify, segment, detect, generate or clips.
        splits: Which of train, val and test; repeatable. Default: those that are there.
        data_options: More options of the data set.
        out: Folder for a page with pictures of the worst images and a table of all findings; must be new or empty.
            Default: the first free runs/check/NAME.
    """
    from foveal.check import check, summary

    found = check(data, task=task, data_options=data_options, splits=splits, out=out)
    _print(summary(found))
    return 0 if found.sound else 1


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
            Parquet file or folder, torchvision:NAME.
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
    from foveal.look.images import NamedImages
    from foveal.look.pictures import PageFile, PictureFolder, see

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
    if of_clips and (score or html is not None or grad_cam):
        raise FovealError("score, html and grad_cam are for images, got weights of clips")
    pixel = _point(query, ("t", "y", "x") if of_clips else ("y", "x"))
    options = data_options_for(ready.info, source, data_options or {}, ready.task)
    limit = images or (DEFAULT_SCORED if score else DEFAULT_PICTURES)
    named = NamedImages(ready.task, source, split, limit, options, ready.read)
    write_out("".join(f"{note}\n" for note in named.notes))
    if score:
        return _score(ready, named, sites, out)
    if of_clips:
        return _look_at_clips(ready, named, out, sites, pixel)
    if hasattr(ready.task, "look_pictures") and html is None:
        if grad_cam:
            raise FovealError(f"grad_cam must be left out for networks of task {ready.info.task}, got it")
        folder = _output_folder(out, named.source)
        at = None if pixel is None else (pixel[0], pixel[1])
        asked = query is not None or sites != "*"
        return _look_at_answers(
            ready,
            named,
            folder,
            PictureFolder(ready, folder, sites=sites, pixel=at, cam=False) if asked else None,
        )
    page, folder, pictures, total = PageFile(ready, sites), None, None, 0
    for name, image in named:
        seen = see(ready, name, image)
        page.add(seen)
        if html is None:
            if folder is None or pictures is None:
                folder = _output_folder(out, source)
                at = None if pixel is None else (pixel[0], pixel[1])
                pictures = PictureFolder(ready, folder, sites=sites, pixel=at, cam=grad_cam)
            made = pictures.draw(seen)
            total += made
            write_out(f"{name}: {made} pictures\n")
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


def _look_at_clips(ready: Any, named: Any, out: str | None, sites: str, voxel: tuple[int, ...] | None) -> int:
    """Pictures of each clip: its frames with the answer, and the row of a point over them."""
    from foveal.folders import UniqueNames, file_name
    from foveal.look.clips import write_clip_pictures

    folder, unique, total = _output_folder(out, named.source), UniqueNames(), 0
    for name, video in named:
        made = write_clip_pictures(ready, video, folder, unique(file_name(Path(name).stem)), sites, voxel)
        write_out(f"{name}: {made} pictures\n")
        total += made
    _write_skipped(named)
    write_out(f"{total} pictures in {folder}\n")
    return 0


def _score(ready: Any, named: Any, sites: str, out: str | None) -> int:
    from foveal.look.images import prepared_batches
    from foveal.look.pictures import write_site_scores
    from foveal.look.report import table

    batches = list(prepared_batches(ready, named))
    _write_skipped(named)
    folder = _output_folder(out, named.source)
    scores = write_site_scores(ready, batches, folder, sites)
    total = sum(len(batch["image"]) for batch in batches)
    title = f"{ready.name} on {total} images of {named.source}; mean [95 % interval over images]"
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


def serve(
    weights: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_hosts: list[str] | None = None,
    device: str = "auto",
    blocks: list[str] | None = None,
) -> int:
    """Open a page on this machine where one moves over an image and sees what each point attends to.

    It begins with a few validation images of the data that the first weights were trained on, where these are files of
    this machine, and with bundled images; any image can be dropped on it.

    Args:
        weights: Weights files of runs, or models with published weights; repeat the option to compare several side by
            side. Default: the small network that comes with foveal, trained on the bundled scenes.
        host: Address to listen on. The default is reachable from this machine alone; anybody who can reach the
            address may use the page.
        port: Port to listen on.
        allow_hosts: Names besides localhost and IP addresses by which the page may be called.
        device: cpu, cuda or auto.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
    """
    import socket

    from foveal.inference import open_bundled, predictor
    from foveal.look.images import bundled_images, own_images
    from foveal.look.page.server import make_app, run_server

    if not 0 <= port <= 65535:
        raise FovealError(f"port must be from 0 to 65535, got {port}")
    ready = [predictor(path, device, blocks) for path in weights or []] or [open_bundled()]
    for one in ready:
        if hasattr(one.task, "example_size"):
            raise FovealError(
                f"the page shows images, got weights of clips, {one.name}; foveal look draws them"
            )
    examples, note = own_images(ready[0])
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    app = make_app(ready, examples + bundled_images(ready[0].task), allow_hosts=tuple(allow_hosts or ()))
    shown = f"[{host}]" if ":" in host else host
    if note:
        write_out(f"{note}\n")
    print(f"open http://{shown}:{port} (Ctrl-C ends)", flush=True)
    run_server(app, listener)
    return 0


def show_plan(
    model: str,
    insert: list[str],
    start: Literal["identity", "paper"] = "identity",
    image_size: int | None = None,
    num_classes: int = 1000,
) -> int:
    """Show what an insertion would add at each site, in parameters, operations and bytes, without doing it.

    Args:
        model: A name from `foveal list`.
        insert: A block and where it goes, as for train. Repeatable.
        start: As for train.
        image_size: Side of the square images, in pixels. Default: the model's own.
        num_classes: Outputs of the network.
    """
    import torch

    import foveal

    net = foveal.create_model(model, num_classes=num_classes)
    example = None if image_size is None else torch.zeros(1, 3, image_size, image_size)
    for text in insert:
        wanted = {"start": start, "example": example, **foveal.parse_insertion(text)}
        print(foveal.plan(net, **wanted))
    return 0


def list_names(pattern: str = "*") -> int:
    """Print the names of networks that --model takes.

    Args:
        pattern: Names to show, such as "*cbam*"; quote it. A word without a star finds the names that hold it.
    """
    import foveal

    names = foveal.list_models(pattern) or foveal.list_models(f"*{pattern}*")
    if not names:
        raise FovealError(f"pattern must match a model name, got {pattern}")
    print("\n".join(names))
    return 0


def bench(
    what: Literal["ops", "export"],
    only: str | None = None,
    out: str | None = None,
    repeats: int = 9,
    threads: int | None = None,
) -> int:
    """Time every attention op against what it replaces, or what attention costs in each runtime.

    Args:
        what: ops: the operators here; export: networks with and without attention in PyTorch, ONNX Runtime, OpenVINO
            and AOTInductor.
        only: Run the cases, or networks, whose name contains this.
        out: Also write the figures, with machine and versions, to this JSON file.
        repeats: Interleaved rounds, of the gates four times as many; figures are medians.
        threads: PyTorch's threads. Default: as it starts.
    """
    if what == "export":
        from foveal.export.bench import bench_export

        return 0 if bench_export(only, out, repeats, threads) else 1
    from foveal.bench import bench_ops

    return 0 if bench_ops(only, out, repeats, threads) else 1


def export(
    weights: str,
    to: Literal["onnx", "openvino", "aotinductor", "pt2", "web"] = "onnx",
    static: bool = False,
    with_preprocessing: bool = False,
    half: bool = False,
    int8: bool = False,
    calibrate: str | None = None,
    images: str | None = None,
    image_size: int | None = None,
    out: str | None = None,
) -> int:
    """Write trained weights as a file for another runtime, with a script that uses it; both are proven on images.

    Args:
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors, or a model with published weights.
        to: onnx, openvino, aotinductor (machine code for this processor), pt2 (torch.export) or web (one page for a
            browser).
        static: One image of one size; by default batch, height and width are free.
        with_preprocessing: The file takes the bytes 0 to 255 of resized images and normalises them itself.
        half: Compute in float16.
        int8: Quantise, for onnx and openvino. Gates and softmax stay in float where that is more accurate.
        calibrate: For int8, a folder of images like those to come.
        images: Folder of your images, on which the file is compared with the network. Default: bundled ones.
        image_size: At which the network sees images. Default: as it was trained.
        out: Folder to write, which must not exist. Default: the first free runs/export/MODEL-FORMAT.
    """
    from foveal.export import export

    export(
        weights,
        to,
        static=static,
        with_preprocessing=with_preprocessing,
        half=half,
        int8=int8,
        calibrate=calibrate,
        images=images,
        image_size=image_size,
        out=out,
        say=lambda line: print(line, flush=True),
    )
    return 0


# ------------------------------------------------------------------------------------------------------------- output


def _print_at_once(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print(shown: Any) -> None:
    """To the standard output, as wide as the terminal, or unwrapped into a file."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(shown)
