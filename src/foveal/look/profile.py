"""Which channels a gate lets through for which class, over a data set."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.look.watching import watch


def gate_profile(
    net: nn.Module, batches: Iterable[Mapping[str, Tensor]], classes: int
) -> dict[str, Float[Tensor, "classes c"]]:
    """Mean channel gate per class over a data set, for each site with channel gates, in order of depth.

    Args:
        batches: dictionaries with ``image`` and ``label`` (b,).
        classes: number of classes; classes without an image have nan.

    Example:
        >>> import foveal
        >>> net = nn.Sequential(foveal.nn.SqueezeExcite(16, reduction=4)).eval()
        >>> batches = [{"image": torch.rand(4, 16, 8, 8), "label": torch.tensor([0, 1, 1, 2])}]
        >>> gate_profile(net, batches, classes=3)["0"].shape
        torch.Size([3, 16])

    Source: Hu et al., "Squeeze-and-Excitation Networks", section 6.4 (figure of activations per class).
    """
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(classes)
    for batch in batches:
        with watch(net) as seen, torch.no_grad():
            net(batch["image"])
        one_hot = nn.functional.one_hot(batch["label"].cpu(), classes).float()
        counts += one_hot.sum(0)
        for name, recording in seen.items():
            gates = recording.attention().get("channel_gate")
            if gates is not None:
                sums[name] = sums.get(name, 0) + one_hot.T @ gates.cpu().float()
    return {name: total / counts[:, None] for name, total in sums.items()}
