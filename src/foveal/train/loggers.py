"""The figures of a run for programs that watch runs, besides metrics.csv, which every run writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from foveal.data.opening import line_of
from foveal.errors import FovealError

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Takes rows of metrics.csv."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep the figures of one epoch, at its optimiser step."""
        ...

    def close(self) -> None:
        """Bring everything to the disk or to the server."""
        ...


class TensorBoard:
    """Event files in the run folder, for ``tensorboard --logdir runs``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in _figures(row):
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, named by its folder; a run that is resumed continues it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb
        from wandb.errors import Error as WandBError

        where = str(folder.resolve())
        identity = hashlib.blake2b(where.encode(errors="backslashreplace"), digest_size=8).hexdigest()
        try:
            self.run: Any = wandb.init(
                project="foveal",
                name=folder.name,
                id=identity,
                resume="allow",
                dir=where,
                config=dict(config),
            )
        except WandBError as error:  # nobody is logged in, or the server does not answer
            raise FovealError(
                f"logger wandb must be able to begin, got {line_of(error)}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from None

    def log(self, row: Mapping[str, Any]) -> None:
        # of a run that is resumed it knows the first rows already
        if row["step"] > self.run.step:
            self.run.log(dict(_figures(row)), step=row["step"])

    def close(self) -> None:
        self.run.finish()


def open_logger(
    kind: str, folder: Path, config: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> Logger | None:
    """What ``--logger`` asks for, with the rows of a run that is resumed; None for csv.

    Args:
        kind: "csv", "tensorboard" or "wandb".
        folder: of the run.
        config: its options, kept beside the figures where the program can.
        rows: of the epochs that are done.

    Raises:
        FovealError: the package is not installed, or the program does not begin.
    """
    if kind == "csv":
        return None
    require_logger(kind)
    logger: Logger = TensorBoard(folder) if kind == "tensorboard" else WandB(folder, config)
    for row in rows:
        logger.log(row)
    return logger


def require_logger(kind: str) -> None:
    """Refuse a logger that is not installed, before anything is written.

    Raises:
        FovealError: the package is not installed.
    """
    from importlib.util import find_spec

    package = EXTRAS.get(kind)
    if package is not None and find_spec(package) is None:
        raise FovealError(
            f'logger {kind} needs the package {package}, which is not installed: pip install "foveal[{kind}]"'
        )


def _figures(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """train_loss becomes train/loss, as these programs group figures."""
    figures = [(name, value) for name, value in row.items() if name not in ("epoch", "step")]
    return [
        (name.replace("_", "/", 1) if name[:4] in ("trai", "val_") else name, value)
        for name, value in figures
    ]
