"""Devices and processes, by Lightning Fabric; and what several processes must agree on."""

from __future__ import annotations

import logging
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed
from torch import nn

from foveal.errors import FovealError
from foveal.tasks import Metric
from foveal.train.config import TrainConfig
from foveal.train.fabric import DDPStrategy, Fabric, Strategy
from foveal.train.lost_process import ProcessWatch

WAIT_SECONDS = 600.0
"""For so long a process waits for the others: to join, and for what all do together."""
# in what PyTorch says when another process is gone
DISCONNECT_MESSAGES = ("gloo", "NCCL", "onnection closed", "onnection reset", "pair closure", "imed out")
Made = TypeVar("Made")
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def launch_fabric(config: TrainConfig, lost_message: Callable[[str], str] = str) -> Fabric:
    """Lightning Fabric for the devices, precision and strategy of a config; from here on there are all its processes.

    Args:
        lost_message: from how a process that was started here ended to what is said then, see `ProcessWatch`.

    Raises:
        FovealError: this machine cannot run what was asked for.
    """
    if config.precision == "float16" and not torch.cuda.is_available():
        raise FovealError("precision float16 needs a CUDA GPU, got none here; bfloat16 runs on any device")
    try:
        with _quiet_lightning(), _watching(lost_message):
            fabric = Fabric(
                accelerator=config.accelerator,
                devices=config.devices,
                num_nodes=config.nodes,
                strategy=_strategy(config),
                precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
            )
            fabric.launch()
        return fabric
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FovealError(
            f"all processes must join within {WAIT_SECONDS:g} s, with the same address and port of the first one "
            f"(MASTER_ADDR, MASTER_PORT), got: {reason}"
        ) from None
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        names = ("accelerator", "devices", "nodes", "strategy")
        chosen = ", ".join(f"{name}={getattr(config, name)}" for name in names)
        reason = " ".join(str(error).split())
        raise FovealError(f"Lightning must be able to run {chosen}, got: {reason}") from error


def _strategy(config: TrainConfig) -> Strategy | str:
    """The strategy of a config; where several processes wait for each other, they do so for `WAIT_SECONDS`."""
    several = config.devices * config.nodes > 1
    if config.strategy == "auto" and not several:
        return "auto"
    wait = timedelta(seconds=WAIT_SECONDS)
    if config.strategy == "fsdp2":
        from foveal.train.sharding import ModelParallelStrategy, shard

        devices = torch.cuda.device_count() if config.devices == -1 else config.devices
        return ModelParallelStrategy(
            shard, data_parallel_size=config.nodes * devices, tensor_parallel_size=1, timeout=wait
        )
    return DDPStrategy(timeout=wait, find_unused_parameters=config.strategy.endswith("true"))


def require_world(config: TrainConfig) -> None:
    """Refuse a number of processes other than the launcher's: they would wait for each other without end.

    Raises:
        FovealError: torchrun or SLURM has another number than ``nodes`` x ``devices``, or srun did not start this one.
    """
    tasks = os.environ.get("SLURM_NTASKS")
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        # by hand in an allocation: Lightning does not ask SLURM then
        tasks = None
    started = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    launcher, number = ("torchrun", started) if started else ("SLURM", tasks)
    if number is None or config.devices == -1:
        return
    if int(number) != config.nodes * config.devices:
        raise FovealError(
            f"nodes x devices must be the number of processes of {launcher}, {number}, got {config.nodes} x "
            f"{config.devices}"
        )
    if launcher == "SLURM" and int(number) > 1 and "SLURM_STEP_ID" not in os.environ:
        raise FovealError(
            f"on SLURM srun must start each of {number} processes, got one without it: srun foveal train ..."
        )


@contextmanager
def processes_of_a_run() -> Iterator[None]:
    """What is made in it to talk to other processes and to watch them ends with it, not with the interpreter.

    A thread that frees tensors or a process group while Python is ending aborts the process.
    """
    before = _has_group()
    try:
        yield
        # not after an error: another process that was lost would be waited for
        if _has_group() and not before:
            torch.distributed.destroy_process_group()
    finally:
        for thread in threading.enumerate():
            if isinstance(thread, ProcessWatch):
                thread.stop()


def _has_group() -> bool:
    # PyTorch may be built without processes that talk to each other
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's banner of processes and its advice on srun; its logger is as before afterwards."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `srun` command is available")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _watching(lost_message: Callable[[str], str]) -> Iterator[None]:
    """Processes that Fabric starts meanwhile are watched here, not by its own observer, which kills without a word."""
    with patch(
        "lightning_fabric.strategies.launchers.subprocess_script._launch_process_observer",
        lambda children: ProcessWatch(children, lost_message).start(),
    ):
        yield


@contextmanager
def one_line_where_lost(world: Callable[[], int], message: Callable[[str], str]) -> Iterator[None]:
    """What PyTorch raises in it because another process is gone becomes one line.

    Args:
        world: how many processes there are.
        message: from the reason to the line.

    Raises:
        ConnectionError: another process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not any(sign in str(error) for sign in DISCONNECT_MESSAGES):
            raise
        raise ConnectionError(message(" ".join(str(error).split())[:120])) from error


def in_every_process(fabric: Fabric, do: Callable[[], Made]) -> Made:
    """Do something in every process. What fails in one fails in all: none is left waiting.

    Raises:
        FovealError, OSError: this process's own mistake; where it has none, a FovealError that names the other's.
        SystemExit: of the processes of one machine only the first says so.
    """
    if fabric.world_size == 1:
        return do()
    mine: Exception | None = None
    made: Any = None
    try:
        made = do()
    except (FovealError, OSError) as error:
        mine = error
    texts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(texts, mine and f"on {platform.node()}: {mine}")
    first = next(((rank, text) for rank, text in enumerate(texts) if text), None)
    if first is None:
        return made
    if fabric.local_rank:
        raise SystemExit(2)
    raise mine or FovealError(f"process {first[0]} of {fabric.world_size} failed {first[1]}")


def require_same(fabric: Fabric, facts: Mapping[str, Any]) -> None:
    """Refuse where processes have other options or data: they would take different numbers of steps.

    Args:
        facts: name -> what must be the same in all processes.

    Raises:
        FovealError: it is not.
    """
    if fabric.world_size == 1:
        return
    gathered: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(gathered, (platform.node(), dict(facts)))

    def compare() -> None:
        host, first = gathered[0]
        for other, found in gathered[1:]:
            for name, value in first.items():
                if found[name] != value:
                    raise FovealError(
                        f"all processes must have the same {name}, got {value} on {host} and {found[name]} on {other}"
                    )

    in_every_process(fabric, compare)


def any_process(fabric: Fabric, mine: bool) -> bool:
    """Whether it is true in any process."""
    if fabric.world_size == 1:
        return mine
    flag = torch.tensor([float(mine)], device=fabric.device)
    return bool(fabric.all_reduce(flag, reduce_op="sum") > 0)  # pyright: ignore[reportOperatorIssue]


def broadcast_buffers(fabric: Fabric, net: nn.Module) -> None:
    """Give all processes the batch statistics of the first one, so that all validate the network that is kept.

    DistributedDataParallel does so before a forward pass in training; none comes after the last batch of an epoch.
    """
    if fabric.world_size > 1:
        for buffer in net.buffers():
            torch.distributed.broadcast(buffer, src=0)


def merged(fabric: Fabric, metric: Metric) -> Metric:
    """The metric of all processes together, in each of them."""
    if fabric.world_size == 1:
        return metric
    gathered: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(gathered, metric)
    first, *others = gathered
    for other in others:
        first.merge(other)
    return first


def refuse_empty_shares(sizes: dict[str, int], processes: int) -> None:
    """Every process needs an image of every part.

    Raises:
        FovealError: a part has fewer images than there are processes.
    """
    for part, size in sizes.items():
        if size < processes:
            raise FovealError(
                f"the data must hold an image for {part} for each of {processes} processes, got {size}"
            )
