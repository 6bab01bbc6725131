"""What each attention block does in a trained network: a table that says plainly when one does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foveal.data import JointTransform
from foveal.data.loader import TransformedDataset
from foveal.insertion import inserted
from foveal.nn import BLOCKS
from foveal.tasks import Task

INACTIVE_BELOW = 1e-3
"""A block that changes its input by less than this share of the input's norm is called inert."""
CLOSED_BELOW = 0.1
"""A block that lets through less than this share of its input's norm has switched its branch off."""
REPORT_IMAGES = 128
# values of all images of a report together
REPORT_VALUES = 3 * 2**23


def report_batches(task: Task, data: Any, transform: JointTransform) -> Iterator[Tensor]:
    """Images for a report: spread evenly, since folders list one class after the other; fewer where they are large.

    Args:
        task: of the network.
        data: one split, uint8 images.
        transform: from a stored sample to what the network takes.

    Yields:
        Batches (b, c, h, w), on the CPU.
    """
    images = TransformedDataset(data, transform, cache_bytes=0)
    wanted = min(REPORT_IMAGES, max(1, REPORT_VALUES // images[0, 0]["image"].numel()))
    together = max(1, min(32, wanted // 4))
    chosen = range(0, len(images), max(1, len(images) // wanted))[:wanted]
    for k in range(0, len(chosen), together):
        for batch in task.collate(images.__getitems__([(0, i) for i in chosen[k : k + together]])):
            yield batch["image"]


@torch.no_grad()
def block_report(
    net: nn.Module, batches: Iterable[Tensor], run: Callable[[nn.Module, Tensor], object] | None = None
) -> list[dict[str, Any]]:
    """One row for each inserted block and each block that is part of the network, such as DANet's two modules.

    Args:
        net: a network with such blocks; it is left as it was, in train or eval mode.
        batches: normalised images (b, c, h, w), on the network's device.
        run: the pass of a batch, where the network's own does not run every block.

    Returns:
        Rows with ``site``, ``block``; ``contribution``: ||block(x) - x|| / ||x||, over all values of all images;
        ``gate_mean``, ``gate_spread`` (standard deviation) over channels, positions and images of all gates, and
        ``gate_image_spread``, the part of the spread between images, each None for a block without gates;
        ``scale``: the learned factor before the addition, or the mean size of its factors where there is one a
        channel, None for a gate; ``verdict``: "works", "constant gate", "closed" or "inert", with the likely
        cause.

    Example:
        >>> import foveal
        >>> net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=2), "se", stages=(3,), reduction=4)
        >>> [row] = block_report(net, [torch.randn(2, 3, 32, 32)])
        >>> row["contribution"], row["gate_mean"], row["verdict"]
        (0.0, 1.0, 'inert, below 0.1 %: its gates are 1, train longer or raise inserted_lr')
    """
    blocks = _blocks(net)
    sums = {path: torch.zeros(3, dtype=torch.float64) for path, _, _ in blocks}
    gates: dict[str, list[Tensor]] = {path: [] for path, _, _ in blocks}

    def recorder(path: str):
        def hook(block: Any, args: tuple[Tensor, ...], y: Tensor) -> None:
            # on the CPU first, as not every device has float64
            before, after = args[0].cpu().double(), y.cpu().double()
            sums[path] += torch.stack([v.square().sum() for v in (after - before, before, after)])
            # rows and matrices would be computed for nothing
            if any(hasattr(block, name) for name in ("channel_gate", "spatial_gate", "gates")):
                weights = [w.cpu().double().flatten(1) for w in block.attention(args[0]).values()]
                gates[path].append(torch.cat(weights, dim=1))

        return hook

    training = {module: module.training for module in net.modules()}
    handles = [module.register_forward_hook(recorder(path)) for path, _, module in blocks]
    try:
        net.eval()
        for images in batches:
            net(images) if run is None else run(net, images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return [_row(path, name, module, sums[path], gates[path]) for path, name, module in blocks]


def _blocks(net: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """(path, name, module) of each block, in the order of the network's modules; parts of a block are none."""
    names = {made: name for name, made in BLOCKS.items()}
    known = {one.path: one.block for one in inserted(net)}
    listed: list[tuple[str, str, nn.Module]] = []
    for path, module in net.named_modules():
        if any(path.startswith(f"{above}.") for above, _, _ in listed):
            continue
        name = known.get(path) or names.get(type(module))
        if name is not None:
            listed.append((path, name, module))
    return listed


def _row(path: str, name: str, block: nn.Module, sums: Tensor, gates: list[Tensor]) -> dict[str, Any]:
    change, size, left = sums.tolist()
    contribution = (change / size) ** 0.5 if size else 0.0
    row: dict[str, Any] = {"site": path, "block": name, "contribution": contribution, "scale": _scale(block)}
    row |= dict.fromkeys(("gate_mean", "gate_spread", "gate_image_spread"))
    if gates:
        values = torch.cat(gates)
        row["gate_mean"] = float(values.mean())
        row["gate_spread"] = float(values.std(correction=0))
        row["gate_image_spread"] = float(values.std(dim=0, correction=0).mean())
    row["verdict"] = _verdict(row, sees_zeros=size == 0, through=(left / size) ** 0.5 if size else 1.0)
    return row


def _scale(block: nn.Module) -> float | None:
    """Size of the factors that let the block's result through."""
    factors = [p for name, p in block.named_parameters() if name.split(".")[-1] == "gamma"]
    norm = getattr(block, "norm", None)
    if (
        isinstance(norm, nn.Module)
        and hasattr(block, "out")
        and isinstance(getattr(norm, "weight", None), Tensor)
    ):
        factors.append(norm.weight)  # pyright: ignore[reportArgumentType]
    if len(factors) == 1 and factors[0].numel() == 1:
        return float(factors[0])
    return float(torch.cat([f.flatten().abs() for f in factors]).mean()) if factors else None


def _likely_cause(row: dict[str, Any], sees_zeros: bool) -> str:
    if sees_zeros:
        return "its input is 0, a norm or scale before it lets nothing through"
    advice = "train longer or raise inserted_lr"
    if row["scale"] is not None:
        return f"its scale is {row['scale']:.2g}, {advice}"
    if row["gate_mean"] is not None:
        return f"its gates are {row['gate_mean']:.3g}, {advice}"
    return advice


def _verdict(row: dict[str, Any], sees_zeros: bool, through: float) -> str:
    if row["contribution"] < INACTIVE_BELOW:
        return f"inert, below {100 * INACTIVE_BELOW:g} %: {_likely_cause(row, sees_zeros)}"
    if through < CLOSED_BELOW:
        return f"closed: it lets {100 * through:.1f} % of its input through, and its branch is as good as off"
    if row["gate_image_spread"] is not None and row["gate_image_spread"] < INACTIVE_BELOW:
        return "constant gate: the same for every image"
    return "works"
