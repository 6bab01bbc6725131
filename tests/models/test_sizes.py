"""Parameters and multiply-accumulates of every network by name, against its paper's table and against a peer's code.

Networks are built without drawing initial weights and counted on the meta device, which computes nothing. The peers
are counted by the same function, and that function is held to PyTorch's own counter below.
"""

import pytest
import timm
import torch
import torchvision
from mmcv.cnn import NonLocal2d, NonLocal3d
from pytorchcv.model_provider import get_model
from pytorchcv.models.common.conv import conv1x1, conv3x3_block
from pytorchcv.models.danet import DANetHead, PosAttBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal.measure import count_macs, count_parameters
from foveal.models.named import DETECTORS, NAMED
from foveal.models.video import VideoResNet, nonlocal_sites

DEPTHS, CIFAR_DEPTHS = (18, 34, 50, 101), (20, 32, 56, 110)

# name: options for equal blocks, pytorchcv's name, largest relative difference in multiply-accumulates
PEERS = {
    **{f"cifar_resnet{d}": ({}, f"resnet{d}_cifar10", 0) for d in (20, 56, 110)},
    **{
        f"se_resnet{d}": ({}, f"seresnet{d}{'b' if d >= 50 else ''}", 0) for d in (*DEPTHS, 152)
    },  # b: stride in the 3x3 convolution
    **{f"se_resnext{d}_32x4d": ({}, f"seresnext{d}_32x4d", 0) for d in (50, 101)},
    "se_net154": ({}, "senet154", 0),
    **{f"cifar_se_resnet{d}": ({"reduction": 16}, f"seresnet{d}_cifar10", 0) for d in (20, 56, 110)},
    # pytorchcv multiplies by the two gates one after the other, here both are one product
    **{f"cbam_resnet{d}": ({"variant": "official"}, f"cbam_resnet{d}", 2e-3) for d in (*DEPTHS, 152)},
}

# millions of parameters, billions of multiply-accumulates at 224 x 224, relative tolerance of the latter
PAPERS = {
    # Hu et al., Squeeze-and-Excitation Networks, tables 1 and 2 and section 4. Their ResNets have stride 2 in the first
    # 1x1 convolution, ours in the 3x3 as in torchvision, which costs 3 to 6 % more; ResNeXt has it there in both.
    "se_resnet50": (28.1, 3.87, 0.06),
    "se_resnet101": (None, 7.60, 0.04),
    "se_resnet152": (None, 11.32, 0.03),
    "se_resnext50_32x4d": (None, 4.25, 0.005),
    "se_resnext101_32x4d": (None, 8.00, 0.005),
    "se_net154": (115.1, None, 0),
    # Woo et al., CBAM, table 4; the deeper two again with stride 2 in the 1x1 convolution
    "cbam_resnet18": (11.78, 1.815, 0.005),
    "cbam_resnet34": (21.96, 3.665, 0.005),
    "cbam_resnet50": (28.09, 3.864, 0.065),
    "cbam_resnet101": (49.33, 7.581, 0.035),
}


def heavy(names):
    """The large ones last minutes together."""
    quick = ("cifar_se_resnet20", "cifar_cbam_resnet20", "se_resnet50", "cbam_resnet18", "danet_resnet18")
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


@pytest.fixture(autouse=True)
def without_initial_weights(monkeypatch):
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def macs(net, *shape):
    return count_macs(net.to("meta"), torch.zeros(1, *shape, device="meta"))


@pytest.mark.parametrize("name", heavy(PEERS))
def test_sizes_are_those_of_pytorchcv(name):
    options, peer, tolerance = PEERS[name]
    shape = (3, 32, 32) if name.startswith("cifar") else (3, 224, 224)
    ours = foveal.create_model(name, num_classes=10 if name.startswith("cifar") else 1000, **options)
    with torch.device("meta"):
        theirs = get_model(peer)
    assert count_parameters(ours) == count_parameters(theirs)
    assert macs(ours, *shape) == pytest.approx(macs(theirs, *shape), rel=tolerance)


@pytest.mark.parametrize("name", heavy(PAPERS))
def test_sizes_are_those_of_the_papers(name):
    millions, billions, tolerance = PAPERS[name]
    net = foveal.create_model(name)
    if millions is not None:
        assert count_parameters(net) / 1e6 == pytest.approx(millions, rel=2e-3)
    if billions is not None:
        assert macs(net, 3, 224, 224) / 1e9 == pytest.approx(billions, rel=tolerance)


@pytest.mark.parametrize("name", ["cifar_resnet", "cifar_se_resnet"])
def test_depth_32_lies_on_the_line_through_20_and_56(name):
    """pytorchcv has none of depth 32; every six layers cost the same."""
    small, middle, large = (foveal.create_model(f"{name}{d}", num_classes=10) for d in (20, 32, 56))
    assert 3 * count_parameters(middle) == 2 * count_parameters(small) + count_parameters(large)
    assert 3 * macs(middle, 3, 32, 32) == 2 * macs(small, 3, 32, 32) + macs(large, 3, 32, 32)


@pytest.mark.parametrize("name", heavy(f"cifar_cbam_resnet{d}" for d in CIFAR_DEPTHS))
def test_cbam_adds_to_the_cifar_networks_what_its_equations_say(name):
    """No published table has these: 2 C C / r for the MLP and 2 x 49 for the 7x7 convolution, at every block."""
    plain = foveal.create_model(name.replace("cbam_", ""), num_classes=10)
    net = foveal.create_model(name, num_classes=10)
    blocks = (int(name.removeprefix("cifar_cbam_resnet")) - 2) // 6
    assert len(foveal.inserted(net)) == 3 * blocks
    added = {c: 2 * c * (c // 4) + 2 * 49 for c in (16, 32, 64)}
    assert count_parameters(net) - count_parameters(plain) == blocks * sum(added.values())
    # MLP for the mean and for the maximum, convolution, and a product with each gate
    work = {c: 4 * c * (c // 4) + 2 * 49 * n + 2 * n * c for c, n in ((16, 32**2), (32, 16**2), (64, 8**2))}
    difference = macs(net, 3, 32, 32) - macs(plain, 3, 32, 32)
    assert difference == pytest.approx(blocks * sum(work.values()), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 101])
def test_nonlocal_resnets_are_timms_with_mmcvs_blocks(depth):
    class AsTheyAre(nn.Sequential):
        """A block of timm's and what comes after it."""

    net = foveal.create_model(f"nonlocal_resnet{depth}")
    theirs = timm.create_model(f"resnet{depth}")
    for site in nonlocal_sites(depth, 5):
        stage, number = site.split(".")
        block = theirs.get_submodule(site)
        peer = NonLocal2d(block.bn3.num_features, norm_cfg={"type": "BN"})
        getattr(theirs, stage)[int(number)] = AsTheyAre(block, peer)
    # mmcv's convolution before the normalisation has no bias, and neither has ours
    assert count_parameters(net) == count_parameters(theirs)
    assert macs(net, 3, 224, 224) == pytest.approx(macs(theirs, 3, 224, 224), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["c2d", "i3d"])
def test_video_networks_are_inflated_resnets_with_mmcvs_blocks(kind):
    plain = torchvision.models.resnet50(num_classes=400)
    over_time = 0
    if (
        kind == "i3d"
    ):  # five planes in the first convolution, three in the first of every second residual block
        over_time = 4 * plain.conv1.weight.numel()
        for stage in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
            over_time += sum(2 * block.conv1.weight.numel() for block in stage[::2])
    blocks = sum(count_parameters(NonLocal3d(c, norm_cfg={"type": "BN3d"})) for c in (512,) * 2 + (1024,) * 3)
    net = foveal.create_model(f"nonlocal_{kind}_resnet50", num_classes=400)
    assert count_parameters(net) == count_parameters(plain) + over_time + blocks


@pytest.mark.slow
def test_five_nonlocal_blocks_cost_less_than_fifty_layers():
    """Wang et al., section 4.2: the 5-block ResNet-50 has about 70 % of the parameters and about 80 % of the
    operations of the plain ResNet-101 (C2D, 32 frames, keys sub-sampled as in the released code)."""
    frames, image = (3, 32, 224, 224), (3, 224, 224)
    net = VideoResNet("c2d", blocks=5, subsample="before")
    deep, plain = torchvision.models.resnet101(num_classes=400), torchvision.models.resnet50(num_classes=400)
    assert count_parameters(net) / count_parameters(deep) == pytest.approx(0.7, abs=0.05)
    # the 17 more blocks of res4 run on 4 frames: 32, halved by the first convolution and by two poolings
    whole = macs(VideoResNet("c2d", blocks=0), *frames) + 4 * (macs(deep, *image) - macs(plain, *image))
    assert macs(net, *frames) / whole == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("name", heavy(f"danet_resnet{d}" for d in DEPTHS))
def test_danets_are_timms_backbone_with_pytorchcvs_head(name):
    net = foveal.create_model(name, num_classes=19)
    backbone = timm.create_model(
        name.removeprefix("danet_"), features_only=True, out_indices=(-1,), output_stride=8
    )
    width = backbone.feature_info.channels()[-1]
    head = DANetHead(width, 19)
    assert count_parameters(net) == count_parameters(backbone) + count_parameters(head)
    # in training, since only then all three classifiers run
    with FlopCounterMode(display=False) as ours:
        net.train().to("meta")(torch.zeros(2, 3, 224, 224, device="meta"))
    with FlopCounterMode(display=False) as theirs:
        head.to("meta")(backbone.to("meta")(torch.zeros(2, 3, 224, 224, device="meta"))[0])
    assert ours.get_total_flops() == pytest.approx(theirs.get_total_flops(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_ablations_of_danet_differ_by_their_attention_alone(depth):
    backbone = timm.create_model(f"resnet{depth}", features_only=True, out_indices=(-1,), output_stride=8)
    features = backbone.feature_info.channels()[-1]
    width = features // 4
    fcn = count_parameters(backbone) + sum(
        count_parameters(m)
        for m in (
            conv3x3_block(in_channels=features, out_channels=width),
            conv3x3_block(in_channels=width, out_channels=width),
            conv1x1(width, 19, bias=True),
        )
    )
    attentions = {
        "fcn": 0,
        "danet_channel": 1,  # its scale
        "danet_position": count_parameters(PosAttBlock(width)),
        "fcn_nonlocal": count_parameters(NonLocal2d(width, norm_cfg={"type": "BN"})),
    }
    for head, added in attentions.items():
        net = foveal.create_model(f"{head}_resnet{depth}", num_classes=19)
        assert count_parameters(net) == fcn + added, head


def test_every_network_by_name_is_in_one_of_these_tables():
    held = {*PEERS, *PAPERS, "cifar_se_resnet32", *(f"cifar_cbam_resnet{d}" for d in CIFAR_DEPTHS)}
    # of video networks tests/published/test_video.py
    held |= {f"nonlocal_{kind}resnet{d}" for kind in ("", "c2d_", "i3d_") for d in (50, 101)}
    # of our own making: tests/models/test_video.py
    held |= {f"nonlocal_{kind}_cifar_resnet{d}" for kind in ("c2d", "i3d") for d in (8, 20)}
    heads = ("danet", "danet_position", "danet_channel", "fcn", "fcn_nonlocal")
    held |= {f"{head}_resnet{d}" for head in heads for d in DEPTHS}
    # tests/models/test_detr.py and test_sparse_rcnn.py
    held |= {name for name in NAMED if name.startswith(tuple(DETECTORS))}
    assert {name for name in NAMED if not name.startswith("legacy_")} <= held


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "fcn_resnet18"])
def test_without_gates_the_count_is_pytorchs_own(name):
    net = foveal.create_model(name, num_classes=10).eval().to("meta")
    x = torch.zeros(2, 3, 64, 64, device="meta")
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert 2 * count_macs(net, x) == counter.get_total_flops()
