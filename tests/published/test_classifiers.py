"""Published SE and CBAM classifiers compute the same here, and go back bit by bit."""

import pytest
import torch
import torch.nn.functional as F
from tests.marks import slow
from torch import nn

import foveal
from foveal.checkpoint import state_dict_mismatch as misfit
from foveal.errors import FovealError
from foveal.published import FORMATS, convert, export
from foveal.published.keymap import Shapes

from .conftest import Named

X = torch.randn(3, 3, 40, 33, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("seresnet18", "layer2.0.bn2.se.fc1.weight"),
        ("seresnet50", "layer2.0.bn3.se.fc1.weight"),
        *slow([("seresnext50_32x4d", "layer2.0.bn3.se.fc1.weight")]),
    ],
)
def test_timm(random_peer, agrees, name, ours):
    import timm

    peer = random_peer(lambda: timm.create_model(name, num_classes=7))
    net = agrees(peer, X, ours, "layer2.0.se.fc1.weight")
    assert net.foveal_info["converted_from"] == "timm-se"
    narrow = (
        ", 8 hidden channels in stage 1" if name == "seresnet18" else ""
    )  # timm's widths are multiples of 8
    assert net.foveal_info["variant"] == f"SE with biases{narrow}, stride 2 in the 3x3 convolution, ReLU"
    assert net.foveal_model["name"] == name.replace("seres", "se_res")


@pytest.mark.parametrize("name", ["seresnet18", "seresnet50", *slow(["seresnext50_32x4d"])])
def test_timms_legacy_trunks(random_peer, agrees, name):
    import timm

    peer = random_peer(lambda: timm.create_model(f"legacy_{name}", num_classes=7, drop_rate=0.0))
    net = agrees(peer, X, "layer2.0.se_module.se.fc1.weight", "layer2.0.se_module.fc1.weight", drop_rate=0.0)
    assert net.foveal_info["converted_from"] == "timm-legacy-se"
    assert "rounds up" in net.foveal_info["variant"]
    assert ("after a ReLU" in net.foveal_info["variant"]) == (name == "seresnet18")
    assert ("first 1x1" in net.foveal_info["variant"]) == (name == "seresnet50")


@pytest.mark.slow  # 115 million parameters
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("senet154", "layer2.0.bn3.se.fc1.weight", "layer2.0.se.fc1.weight"),
        ("legacy_senet154", "layer2.0.se_module.se.fc1.weight", "layer2.0.se_module.fc1.weight"),
    ],
)
def test_senet154(random_peer, agrees, name, ours, theirs):
    import timm

    peer = random_peer(lambda: timm.create_model(name, num_classes=3, drop_rate=0.0))
    agrees(peer, X, ours, theirs, drop_rate=0.0)


def whole_map(net: nn.Module) -> nn.Module:
    """pytorchcv pools windows of 7x7, which only images of 224x224 fill."""
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return net


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("seresnet50", "pytorchcv-seresnet"),
        *slow([("seresnet50b", "pytorchcv-seresnet-b"), ("seresnext50_32x4d", None)]),
    ],
)
def test_pytorchcv_se(random_peer, agrees, name, format):
    from pytorchcv.model_provider import get_model

    peer = random_peer(lambda: whole_map(get_model(name, num_classes=7)))
    net = agrees(
        peer, X, "layer2.0.bn3.se.fc1.weight", "features.stage2.unit1.se.conv1.weight", format=format
    )
    assert ("first 1x1" in net.foveal_info["variant"]) == (name == "seresnet50")


@pytest.mark.parametrize(
    ("library", "name", "format", "ours"),
    [
        ("timm", "seresnet34", "timm-se", "resnet34"),
        ("timm", "legacy_seresnext26_32x4d", "timm-legacy-se", "legacy_se_resnext26_32x4d"),
        ("pytorchcv", "seresnet18", "pytorchcv-seresnet", "se_resnet18"),
        ("pytorchcv", "seresnetbc26b", "pytorchcv-seresnet", "resnet26"),
        ("pytorchcv", "cbam_resnet34", "pytorchcv-cbam", "cbam_resnet34"),
        *slow(
            [
                ("timm", "seresnet152", "timm-se", "se_resnet152"),
                ("timm", "seresnext101_32x8d", "timm-se", "resnext101_32x8d"),
                ("timm", "seresnext101_64x4d", "timm-se", "resnext101_64x4d"),
                ("timm", "senet154", "timm-se", "se_net154"),
                ("timm", "legacy_seresnet34", "timm-legacy-se", "legacy_se_resnet34"),
                ("timm", "legacy_seresnet101", "timm-legacy-se", "legacy_se_resnet101"),
                ("timm", "legacy_senet154", "timm-legacy-se", "legacy_se_net154"),
                ("pytorchcv", "seresnext101_64x4d", "pytorchcv-seresnet", "resnext101_64x4d"),
                ("pytorchcv", "seresnet101b", "pytorchcv-seresnet-b", "se_resnet101"),
                ("pytorchcv", "cbam_resnet152", "pytorchcv-cbam", "cbam_resnet152"),
            ]
        ),
    ],
)
def test_every_size_has_its_network(library, name, format, ours):
    """Names and shapes alone, with one channel and seven classes."""
    with torch.device("meta"):
        if library == "timm":
            import timm

            peer = timm.create_model(name, num_classes=7, in_chans=1)
        else:
            from pytorchcv.model_provider import get_model

            peer = get_model(name, num_classes=7, in_channels=1)
        shapes = Shapes({key: tuple(value.shape) for key, value in peer.state_dict().items()})
        net, variant = FORMATS[format].build(shapes, {})
    assert misfit(shapes, dict(FORMATS[format].table(net).values())) == ""
    assert net.foveal_model["name"] in (ours, f"se_{ours}")
    assert net.foveal_model["kwargs"].items() >= {"num_classes": 7, "in_chans": 1}.items()
    if name == "seresnet18":
        assert variant == "SE with biases"  # nothing about a first 1x1, which it has not


def test_files_that_look_the_same_must_be_told_apart(random_peer):
    from pytorchcv.models import seresnet

    peer = random_peer(lambda: seresnet.seresnet50(num_classes=2))
    with pytest.raises(
        ValueError, match=r"format must be given .* fit pytorchcv-seresnet and .*-b; .*first 1x1.*seresnet50b"
    ):
        convert(peer.state_dict())
    net = convert(peer.state_dict(), "pytorchcv-seresnet")
    with pytest.raises(ValueError, match=r".* got .*Conv2d\(256, 128, .*stride=\(2, 2\).* instead of"):
        export(net, "pytorchcv-seresnet-b")


def test_the_same_network_in_both_formats_needs_no_choice(random_peer):
    """Only bottlenecks have a stride of 2 that could be in the first 1x1 convolution."""
    from pytorchcv.models import seresnet

    net = convert(random_peer(lambda: seresnet.seresnet18(num_classes=2)).state_dict())
    assert net.foveal_info == {"converted_from": "pytorchcv-seresnet", "variant": "SE with biases"}


@pytest.mark.parametrize(
    ("library", "name", "said"),
    [
        (
            "timm",
            "seresnext26d_32x4d",
            r"timm-se, a stem .* must be SENet-154's, got resnext26_32x4d with a stem",
        ),
        ("timm", "seresnet152d", r"timm-se, a stem .* must be SENet-154's, got resnet152 with a stem"),
        (
            "pytorchcv",
            "seresnet20_cifar10",
            r"pytorchcv-seresnet, blocks .* \[2, 2, 2, 2\] \(ResNet-18\), .* got \[3, 3, 3\] and no .* 1 of the 4",
        ),
        (
            "pytorchcv",
            "sepreresnet50",
            r"those of pytorchcv-seresnet, read as se_resnet50 \(.* got missing: feat",
        ),
    ],
)
def test_a_network_that_is_not_read_is_named(library, name, said):
    """With what comes closest, before any question of the format."""
    with torch.device("meta"):
        if library == "timm":
            import timm

            peer = timm.create_model(name)
        else:
            from pytorchcv.model_provider import get_model

            peer = get_model(name)
    with pytest.raises(ValueError, match=rf"{said}"):
        convert(peer.state_dict())


def test_pytorchcv_cbam(random_peer, agrees):
    from pytorchcv.models import cbamresnet

    peer = random_peer(lambda: whole_map(cbamresnet.cbam_resnet50(num_classes=7)))
    agrees(
        peer,
        X,
        "layer2.0.bn3.cbam.spatial.conv.weight",
        "features.stage2.unit1.cbam.sp_gate.conv.conv.weight",
    )


# ------------------------------------------------------------------------------- the CBAM authors' layout, written out


class CBAM(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, channels // 16), nn.ReLU(), nn.Linear(channels // 16, channels)
        )
        self.ChannelGate = Named(mlp=mlp)
        conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.SpatialGate = Named(spatial=Named(conv=conv, bn=nn.BatchNorm2d(1, momentum=0.01)))

    def forward(self, x):
        mlp, spatial = self.ChannelGate.mlp, self.SpatialGate.spatial
        x = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
        pooled = torch.stack([x.amax(1), x.mean(1)], dim=1)
        return x * torch.sigmoid(spatial.bn(spatial.conv(pooled)))


class Residual(nn.Module):
    def __init__(self, channels_in: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out = 4 * width if bottleneck else width
        kernels = [(channels_in, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        if not bottleneck:
            kernels = [(channels_in, width, 3, stride), (width, width, 3, 1)]
        self.layers = len(kernels)
        for i, (a, b, k, s) in enumerate(kernels, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        self.cbam = CBAM(out)

    def forward(self, x):
        y = x
        for i in range(1, self.layers + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            y = F.relu(y) if i < self.layers else y
        return F.relu(self.cbam(y) + (x if self.downsample is None else self.downsample(x)))


class OfficialCBAM(nn.Module):
    def __init__(self, counts: tuple[int, ...], bottleneck: bool, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for i, count in enumerate(counts):
            blocks = []
            for j in range(count):
                blocks.append(Residual(channels, 64 * 2**i, 2 if i and not j else 1, bottleneck))
                channels = 64 * 2**i * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(("counts", "bottleneck"), [((2, 2, 2, 2), False), *slow([((3, 4, 6, 3), True)])])
def test_the_authors_cbam(random_peer, agrees, counts, bottleneck):
    peer = random_peer(lambda: OfficialCBAM(counts, bottleneck, num_classes=7))
    last = 3 if bottleneck else 2
    net = agrees(
        peer,
        X,
        f"layer2.0.bn{last}.cbam.spatial.conv.weight",
        "layer2.0.cbam.SpatialGate.spatial.conv.weight",
    )
    assert net.foveal_info["converted_from"] == "cbam-official"
    assert "maximum before mean" in net.foveal_info["variant"]


def test_a_cbam_file_as_the_authors_save_it(random_peer, tmp_path):
    """In a wrapper, with the prefix of DataParallel, beside a tensor that is no weight."""
    from foveal.published import read

    peer = random_peer(lambda: OfficialCBAM((2, 2, 2, 2), False, num_classes=3)).eval()
    state = {f"module.{name}": value for name, value in peer.state_dict().items()}
    assert {
        "module.layer1.0.cbam.ChannelGate.mlp.1.weight",
        "module.layer1.0.cbam.SpatialGate.spatial.bn.bias",
    } < set(state)
    content = {
        "epoch": 3,
        "arch": "resnet",
        "state_dict": state,
        "best_prec1": torch.tensor(70.0),
        "optimizer": {},
    }
    for name, zipped in (("new.pth", True), ("old.pth", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        net = convert(read(tmp_path / name))
        foveal.save(net, tmp_path / "out.safetensors", **net.foveal_info)
        y = foveal.load(tmp_path / "out.safetensors").eval()(X)
        torch.testing.assert_close(y, peer(X), rtol=1e-4, atol=1e-5)


def test_another_form_of_cbam_is_not_written_as_the_authors(random_peer):
    net = foveal.create_model("cbam_resnet18", num_classes=3)  # no biases, no norm, mean first
    with pytest.raises(ValueError, match=r"the network must be as cbam-official files are .* missing: "):
        export(net, "cbam-official")
    half = foveal.insert(
        foveal.create_model("resnet18"), "cbam", variant="official", start="identity"
    )  # gates over (0, 2)
    with pytest.raises(ValueError, match=r"got .*gate_gain=2\.0.* instead of .*gate_gain=1\.0"):
        export(half, "cbam-official")


# ------------------------------------------------------------------------------------ the article's own listings


class ListedSE(nn.Module):
    """As in the article and in moskomule's senet.pytorch."""

    def __init__(self, channel, reduction=16, bias=False):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=bias),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class ListedChannels(nn.Module):
    def __init__(self, channels, ratio=16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=False)

    def forward(self, x):
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return sum(self.fc2(self.fc1(s).relu()) for s in (mean, largest)).sigmoid()


class ListedPositions(nn.Module):
    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        return self.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


def listed(deep: bool, **options):
    """torchvision's ResNet-18 or -50 with the listings' blocks, called as they are there."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    last = "bn3" if deep else "bn2"

    class Block(Bottleneck if deep else BasicBlock):
        def __init__(self, inplanes, planes, *args, **named):
            super().__init__(inplanes, planes, *args, **named)
            channels = planes * self.expansion
            if "kernel_size" in options:
                self.ca = ListedChannels(channels, options["ratio"])
                self.sa = ListedPositions(options["kernel_size"])
            else:
                self.se = ListedSE(channels, **options)

        def forward(self, x):
            out = self.conv1(x)
            for number in (2, 3) if deep else (2,):
                out = getattr(self, f"bn{number - 1}")(out).relu()
                out = getattr(self, f"conv{number}")(out)
            out = getattr(self, last)(out)
            if hasattr(self, "se"):
                out = self.se(out)
            else:
                out = self.ca(out) * out
                out = self.sa(out) * out
            return (out + (x if self.downsample is None else self.downsample(x))).relu()

    return ResNet(Block, [3, 4, 6, 3] if deep else [2, 2, 2, 2], num_classes=5)


@pytest.mark.parametrize(
    ("deep", "options", "variant"),
    [
        (False, {}, "SE without biases"),
        (False, {"bias": True}, "SE with biases"),
        *slow([(True, {"reduction": 8}, "SE without biases")]),
    ],
)
def test_se_as_the_article_lists_it(random_peer, agrees, deep, options, variant):
    peer = random_peer(lambda: listed(deep, **options))
    site = "layer2.0.bn3" if deep else "layer2.0.bn2"
    net = agrees(peer, X, f"{site}.se.fc1.weight", "layer2.0.se.fc.0.weight")
    assert net.foveal_info["converted_from"] == "senet-pytorch"
    assert net.foveal_info["variant"].startswith(variant)


@pytest.mark.parametrize(
    ("deep", "ratio", "kernel_size"), [(False, 16, 7), (False, 8, 3), *slow([(True, 16, 7)])]
)
def test_cbam_as_the_article_lists_it(random_peer, agrees, deep, ratio, kernel_size):
    peer = random_peer(lambda: listed(deep, ratio=ratio, kernel_size=kernel_size))
    site = "layer2.0.bn3" if deep else "layer2.0.bn2"
    net = agrees(peer, X, f"{site}.cbam.channel.fc1.weight", "layer2.0.ca.fc1.weight")
    assert net.foveal_info["converted_from"] == "cbam-listing"


@pytest.mark.parametrize("options", [{"act_layer": "silu"}, *slow([{"output_stride": 16}])])
def test_a_network_that_computes_something_else_is_found_on_an_example(random_peer, options):
    """No name or shape shows it, so the state dict alone is taken."""
    import timm

    peer = random_peer(lambda: timm.create_model("seresnet50", num_classes=5, **options)).eval()
    with pytest.raises(FovealError, match=r"must compute what its weights do in SE with .* differ by \d"):
        convert(peer)
    info = convert(peer.state_dict()).foveal_info
    assert "ReLU" in info["variant"]
    (note,) = info["notes"]
    assert note.startswith("assumed, as no file shows it: act_layer ReLU, output_stride 32")
    plain = random_peer(lambda: timm.create_model("seresnet18", num_classes=5))
    info = convert(plain).foveal_info
    assert info["converted_from"] == "timm-se"
    assert "notes" not in info
