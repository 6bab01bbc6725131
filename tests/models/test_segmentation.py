"""Segmentation networks: logits of the input's size for any size, three heads while training, DANet's layout."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import foveal
from foveal.models.segmentation import HEADS, SegmentationNet
from foveal.nn import ChannelAttention, PositionAttention


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


def test_danets_attention_and_its_two_more_losses_can_be_left_out_one_by_one():
    x = torch.randn(2, 3, 64, 64)
    names = {
        (attention, branches): set(
            SegmentationNet("danet", num_classes=4, attention=attention, branch_classifiers=branches)(x)
        )
        for attention in (True, False)
        for branches in (True, False)
    }
    assert {key for key, found in names.items() if found == {"fused"}} == {(True, False), (False, False)}
    assert names[True, True] == names[False, True] == {"fused", "position", "channel"}
    net, plain = SegmentationNet("danet"), SegmentationNet("danet", attention=False)
    left = set(net.state_dict()) - set(plain.state_dict())
    # the two branches stay, and in each the attention's module of three is gone
    assert len(plain.position) == len(plain.channel) == 2  # pyright: ignore[reportArgumentType]
    assert {name.partition(".")[0] for name in left} == {"position", "channel"}
    assert not any(isinstance(m, (PositionAttention, ChannelAttention)) for m in plain.modules())


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
        ({"backbone": "resnet17"}, "backbone must be a timm model or cifar_resnetN, got 'resnet17'"),
        ({"multi_grid": (1, 2, 4)}, r"one factor for each block of layer4, got \(1, 2, 4\) for 2 blocks"),
        ({"backbone": "vgg11"}, "backbone must offer feature maps at output_stride=8"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"width": 0}, "width must be at least 1 or None, got 0"),
        ({"dropout": 2}, "dropout must be from 0 to below 1, got 2"),
        (
            {"head": "fcn", "channel_form": "paper"},
            "channel_form must be left out of head 'fcn', got 'paper'",
        ),
        ({"head": "fcn", "attention": False}, "attention must be True in head 'fcn', got False"),
        (
            {"head": "danet_channel", "branch_classifiers": False},
            "branch_classifiers must be True in head 'danet_channel', got False",
        ),
        ({"head": "danet_channel", "channel_form": "nonsense"}, "form must be one of .* got 'nonsense'"),
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


def test_heads_go_on_any_timm_backbone_by_name():
    for name, head in (("danet_position_test_resnet", "position"), ("danet_channel_test_resnet", "channel")):
        net: SegmentationNet = foveal.create_model(name, num_classes=3)  # type: ignore[assignment]
        assert (net.position is not None, net.channel is not None) == (head == "position", head == "channel")
    net = foveal.create_model("fcn_nonlocal_test_resnet", num_classes=3, width=16)
    assert net.foveal_model == {
        "name": "fcn_nonlocal_test_resnet",
        "kwargs": {"num_classes": 3, "in_chans": 3, "width": 16},
    }
    assert net.eval()(torch.randn(1, 3, 32, 40))["fused"].shape == (1, 3, 32, 40)


@pytest.mark.parametrize("name", ["danet_resnet19", "fcn_nonlocal_resnet19", "danet_position_resnet19"])
def test_a_wrong_backbone_gets_the_close_names(name):
    with pytest.raises(
        ValueError,
        match=r"backbone must be a timm model or cifar_resnetN, got 'resnet19'; did you mean resnet1",
    ):
        foveal.create_model(name)


PEAK = """
import sys, torch
import foveal

def peak():  # of resident memory in KiB
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

net = foveal.create_model("danet_resnet18", num_classes=19).eval()
with torch.no_grad():
    net(torch.zeros(1, 3, 64, 64))
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = peak()
    out = net(torch.randn(1, 3, *map(int, sys.argv[1:])))["fused"]
assert out.isfinite().all()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the peak memory of a process in KiB")
@pytest.mark.parametrize(("size", "mebibytes"), [((180, 240), 100), ((1024, 2048), 700)])
def test_peak_memory_of_a_whole_image(size, mebibytes):
    """1024 x 2048 at stride 8 is N = 32,768: one N x N matrix in float32 would take 4,096 MiB."""
    command = [sys.executable, "-c", PEAK, *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = int(done.stdout) / 1024
    print(f"{size}: {measured:.0f} MiB above the network")
    assert measured < mebibytes
