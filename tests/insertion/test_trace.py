"""What the traced pass follows, and what it refuses to follow."""

import pytest
import torch
from torch import nn

import foveal
from foveal.errors import FovealError


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return foveal.create_model("cifar_resnet8", num_classes=10).eval()


@pytest.mark.filterwarnings("ignore:.torch.jit.")
def test_scripted_networks_and_parts_are_refused_and_a_site_beside_one_is_not():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    image = torch.randn(1, 3, 16, 16)
    with pytest.raises(FovealError, match=r"must be a Python module.*before torch.jit.script"):
        foveal.insert(scripted, "se", at="1", example=image, reduction=4)
    net = nn.Sequential(scripted, nn.Conv2d(8, 8, 3, padding=1))
    for site in ("0", "0.1"):
        with pytest.raises(FovealError, match=r"TorchScript runs it; insert before torch.jit.script"):
            foveal.insert(net, "se", at=site, example=image, reduction=4)
    before = net(image)
    foveal.insert(net, "se", at="1", example=image, reduction=4)
    assert torch.equal(net(image), before)


@pytest.mark.filterwarnings("ignore:.torch.jit.")
def test_a_scripted_part_of_a_branch_is_followed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.jit.script(nn.Conv2d(8, 8, 3, padding=1))
            self.last = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.last(self.first(x))

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Block())
    assert [(s.name, s.reason) for s in foveal.sites(net, example=torch.randn(1, 3, 8, 8))] == [
        ("1.last", None)
    ]


@pytest.mark.parametrize("at", ["mix", "body.layer3", "body.layer2.0.bn2", "residual", "stage"])
def test_inference_mode_inside_a_network_is_followed(at):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()
            self.mix = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x):
            with torch.inference_mode():
                for name in ("conv1", "bn1", "layer1", "layer2", "layer3"):
                    x = self.body.get_submodule(name)(x).relu_()
            return self.mix(x.clone())

    image = torch.randn(1, 3, 32, 32)
    net = Head().eval()
    before = net(image)
    inserted = foveal.inserted(foveal.insert(net, "se", at=at, example=image, reduction=4))
    assert torch.equal(net(image), before)
    expected = {"residual": 3, "stage": 3}
    assert len(inserted) == expected.get(at, 1)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.branch, self.fc = nn.LazyConv2d(8, 3), nn.LazyConv2d(8, 1), nn.LazyLinear(2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc((x + self.branch(x)).flatten(1))


def test_lazy_modules_are_not_given_the_sizes_of_an_example():
    net, image = Lazy(), torch.randn(1, 3, 8, 8)
    for look in (
        lambda: foveal.sites(net, example=image),
        lambda: foveal.plan(net, "se", example=image),
        lambda: foveal.insert(net, "se", example=image),
    ):
        with pytest.raises(
            FovealError, match=r"run the network once on a real one, got no sizes yet for conv, br"
        ):
            look()
    assert all(m.has_uninitialized_params() for m in (net.conv, net.branch, net.fc))
    net(image)
    assert len(foveal.inserted(foveal.insert(net, "se", example=image, hidden=2))) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.")
def test_a_scripted_branch_is_a_branch_all_the_same():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = torch.jit.script(nn.Conv2d(8, 8, 3, padding=1))

        def forward(self, x):
            return x + self.only(x)

    (site,) = foveal.sites(nn.Sequential(nn.Conv2d(3, 8, 1), Block()), example=torch.randn(1, 3, 8, 8))
    assert (site.name, site.reason) == ("1.only", "TorchScript runs it; insert before torch.jit.script")
