"""Networks with one block of a kind, its scales away from zero."""

import torch
from torch import nn

from foveal.nn import BLOCKS


def small_net(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), *blocks)


def random_block(name: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    block = BLOCKS[name](16, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


IMAGES = torch.rand(2, 3, 14, 18, generator=torch.Generator().manual_seed(0))
