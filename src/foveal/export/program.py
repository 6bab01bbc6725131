"""A predictor's network as one recorded graph, with readable names and without a line of Python left in it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import foveal
from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.ops.attention import recording_for_pytorch
from foveal.tasks.shipping import Shipment

INPUT = "images"


class ShippedNet(nn.Module):
    """The network as it is recorded: images in, the task's tensors out.

    Shapes: images (b, c, h, w) or clips (b, c, t, h, w), prepared; or the bytes of resized images, where ``normalise``
    is given.

    Args:
        net: the network.
        shipment: what the task wants of it.
        normalise: mean and standard deviation of each channel, for images in 0..1, to apply in the graph.
        half: compute in float16; outputs are float32 all the same.
        dims: 4 for images, 5 for clips.
    """

    gain: Tensor
    shift: Tensor

    def __init__(
        self, net: nn.Module, shipment: Shipment, normalise: tuple[Any, Any] | None, half: bool, dims: int = 4
    ) -> None:
        super().__init__()
        self.net = net.half() if half else net
        self.shipment, self.half_type, self.normalised = shipment, half, normalise is not None
        if normalise is not None:
            mean, std = (of_channels(values, dims) for values in normalise)
            self.register_buffer("gain", 1 / (255 * std))
            self.register_buffer("shift", -mean / std)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.normalised:
            images = images.float() * self.gain + self.shift
        if self.half_type:
            images = images.half()
        outputs = self.shipment.call(self.net, images)
        return tuple(output.float() if self.half_type else output for output in outputs)


@dataclass(frozen=True, eq=False)
class Program:
    """A recorded network.

    Attributes:
        exported: the graph.
        net: what was recorded, to run beside it.
        names: names of the outputs.
        free: name of the size of each axis of the input that is free: batch, height and width, or some of them.
        paths: path of a module in ``net`` -> its path in the network that the person knows.
    """

    exported: Any
    net: ShippedNet
    names: tuple[str, ...]
    free: dict[int, str]
    paths: dict[str, str] = field(default_factory=dict)

    def readable(self, path: str) -> str:
        """The person's path of a module; "" for the network itself."""
        return readable(self.paths, path)


def readable(paths: dict[str, str], path: str) -> str:
    """The path that a module of a `ShippedNet` has in the network that the person knows.

    Example:
        >>> readable({"layer1_0_se": "layer1.0.se"}, "net.layer1_0_se.fc1")
        'layer1.0.se.fc1'
    """
    path = path.removeprefix("net").removeprefix(".")
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        known = paths.get(".".join(parts[:count]))
        if known is not None:
            return ".".join([known, *parts[count:]])
    return path


def record(
    predictor: Predictor,
    example: Tensor,
    *,
    static: bool,
    half: bool,
    normalise: bool,
    for_pytorch: bool = False,
) -> Program:
    """Record a predictor's network.

    It is recorded as `foveal.fuse` leaves it: normalisation folded into convolutions, SE's mean taken before the
    expansion.

    Args:
        example: two or more images as the file takes them; one, where ``static``.
        static, half, normalise: as of `foveal.export.export`; ``normalise`` is its ``with_preprocessing``.
        for_pytorch: PyTorch will run the graph, so that it may hold PyTorch's own attention.

    Raises:
        FovealError: the network cannot be recorded; the message names the module.
    """
    info, shipment = predictor.info, shipment_of(predictor)
    fused = foveal.fuse(predictor.net, fuse_example(example, predictor, normalise))
    paths: Any = fused.paths
    normalisation = (info.mean, info.std) if normalise else None
    net = ShippedNet(fused, shipment, normalisation, half, example.ndim).eval()
    free = free_axes(shipment, static)
    dynamic = (dict.fromkeys(free, torch.export.Dim.DYNAMIC),) if free else None
    with running(net) as modules:
        try:
            # PyTorch prints the graph up to where it stops
            unseen = redirect_stderr(io.StringIO())
            attention = recording_for_pytorch() if for_pytorch else nullcontext()
            with (
                torch.no_grad(),
                quiet("torch.export", "torch.fx.experimental.symbolic_shapes"),
                attention,
                unseen,
            ):
                exported = torch.export.export(net, (example,), dynamic_shapes=dynamic)
        except Exception as error:
            # whatever a network does in forward may fail here, in many ways
            at = readable(paths, modules[-1]) if modules else ""
            where = f" at {at}" if at else ""
            reason = " ".join(str(error).split())[:300]
            hint = "" if static else "; --static records one size"
            raise FovealError(
                f"{network_name(predictor)} cannot be recorded{where}: {reason}{hint}"
            ) from error
    return Program(exported, net, shipment.outputs, free, paths)


def network_name(predictor: Predictor) -> str:
    """What a message calls a network."""
    return predictor.info.model or type(predictor.net).__name__


def free_axes(shipment: Shipment, static: bool) -> dict[int, str]:
    """The axes of the input whose sizes a file leaves free, by number, with their names; none where ``static``."""
    names = {0: "batch", 2: "height", 3: "width"}
    return {} if static else {axis: names[axis] for axis in shipment.free}


def of_channels(values: Sequence[float], dims: int) -> Tensor:
    """A number for each channel, for an input of so many dimensions.

    Example:
        >>> of_channels((0.5, 0.25), 5).shape
        torch.Size([1, 2, 1, 1, 1])
    """
    return torch.tensor(values).reshape(1, -1, *[1] * (dims - 2))


def shipment_of(predictor: Predictor) -> Shipment:
    """What the task says of its exported networks.

    Raises:
        FovealError: it says nothing.
    """
    ship: Any = getattr(predictor.task, "ship", None)
    if ship is None:
        raise FovealError(f"networks of task {predictor.info.task} cannot be exported")
    return ship(predictor.info)


def fuse_example(example: Tensor, predictor: Predictor, normalise: bool) -> Tensor:
    """One image as the network itself takes it."""
    if not normalise:
        return example[:1]
    mean, std = (of_channels(values, example.ndim) for values in (predictor.info.mean, predictor.info.std))
    return (example[:1].float() / 255 - mean) / std


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without the warnings of exporters, which tell their authors' plans and nothing of the network."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def running(net: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules that are running, outermost first; after an error, of those that were."""
    stack: list[str] = []
    handles = []

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
