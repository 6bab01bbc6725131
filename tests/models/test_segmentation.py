"""Segmentation networks: logits of the input's size for any size, three heads while training, DANet's layout."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.models.segmentation import HEADS, SegmentationNet


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_logits_have_the_size_of_the_image(head, size):
    torch.manual_seed(0)
    net = SegmentationNet(head, "resnet18", num_classes=4, auxiliary=True)
    out = net.eval()(torch.randn(1, 3, *size))
    assert {k: tuple(v.shape) for k, v in out.items()} == {"fused": (1, 4, *size)}


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(head):
    torch.manual_seed(0)
    net = SegmentationNet(head, "resnet18", num_classes=4, auxiliary=True)
    out = net(torch.randn(2, 3, 64, 64))
    assert set(out) == {"fused", "auxiliary"} | ({"position", "channel"} if head == "danet" else set())
    torch.stack([v.square().mean() for v in out.values()]).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_the_last_stage_keeps_stride_8_and_takes_a_multi_grid():
    net = SegmentationNet("danet", "resnet50", multi_grid=(1, 2, 4))
    convolutions = [
        m for m in net.backbone.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert [m.dilation for m in convolutions] == [(4, 4), (8, 8), (16, 16)]
    assert net.backbone(torch.randn(1, 3, 64, 64))[-1].shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "psp"}, "head must be one of danet, .* got 'psp'"),
        ({"backbone": "resnet17"}, "backbone must be a timm model, got 'resnet17'"),
        ({"multi_grid": (1, 2, 4)}, r"one factor for each block of layer4, got \(1, 2, 4\) for 2 blocks"),
        ({"backbone": "vgg11"}, "backbone must offer features at output_stride=8"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationNet(**options)


def test_a_large_image_needs_no_matrix_of_all_positions():
    """512 x 1024 at stride 8 is N = 8192: the N x N matrix would have 67 million elements."""
    net = SegmentationNet("danet_position", "resnet18", width=16, num_classes=2).eval()
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with torch.no_grad(), Watch():
        net(torch.randn(1, 3, 512, 1024))
    assert largest < 8192 * 8192 / 4
