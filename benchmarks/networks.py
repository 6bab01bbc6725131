"""Parameters and multiply-accumulates of every network by name, as the table of docs/networks.md.

python benchmarks/networks.py            # about two minutes on one core; computes nothing, counts on meta tensors
python benchmarks/networks.py "cbam*"
"""

import fnmatch
import sys

import torch
from torch import nn

import foveal
from foveal.measure import count_macs, count_parameters
from foveal.models import OWN
from foveal.models.segmentation import SegmentationNet
from foveal.models.video import VideoResNet


def described(name: str) -> tuple[int, tuple[int, ...]]:
    """Classes and input (channels, *sizes) of the data its paper reports."""
    builder = getattr(OWN[name], "func", OWN[name])
    if name.startswith("cifar"):
        return 10, (3, 32, 32)
    if builder is VideoResNet:
        return 400, (3, 32, 224, 224)
    if builder is SegmentationNet:
        return 19, (3, 768, 768)
    return 1000, (3, 224, 224)


def row(name: str) -> str:
    classes, shape = described(name)
    net = foveal.create_model(name, num_classes=classes).eval().to("meta")
    macs = count_macs(net, torch.zeros(1, *shape, device="meta"))
    size = " x ".join(map(str, shape[1:]))
    return f"| `{name}` | {classes} | {size} | {count_parameters(net):,} | {macs / 1e9:.3f} |"


def main(pattern: str = "*") -> None:
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        setattr(nn.init, name, lambda tensor, *_args, **_named: tensor)  # weights are counted, not used
    print("| name | classes | input | parameters | 10⁹ MACs |\n|---|---|---|---|---|")
    for name in fnmatch.filter(OWN, pattern):
        print(row(name), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
