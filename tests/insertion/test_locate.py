"""The rules by which sites are found."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

import foveal
from foveal.errors import FovealError

IMAGE = torch.zeros(1, 3, 64, 64)
PHOTO = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_stages_of_a_torchvision_resnet_are_its_layers():
    import torchvision

    net = torchvision.models.resnet18()
    assert [(s.name, s.stage) for s in foveal.sites(net, "stage", example=IMAGE)] == [
        ("layer1.1", 1),
        ("layer2.1", 2),
        ("layer3.1", 3),
        ("layer4.1", 4),
    ]
    chosen = foveal.sites(net, stages=(3, 4), example=IMAGE)
    assert [(s.name, s.stage, s.channels, s.shape) for s in chosen] == [
        ("layer3.0.bn2", 3, 256, (256, 4, 4)),
        ("layer3.1.bn2", 3, 256, (256, 4, 4)),
        ("layer4.0.bn2", 4, 512, (512, 2, 2)),
        ("layer4.1.bn2", 4, 512, (512, 2, 2)),
    ]


def test_one_stage_number_means_one_place_for_every_kind():
    import torchvision

    net = torchvision.models.efficientnet_b0()
    for at in ("residual", "block", "stage"):
        for site in foveal.sites(net, at, example=IMAGE):
            assert site.name.startswith(f"features.{site.stage}.")


def test_stages_without_containers_are_runs_of_one_size():
    import torchvision

    net = torchvision.models.vgg11(init_weights=False)
    # each is the last module before a pooling, or the last of all
    assert [s.name for s in foveal.sites(net, "stage", example=IMAGE)] == [
        f"features.{i}" for i in (1, 4, 9, 14, 19)
    ]


def test_a_dense_stage_is_the_whole_dense_block():
    import torchvision

    net = torchvision.models.densenet121()
    dense = foveal.sites(net, "stage", example=IMAGE)
    assert [(s.name, s.channels) for s in dense] == [
        ("features.denseblock1", 256),
        ("features.denseblock2", 512),
        ("features.denseblock3", 1024),
        ("features.denseblock4", 1024),
    ]


class Scaled(nn.Module):
    """``x + 0.2 * conv(conv(x))``, the factor last, as Inception-ResNet and NF-nets have it."""

    def __init__(self, inplace: bool):
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.inplace = inplace

    def forward(self, x):
        y = self.two(self.one(x))
        return y.mul_(self.gain).add_(x) if self.inplace else x + y * 0.2


class Functional(Scaled):
    def forward(self, x):
        return x + torch.relu(self.two(self.one(x)))


class TwoScales(Scaled):
    """Res2Net's way: an inner addition that only feeds the branch."""

    def forward(self, x):
        inner = self.one(x)
        return self.two(inner + x) + x


class Longer(nn.Module):
    """The shortcut is projected; the operands come in the other order."""

    def __init__(self):
        super().__init__()
        self.short = nn.Conv2d(4, 4, 1)
        self.long = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.short(x) + self.long(x)


class TwoInputs(nn.Module):
    """A fusion of two maps, as in a feature pyramid: no residual block."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, a, b):
        return a + self.conv(b)


def stacked(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), *blocks)


def residual(net: nn.Module) -> list[tuple[str, str | None]]:
    return [(site.name, site.reason) for site in foveal.sites(net, example=IMAGE)]


def test_the_branch_is_the_longer_operand_before_its_factor():
    assert residual(stacked(Scaled(inplace=False), Scaled(inplace=True), Longer())) == [
        ("1.two", None),
        ("2.two", None),
        ("3.long", None),
    ]


def test_an_addition_inside_the_branch_is_not_a_site():
    assert residual(stacked(TwoScales(inplace=False))) == [("1.two", None)]


def test_a_branch_that_no_module_returns_is_unusable_and_says_so():
    net = stacked(Functional(inplace=False))
    ((name, reason),) = residual(net)
    assert name == "1"
    assert "no module returns the branch" in str(reason)
    with pytest.raises(
        ValueError, match=r"1 of 1 in Sequential that cannot: 1: no module returns the branch"
    ):
        foveal.insert(net, "se", example=IMAGE)
    assert [site.name for site in foveal.sites(net, "block", example=IMAGE)] == ["1"]


def test_an_addition_of_two_inputs_is_not_residual():
    class Fusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fuse, self.block = nn.Conv2d(3, 4, 1), TwoInputs(), Longer()

        def forward(self, x):
            x = self.stem(x)
            return self.block(self.fuse(x, torch.tanh(x)))

    assert residual(Fusing()) == [("block.long", None)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripted_functions_do_not_break_the_trace():
    @torch.jit.script
    def scripted(x):
        return x * torch.sigmoid(x)

    class Swish(nn.Module):
        def forward(self, x):
            return scripted(x)

    assert residual(stacked(Swish(), Longer())) == [("2.long", None)]


@pytest.mark.parametrize(
    ("change", "usable"),
    [
        (lambda x: x.permute(0, 2, 3, 1), False),
        (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), True),
        (lambda x: x.transpose(1, -1), False),
        (lambda x: x.movedim(1, -1), False),
        (lambda x: x.flatten(2).transpose(1, 2), False),
        (lambda x: x.flatten(2), True),
        (lambda x: nn.functional.layer_norm(x.permute(0, 2, 3, 1), (4,)), False),
        (lambda x: nn.functional.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2), True),
        (lambda x: x * x.mean((2, 3)).view(1, 4, 1, 1), True),
    ],
)
def test_channels_are_followed_through_the_functions_that_move_them(change, usable):
    class Changing(nn.Module):
        def forward(self, x):
            return change(x)

    (site,) = foveal.sites(stacked(Changing()), "1", example=IMAGE)
    assert (site.reason is None) is usable


def test_networks_that_fx_rewrote_take_blocks_in_the_stages_they_had():
    plain = models.resnet18(num_classes=4).eval()
    image = torch.randn(1, 3, 64, 64)
    net = torch.fx.symbolic_trace(plain)
    assert [(s.name, s.stage) for s in foveal.sites(net, example=image)] == [
        (s.name, s.stage) for s in foveal.sites(plain, example=image)
    ]
    before = net(image)
    foveal.insert(net, "cbam", stages=(3, 4), example=image)
    assert torch.equal(net(image), before)
    for at in ("block", "stage"):
        with pytest.raises(FovealError, match="need modules that hold the residual additions"):
            foveal.sites(net, at, example=image)


def test_blocks_at_blocks_of_a_plain_network_compose():
    net = models.vgg11_bn(num_classes=4, init_weights=False).eval()
    image = torch.randn(1, 3, 32, 32)
    names = [s.name for s in foveal.sites(net, "block", example=image)]
    foveal.insert(net, "se", at="block", example=image)
    assert [s.name for s in foveal.sites(net, "block", example=image)] == names


# -------------------------------------------------------------------- the placements of the SE paper's ablation


def by_hand(net, place, gate):
    """A residual stage 3 of cifar_resnet8 written out, with a gate at one of the paper's places."""
    from torch.nn.functional import relu

    def stage(x):
        block = net.layer3[0]
        y = gate(x) if place == "pre" else x
        y = relu(block.bn1(block.conv1(y)))
        y = gate(y) if place == "3x3" else y
        y = block.bn2(block.conv2(y))
        y = gate(y) if place == "standard" else y
        shortcut = block.downsample(x)
        shortcut = gate(shortcut) if place == "identity" else shortcut
        y = relu(y + shortcut)
        return gate(y) if place == "post" else y

    return stage


@pytest.mark.parametrize(
    ("place", "at", "stages"),
    [
        ("standard", "residual", (3,)),
        ("pre", "pre", (3,)),
        ("post", "block", (3,)),
        ("identity", "shortcut", (3,)),
    ],
)
def test_the_placements_of_the_se_papers_ablation(place, at, stages):
    torch.manual_seed(0)
    plain = foveal.create_model("cifar_resnet8", num_classes=10).eval()
    net = copy.deepcopy(plain)
    x = torch.randn(2, 3, 16, 16)
    foveal.insert(net, "se", at=at, stages=stages, reduction=4, start="paper", example=x)
    (one,) = foveal.inserted(net)
    seen = plain.layer2(plain.layer1(plain.act1(plain.bn1(plain.conv1(x)))))
    expected = plain.fc(by_hand(plain, place, one.module)(seen).mean((2, 3)))
    torch.testing.assert_close(net(x), expected)
    assert not torch.allclose(net(x), plain(x))


def test_a_shortcut_that_no_module_makes_is_said():
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    reasons = {site.stage: site.reason for site in foveal.sites(net, "shortcut")}
    assert reasons[2] is None
    assert reasons[3] is None
    assert "no module makes its shortcut" in reasons[1]


def test_before_the_branch_of_a_timm_network_the_shortcut_is_left_alone(tmp_path):
    torch.manual_seed(0)
    net = foveal.create_model("resnet18", num_classes=4).eval()
    foveal.undo_zero_init(foveal.insert(net, "se", at="pre", stages=(2, 3), start="paper", example=PHOTO))
    assert [one.site for one in foveal.inserted(net)] == [
        f"layer{stage}.{block}.conv1" for stage in (2, 3) for block in (0, 1)
    ]
    assert [one.channels for one in foveal.inserted(net)] == [64, 128, 128, 256]
    foveal.save(net, tmp_path / "net.safetensors")
    torch.testing.assert_close(foveal.load(tmp_path / "net.safetensors").eval()(PHOTO), net(PHOTO))
