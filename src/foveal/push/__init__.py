"""From trained weights to a repository of the Hugging Face hub: one safetensors file, what it is, and a card."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foveal.checkpoint.header import Header, read_header
from foveal.errors import FovealError
from foveal.files import write_json, write_text
from foveal.folders import whole_folder
from foveal.hub import HUB, WEIGHTS, is_repository, parts_of
from foveal.model_info import ModelInfo
from foveal.push.card import card
from foveal.push.for_timm import CONFIG, timm_config
from foveal.push.paths import without_paths
from foveal.push.record import Record, read_record

__all__ = ["Pushed", "push"]

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Pushed:
    """What was made.

    Attributes:
        name: ``hf-hub:user/name``, as it is opened again.
        files: names of the repository's files.
        for_timm: whether timm opens it too.
        removed: paths of this machine that were shortened to their last name before the upload.
        url: of the commit; None where nothing was uploaded.
    """

    name: str
    files: list[str]
    for_timm: bool
    removed: list[str]
    url: str | None


def push(
    weights: str | os.PathLike[str],
    name: str,
    *,
    license: str,
    public: bool = False,
    figures: str | os.PathLike[str] | None = None,
    comparison: str | os.PathLike[str] | None = None,
    picture: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Pushed:
    """Make a repository of trained weights and upload it, or only write it to a folder.

    The repository has ``model.safetensors`` with the tensors as they are, ``config.json`` with the same description
    and, for a network of timm without inserted blocks, what timm needs to open it, ``README.md`` with the card, and
    one picture. No pickle is ever written. Paths of this machine in the description are cut to their last name.

    Args:
        weights: a file of `foveal train` or `compare`; what lies beside it in the run folder goes into the card.
        name: ``user/name`` on the hub.
        license: the hub's word for the licence of the weights, such as "apache-2.0", "cc-by-4.0" or "other".
        public: let everybody see a repository that is made now; one that exists stays as it is.
        figures: a JSON file of ``foveal eval --out``, whose figures join those of the training.
        comparison: a folder of `foveal compare`, whose table joins the card.
        picture: a PNG file; by default the run's ``examples.png``, if there is one.
        out: write the repository to this new folder and upload nothing; ``local-dir:folder`` opens it.
        say: is called with a line about each step.

    Raises:
        FovealError: weights without the facts that training stores, a name or licence that is none, a file that is not
            what it must be, or a hub that refuses.
        ConnectionError: the hub does not answer.

    Example:
        >>> import foveal, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> net = foveal.create_model("cifar_resnet8", num_classes=2)
        >>> foveal.save(net, f"{folder}/net.safetensors", **ModelInfo("classify", ["cat", "dog"], 32).to_dict())
        >>> push(f"{folder}/net.safetensors", "ann/pets", license="mit", out=f"{folder}/pets").files
        ['README.md', 'config.json', 'model.safetensors']
        >>> foveal.predictor(f"local-dir:{folder}/pets").info.classes
        ['cat', 'dog']
    """
    repository, revision = parts_of(name if name.startswith(HUB) else f"{HUB}{name}")
    if revision is not None:
        raise FovealError(f"name must be user/name, without a revision, got {name}")
    if not LICENSE.fullmatch(license):
        raise FovealError(
            f"license must be the hub's word for one, such as apache-2.0, cc-by-4.0 or other, got {license!r}"
        )
    header = read_header(weights)
    info = ModelInfo.from_dict(header.description["info"], str(weights))
    run = None if is_repository(weights) else header.file.parent.parent
    record = read_record(
        info, run, weights=header.file, figures=figures, comparison=comparison, picture=picture
    )
    removed: list[str] = []
    record = record.without_paths(removed)
    with _folder(out) as folder:
        for_timm = _write(folder, header, record, repository, license, removed)
        files = sorted(path.name for path in folder.iterdir())
        for path in dict.fromkeys(removed):
            say(f"{path} is a path of this machine: its last name alone goes into the repository")
        of = f" ({record.picture_of})" if record.picture_of else ""
        say(f"{', '.join(files)}{of}; timm {'opens it too' if for_timm else 'cannot open it'}")
        url = None if out is not None else _upload(folder, repository, public)
    return Pushed(f"{HUB}{repository}", files, for_timm, list(dict.fromkeys(removed)), url)


@contextmanager
def _folder(out: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder to fill: the person's, which appears whole, or one that is gone afterwards."""
    if out is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        with whole_folder(out, "", "") as (folder, _):
            yield folder


def _write(
    folder: Path, header: Header, record: Record, repository: str, license: str, removed: list[str]
) -> bool:
    """Write the repository. Returns whether timm opens it."""
    description = without_paths(header.description, removed)
    _copy_weights(header.file, folder / WEIGHTS, description)
    config = timm_config(folder, description)
    write_json(folder / CONFIG, {**(config or {"library_name": "foveal"}), "foveal": description})
    if record.picture is not None:
        shutil.copyfile(record.picture, folder / "picture.png")
    text = card(repository, license, description, record, for_timm=config is not None)
    write_text(folder / "README.md", text)
    return config is not None


def _copy_weights(source: Path, target: Path, description: dict[str, Any]) -> None:
    """The same tensors with this description."""
    from safetensors.torch import load_file, save_file

    from foveal.files import utf8_path

    with utf8_path(source) as name:
        save_file(load_file(name), target, metadata={"foveal": json.dumps(description, allow_nan=False)})


def _upload(folder: Path, repository: str, public: bool) -> str:
    from huggingface_hub import HfApi, constants

    from foveal.models.fetching import hub_or_cache

    with hub_or_cache() as unreachable:
        if unreachable:
            raise ConnectionError(f"{repository} could not be uploaded: {unreachable}")
        try:
            api = HfApi(endpoint=constants.ENDPOINT, library_name="foveal")
            api.create_repo(repository, private=not public, exist_ok=True)
            done = api.upload_folder(
                folder_path=str(folder),
                repo_id=repository,
                commit_message="Weights, card and picture, by foveal push",
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise FovealError(
                f"the hub must take {repository}: log in with a token that may write (hf auth login); it said: {reason}"
            ) from error
    return str(done.commit_url)
