"""The short commands: from what a person types to a run, figures, a plan or a file for another runtime.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.terminal import write_out
from foveal.train.config import TrainConfig


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
        html: Also write one page of figures and images to this file, which must not exist.
        results: To detect: also write every detection to this JSON file, as COCO results with the annotations' own ids.
    """
    from foveal.evaluate import evaluate
    from foveal.evaluation_page import write_page
    from foveal.files import write_json
    from foveal.folders import new_file
    from foveal.inference import predictor

    for name, path in (("out", out), ("html", html), ("results", results)):
        if path is not None:
            new_file(path, name)
        page = path is not None and Path(path).suffix.lower() in (".html", ".htm")
        if page and name != "html":
            raise FovealError(f"{name} is a JSON file, got {path}; option html writes a page")

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
        write_out(f"open {html} for figures and images\n")
    return 0


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


def show_plan(
    model: str,
    insert: list[str],
    start: Literal["identity", "paper"] = "identity",
    image_size: int | None = None,
    num_classes: int = 1000,
) -> int:
    """Show what an insertion would add at each site, in parameters, operations and bytes, without doing it.

    Args:
        model: A name from `foveal list`, or weights of a repository, hf-hub:user/name or local-dir:folder.
        insert: A block and where it goes, as for train. Repeatable.
        start: As for train.
        image_size: Side of the square images, in pixels. Default: the model's own.
        num_classes: Outputs of the network.
    """
    import torch

    import foveal
    from foveal.hub import is_repository

    net = foveal.load(model) if is_repository(model) else foveal.create_model(model, num_classes=num_classes)
    example = None if image_size is None else torch.zeros(1, 3, image_size, image_size)
    for text in insert:
        wanted = {"start": start, "example": example, **foveal.parse_insertion(text)}
        write_out(f"{foveal.plan(net, **wanted)}\n")
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
    blocks: list[str] | None = None,
) -> int:
    """Write trained weights as a file for another runtime, with a script that uses it; both are proven on images.

    Args:
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors, or a model with published weights.
        to: onnx, openvino, aotinductor (machine code for this processor), pt2 (torch.export) or web (one page for a
            browser).
        static: One image of one size; by default batch, height and width are free, of clips the batch.
        with_preprocessing: The file takes the bytes 0 to 255 of resized images and normalises them itself.
        half: Compute in float16.
        int8: Quantise, for onnx and openvino. Gates and softmax stay in float where that is more accurate.
        calibrate: For int8, a folder of images like those to come.
        images: Folder of your images, or clips, on which the file is compared with the network. Default: bundled ones.
        image_size: At which the network sees images. Default: as it was trained.
        out: Folder to write, which must not exist. Default: the first free runs/export/MODEL-FORMAT.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
    """
    with _rarely_collected():
        from foveal.export import export
        from foveal.inference import predictor

        export(
            predictor(weights, "cpu", blocks),
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


@contextmanager
def _rarely_collected() -> Iterator[None]:
    """With Python's garbage collector at work less often: a graph is made of very many objects that all stay."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


# ------------------------------------------------------------------------------------------------------------- output


def _print(shown: Any) -> None:
    """To the standard output, as wide as the terminal, or unwrapped into a file."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(shown)
