"""Grad-CAM in our own few lines equals the grad-cam package."""

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from foveal.look.cam import grad_cam
from foveal.nn import BLOCKS


def test_it_equals_the_grad_cam_package() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(),
            BLOCKS["cbam"](8, reduction=2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
        ),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()
    images = torch.rand(2, 3, 33, 33)
    ours, _ = grad_cam(net, images, ["2"], torch.tensor([2, 4]))
    with GradCAM(net, [net[2]]) as package:
        theirs = package(images, [ClassifierOutputTarget(2), ClassifierOutputTarget(4)])
    # The package scales each map to 0..1, enlarges it to the image, and scales it again.
    enlarged = nn.functional.interpolate(unit_scale(ours["2"])[:, None], size=33, mode="bilinear")[:, 0]
    torch.testing.assert_close(unit_scale(enlarged), torch.from_numpy(theirs), atol=1e-5, rtol=0)


def unit_scale(maps: torch.Tensor) -> torch.Tensor:
    maps = maps - maps.amin((1, 2), True)
    return maps / (1e-7 + maps.amax((1, 2), True))


def test_what_follows_in_place_does_not_reach_the_map() -> None:
    torch.manual_seed(0)
    net = timm.create_model(
        "resnet18", num_classes=5
    ).eval()  # its blocks add the shortcut and apply ReLU in place
    images = torch.rand(1, 3, 64, 64)
    cams, logits = grad_cam(net, images, ["layer3.1.bn2"])
    kept = []
    delta = torch.zeros(1, 256, 4, 4, requires_grad=True)

    def hook(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().clone())
        return output + delta

    handle = net.layer3[1].bn2.register_forward_hook(hook)
    net(images).max().backward()
    handle.remove()
    expected = (delta.grad.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    torch.testing.assert_close(cams["layer3.1.bn2"], expected)
    assert torch.equal(net(images), logits)


def test_it_works_on_frozen_weights_and_leaves_gradients_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net.requires_grad_(False)
    cams, logits = grad_cam(net, torch.rand(2, 3, 8, 8), ["0", "1"])
    assert cams["0"].shape == (2, 6, 6)
    assert not logits.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_without_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(b, k\), got shape \(1, 4, 6, 6\)"):
        grad_cam(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(1, 3, 8, 8), ["0"])
