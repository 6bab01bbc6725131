"""``foveal push``: trained weights to a repository of the Hugging Face hub."""

from __future__ import annotations

import sys

from foveal.errors import FovealError
from foveal.terminal import write_error, write_out


def push(
    weights: str,
    name: str,
    license: str | None = None,
    public: bool = False,
    figures: str | None = None,
    comparison: str | None = None,
    picture: str | None = None,
    out: str | None = None,
) -> int:
    """Upload trained weights to the Hugging Face hub, with a card made from the run; then hf-hub:user/name names them.

    Args:
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors.
        name: The repository, user/name.
        license: The hub's word for the licence of the weights, such as apache-2.0, cc-by-4.0 or other. In a terminal it
            is asked for.
        public: Let everybody see a repository that is made now. Default: only you.
        figures: A JSON file of foveal eval --out; its figures, of a test set for example, join those of the training.
        comparison: A folder of foveal compare; its table joins the card.
        picture: A PNG file for the card. Default: examples.png of the run, which shows some of its images.
        out: Write the repository to this new folder and upload nothing; local-dir:FOLDER names it.
    """
    if license is None:
        license = _asked_license()
    from foveal.push import push

    done = push(
        weights,
        name,
        license=license,
        public=public,
        figures=figures,
        comparison=comparison,
        picture=picture,
        out=out,
        say=lambda line: write_out(f"{line}\n"),
    )
    where = f"local-dir:{out}" if out is not None else done.name
    write_out(f"{done.url or out}\nfoveal predict PHOTO --weights {where}\n")
    return 0


def _asked_license() -> str:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise FovealError("license must be given, such as apache-2.0, cc-by-4.0 or other, got none")
    write_error(
        "under which licence do others get these weights? (apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0, other, ...)"
    )
    return input("license: ").strip()
