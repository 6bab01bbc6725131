"""A fused network gives the same outputs, says what it did, and leaves the original alone."""

import copy
import random

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

import foveal
from foveal.errors import FovealError
from foveal.fusion import GatedResidual, fuse


def trained(net: nn.Module) -> nn.Module:
    """Statistics and scales as after training: at their defaults a wrong fold could go unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return net.eval()


def inserted(block: str, at: str = "residual", **options) -> nn.Module:
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    return trained(foveal.insert(net, block, at=at, start="paper", reduction=4, **options))


NETS = {
    "timm seresnet18": lambda: trained(timm.create_model("seresnet18", num_classes=10)),
    # a bottleneck, and timm's norm and activation in one module
    "timm seresnet50": lambda: trained(timm.create_model("seresnet50", num_classes=10)),
    "timm norm-act": lambda: trained(timm.create_model("efficientnet_b0", num_classes=10)),
    "inserted se": lambda: inserted("se"),
    "inserted cbam": lambda: inserted("cbam"),
    "inserted cbam with norm": lambda: inserted("cbam", variant="timm"),
    "inserted after each block": lambda: inserted("se", at="block"),
    "two blocks at one site": lambda: foveal.insert(inserted("se"), "cbam", reduction=4),
}


def gated(net: nn.Module) -> list[GatedResidual]:
    return [module for module in net.modules() if isinstance(module, GatedResidual)]


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_equal_and_the_network_is_untouched(name):
    net = NETS[name]()
    before = copy.deepcopy(net.state_dict())
    fused = fuse(net)
    for batch in (1, 2):
        x = torch.randn(batch, 3, 40, 48)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            kept = given.clone()
            with torch.no_grad():
                wanted, found = net(given), fused(given)
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
            assert torch.equal(given, kept)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(
        isinstance(module, _BatchNorm) for module in fused.modules() if not owned_by_block(fused, module)
    )


def owned_by_block(net: nn.Module, norm: nn.Module) -> bool:
    """CBAM of variant timm has a BatchNorm of its own, which is no part of the network's."""
    return any(norm in joined.block.modules() for joined in gated(net))


def test_every_gate_of_a_residual_network_is_joined_and_said():
    fused = fuse(NETS["timm seresnet50"]())
    assert len(gated(fused)) == 16
    assert all(joined.squeezes_early and joined.relu for joined in gated(fused))
    assert "folded layer1.0.bn1 into layer1.0.conv1" in fused.report
    assert sum("took its squeeze before" in line for line in fused.report) == 16


def test_what_is_not_recognised_is_left_and_said():
    fused = fuse(inserted("se", at="block"))
    assert gated(fused) == []
    assert sum("no addition of a shortcut follows it alone" in line for line in fused.report) == 3


class Awkward(nn.Module):
    """One convolution read twice, a BatchNorm without a convolution, a shared BatchNorm, a standardised one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.alone, self.after_two, self.norm = nn.BatchNorm2d(3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.last = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.twice(self.first(self.alone(x)))
        x = self.after_two(x) + x
        x = self.norm(self.shared(x)) + self.norm(x)
        return self.last(self.weighted(x))


def test_a_batchnorm_is_folded_only_where_that_is_right():
    net = trained(Awkward())
    fused = fuse(net)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(fused(x), net(x))
    assert [line.split(":")[0] for line in fused.report] == [
        "left alone",
        "left after_two",
        "left norm",
        "left norm",
        "left last",
    ]


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_a_network_that_cannot_be_traced_is_copied_and_said():
    net = Branching()
    fused = fuse(net)
    assert fused is not net
    assert torch.equal(fused(torch.ones(3)), torch.full((3,), 2.0))
    assert fused.report[0].startswith("left everything: torch.fx cannot trace Branching")


class BranchingHead(nn.Module):
    """Around a backbone: what it does next depends on values, as in a detector."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = inserted("se"), nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2))
        self.scaled = Scaled()

    def forward(self, x):
        y = self.scaled(self.backbone(x), scale=2.0 if x.sum() > 0 else 1.0)
        return self.head(y) if y.sum() > 0 else y


class Scaled(nn.Module):
    """Not fused: a graph would hold the scale of its tracing."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x, scale=3.0):
        return self.norm(x) * scale


def test_of_a_network_that_cannot_be_traced_the_parts_are_fused_that_can():
    net = trained(BranchingHead())
    fused = fuse(net, torch.randn(1, 3, 32, 32))
    assert type(fused) is BranchingHead
    assert len(gated(fused.backbone)) == len(gated(fuse(net.backbone))) > 0
    assert type(fused.scaled) is Scaled
    folded = [line for line in fused.report if line.startswith("backbone: folded ")]
    assert len(folded) == len([line for line in fuse(net.backbone).report if line.startswith("folded ")])
    for sign in (1, -1):
        x = sign * torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-5)
    assert isinstance(net.backbone, type(inserted("se")))


@pytest.mark.parametrize(
    ("model", "options"), [("detr_test_resnet", {}), ("sparse_rcnn_test_resnet", {"stages": 2})]
)
def test_a_detectors_frozen_norms_go_into_its_convolutions(model, options):
    torch.manual_seed(0)
    net = foveal.create_model(model, num_classes=3, frozen_norm=True, **options).eval()
    fused = fuse(net)
    assert sum(": folded " in line for line in fused.report) > 8
    assert not [m for m in fused.backbone.modules() if type(m).__name__ == "FrozenNorm"]
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted, found = net(x), fused(x)
    assert wanted.keys() == found.keys()
    for name in ("logits", "boxes"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["inserted se", "inserted cbam"])
def test_saliency_still_flows_to_the_input(name):
    net = NETS[name]()
    fused = fuse(net)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    wanted, found = (torch.autograd.grad(n(x).sum(), x)[0] for n in (net, fused))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------- what is left as it is


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.se = foveal.nn.SqueezeExcite(8, reduction=2, start="paper")

    def forward(self, x):
        y = self.bn(input=self.conv(input=x))
        return self.se(x=self.last(input=y)) + y


def test_modules_called_by_keyword_are_read_as_by_position():
    net = trained(ByKeyword())
    fused = fuse(net, torch.randn(1, 3, 9, 9))
    assert fused.report == ["folded bn into conv", "joined se with the addition"]
    x = torch.randn(2, 3, 11, 11)
    torch.testing.assert_close(fused(x), net(x))


def test_timms_legacy_se_is_no_se_of_ours_and_is_left():
    net = trained(timm.create_model("legacy_seresnet18", num_classes=4))
    fused = fuse(net)
    assert gated(fused) == []
    assert "folded layer1.0.bn1 into layer1.0.conv1" in fused.report
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-5)


def torchs():
    return torch.randn(1, 8, 1, 1)


def pythons():
    return random.random()


def numpys():
    return float(np.random.rand())


class Drawing(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.conv, self.bn, self.draw = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), draw

    def forward(self, x):
        return self.bn(self.conv(x)) + self.draw()


@pytest.mark.parametrize("draw", [torchs, pythons, numpys])
def test_a_network_that_draws_noise_goes_on_drawing(draw):
    fused = fuse(trained(Drawing(draw)))
    assert fused.report[0].startswith("left everything: Drawing draws random numbers")
    x = torch.randn(1, 3, 9, 9)
    assert not torch.equal(fused(x), fused(x))


def test_hooks_of_the_whole_network_and_of_its_parts_go_on_seeing():
    net = trained(timm.create_model("resnet10t", num_classes=4))
    seen = []
    net.register_forward_hook(lambda module, args, output: output * 2)
    net.register_forward_pre_hook(lambda module, args: seen.append("root"))
    net.layer2.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    fused = fuse(net)
    seen.clear()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-5)
    assert seen == ["root", (1, 128, 8, 8)] * 2
    assert "folded layer1.0.bn1 into layer1.0.conv1" in fused.report


class WrittenInPlace(nn.Module):
    """Its last change has no user in the graph."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.bn(self.conv(x))
        y.mul_(3)
        return y


def test_a_change_in_place_that_nobody_reads_from_is_kept():
    net = trained(WrittenInPlace())
    fused = fuse(net)
    x = torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(fused(x), net(x))
    assert fused.report == ["folded bn into conv"]


def test_a_forward_that_the_graph_does_not_show_is_found_by_the_example():
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    plain = net.forward
    net.forward = lambda x: plain(x) * 2
    fused = fuse(net)
    assert fused.report[0].startswith("left everything: the fused outputs differ")
    x = torch.randn(1, 3, 9, 9)
    assert torch.equal(fused(x), net(x))


def test_where_no_example_can_be_made_up_the_report_says_so():
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 49, 2)))
    assert "not checked on an example" in fuse(net).report[-1]
    assert fuse(net, torch.randn(1, 3, 9, 9)).report == ["folded 1 into 0"]
    with pytest.raises(FovealError, match="must run on the example"):
        fuse(net, torch.randn(1, 3, 8, 8))


def test_a_feature_extractor_of_torchvision_whose_copies_train():
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    net = trained(create_feature_extractor(resnet18(), ["layer1", "layer2"]))
    fused, image = fuse(net), torch.randn(1, 3, 40, 40)
    assert "folded layer2.1.bn2 into layer2.1.conv2" in fused.report
    for name, value in net(image).items():
        torch.testing.assert_close(fused(image)[name], value, atol=1e-5, rtol=1e-4)


def test_a_network_that_cannot_be_copied_is_refused():
    """Pruned weights are computed, and hang on a graph until the first call without gradients."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    prune.random_unstructured(net[0], "weight", amount=0.5)
    with pytest.raises(
        FovealError, match=r"must be one that copy\.deepcopy takes, got Sequential: Only Tensors created"
    ):
        fuse(net)
    prune.remove(net[0], "weight")
    assert fuse(net).report == ["folded 1 into 0"]


@pytest.mark.filterwarnings("ignore:.torch.jit.")
def test_a_scripted_network_is_refused():
    net = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    with pytest.raises(
        FovealError, match=r"must be a Python module, got Recursive.*fuse it before torch\.jit\.script"
    ):
        fuse(net)
