"""A pass on an example leaves the network as it was."""

import torch
from torch import nn

import foveal


class Counting(nn.Module):
    """Keeps what it saw, in every way a module can."""

    def __init__(self):
        super().__init__()
        self.conv, self.branch = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("memory", torch.zeros(8))
        self.queue, self.names, self.passes, self.last = [], {"first": 1}, 0, torch.zeros(2)

    def forward(self, x):
        y = self.conv(x)
        y = y + self.branch(y)
        self.seen += 1
        self.memory = self.memory * 0.9 + y.mean((0, 2, 3))
        self.queue.append(y)
        self.names["last"] = 2
        self.passes += 1
        self.last += 1
        self.cache = y
        return y


def test_buffers_and_attributes_that_a_pass_changes_are_put_back():
    net = Counting()
    memory, queue, last = net.memory, net.queue, net.last
    image = torch.randn(1, 3, 8, 8)
    foveal.plan(net, "se", example=image, hidden=2)
    foveal.insert(net, "se", example=image, hidden=2)
    assert net.memory is memory
    assert net.queue is queue
    assert net.last is last
    assert (net.queue, net.names, net.passes) == ([], {"first": 1}, 0)
    assert not net.seen.any()
    assert not memory.any()
    assert not last.any()
    assert not hasattr(net, "cache")
