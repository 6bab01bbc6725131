"""Weights named by a repository: ``hf-hub:user/name[@revision]`` of the Hugging Face hub, ``local-dir:folder``.

Both hold one ``model.safetensors`` of ours. This is the one place that knows how such names are written and where their
file is; nothing but that file is fetched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from foveal.errors import FovealError

HUB, FOLDER = "hf-hub:", "local-dir:"
WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repository(name: Any) -> bool:
    """Whether this is the name of a repository, and not a file's or a model's.

    Example:
        >>> is_repository("hf-hub:ann/leaves"), is_repository("leaves.safetensors")
        (True, False)
    """
    return isinstance(name, str) and name.startswith((HUB, FOLDER))


def weights_file(name: str | os.PathLike[str]) -> Path:
    """The file of weights that a name means: a repository's is fetched once; every other name is a path already.

    Raises:
        FovealError: the name is written wrongly, or the repository is not there or holds no weights of this kind.
        ConnectionError: the hub does not answer, and the file is not in the cache.

    Example:
        >>> weights_file("runs/net.safetensors").name
        'net.safetensors'
    """
    if not isinstance(name, str) or not is_repository(name):
        return Path(name)
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        if not (folder / WEIGHTS).is_file():
            found = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else None
            raise FovealError(_without_weights(name, found))
        return folder / WEIGHTS
    return _fetched(name, *parts_of(name))


def parts_of(name: str) -> tuple[str, str | None]:
    """The repository and the revision of ``hf-hub:user/name[@revision]``.

    Example:
        >>> parts_of("hf-hub:ann/leaves@v1"), parts_of("hf-hub:ann/leaves")
        (('ann/leaves', 'v1'), ('ann/leaves', None))
    """
    form = REPOSITORY.fullmatch(name.removeprefix(HUB))
    if not name.startswith(HUB) or form is None:
        raise FovealError(
            f"a repository of the hub is written hf-hub:user/name or hf-hub:user/name@revision, got {name}"
        )
    return form[1], form[2]


def pinned(name: str) -> str:
    """The name with the commit that it means now, so that it means the same file later; other names as they are."""
    if not name.startswith(HUB):
        return name
    # the client keeps files at snapshots/COMMIT/FILE
    return f"{HUB}{parts_of(name)[0]}@{weights_file(name).parent.name}"


def _fetched(name: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from foveal.models.fetching import hub_or_cache

    if revision is not None and COMMIT.fullmatch(revision):
        # a commit never changes: where it is here already, nobody is asked
        known = try_to_load_from_cache(
            repository, WEIGHTS, revision=revision, cache_dir=constants.HF_HUB_CACHE
        )
        if isinstance(known, str):
            return Path(known)
    with hub_or_cache() as why_cache_alone:
        try:
            return Path(
                hf_hub_download(repository, WEIGHTS, revision=revision, cache_dir=constants.HF_HUB_CACHE)
            )
        except GatedRepoError as error:
            raise FovealError(f"{name} is gated: its owner must grant you access first, got none") from error
        except RepositoryNotFoundError as error:
            raise FovealError(
                f"{name} must be a repository that exists and that you may read (hf auth login), got neither"
            ) from error
        except RevisionNotFoundError as error:
            raise FovealError(
                f"{name} must name a branch, tag or commit of {repository}, got {revision}"
            ) from error
        except HFValidationError as error:
            raise FovealError(f"{name} is no name of the hub: {' '.join(str(error).split())}") from error
        except LocalEntryNotFoundError as error:
            raise ConnectionError(
                f"{name} must be fetched once, got no connection ({why_cache_alone or constants.ENDPOINT}) and "
                f"nothing in the cache {constants.HF_HUB_CACHE}"
            ) from error
        except EntryNotFoundError as error:
            raise FovealError(_without_weights(name, _files_of(repository, revision))) from error
        except OSError as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ConnectionError(f"{name} could not be fetched: {reason}") from error


def _files_of(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi, constants

    try:
        return sorted(HfApi(endpoint=constants.ENDPOINT).list_repo_files(repository, revision=revision))
    except OSError:
        return []


def _without_weights(name: str, files: list[str] | None) -> str:
    """Why there is nothing to load, in one line."""
    if files is None:
        return f"{name} must name a folder with {WEIGHTS}, got no such folder"
    pickles = [file for file in files if file.endswith(PICKLES)]
    if pickles:
        return (
            f"{name} must hold {WEIGHTS}, got {pickles[0]}, a pickle, which can run code and is not opened; "
            "foveal convert reads published weights of other code"
        )
    shown = ", ".join(file for file in files[:5]) or "nothing"
    return f"{name} must hold {WEIGHTS}, written by foveal push, got {shown}"
