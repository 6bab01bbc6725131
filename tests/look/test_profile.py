"""Mean gates by class."""

import torch
from torch import nn

from foveal.look.profile import gate_profile
from foveal.look.watching import watch
from foveal.nn import BLOCKS


def test_gate_profile_is_the_mean_per_class() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(BLOCKS["se"](3, reduction=1)).eval()
    images = torch.rand(6, 3, 5, 5)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    batches = [{"image": images[:4], "label": labels[:4]}, {"image": images[4:], "label": labels[4:]}]
    profile = gate_profile(net, batches, classes=2)["0"]
    with watch(net) as seen:
        net(images)
    torch.testing.assert_close(profile[0], seen["0"].gates[labels == 0].mean(0))
