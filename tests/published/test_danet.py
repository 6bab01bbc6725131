"""Published DANets compute the same here, and go back bit by bit: the authors' code, mmsegmentation, pytorchcv."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveal
from foveal.published import convert, export

from .conftest import Named

X = torch.randn(2, 3, 40, 33, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self, channels_in: int, width: int, stride: int, dilation: int):
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels_in != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """ResNet-50 at stride 8 with the dilations of both code bases; ``stem`` is a 7x7 or three 3x3 under that name."""

    def __init__(self, stem: str, width: int, last: tuple[int, int, int]):
        super().__init__()
        self.stem_name, self.deep = stem, width > 0
        if not self.deep:
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            channels = 64
        else:
            layers, before = [], 3
            for i, after in enumerate((width, width, 2 * width)):
                layers += [
                    nn.Conv2d(before, after, 3, 1 if i else 2, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
                before = after
            channels = 2 * width
            if stem == "conv1":  # the authors' last norm and ReLU lie outside
                self.conv1, self.bn1 = nn.Sequential(*layers[:-2]), layers[-2]
            else:
                self.stem = nn.Sequential(*layers)
        dilations = ((1,) * 3, (1,) * 4, (1, *(2,) * 5), last)
        for i, dilated in enumerate(dilations):
            blocks = []
            for j, dilation in enumerate(dilated):
                blocks.append(Residual(channels, 64 * 2**i, 2 if i == 1 and not j else 1, dilation))
                channels = 256 * 2**i
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.stem(x) if self.stem_name == "stem" else F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(F.max_pool2d(x, 3, 2, 1)))
        before = self.layer3(x)
        return before, self.layer4(before)


def position(x, query, key, value, gamma):
    q, k, v = (conv(x).flatten(2) for conv in (query, key, value))
    weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
    return gamma * (v @ weights.transpose(1, 2)).view_as(x) + x


def channel(x, gamma):
    flat = x.flatten(2)
    energy = flat @ flat.transpose(1, 2)
    weights = torch.softmax(energy.amax(-1, keepdim=True) - energy, dim=-1)
    return gamma * (weights @ flat).view_as(x) + x


def conv_norm(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


class Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...], name: str, **children: nn.Module):
        super().__init__()
        setattr(self, name, nn.Parameter(torch.zeros(shape)))
        for child_name, child in children.items():
            self.add_module(child_name, child)


class OfficialDANet(nn.Module):
    def __init__(self, stem_width: int, last: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.pretrained = Backbone("conv1", stem_width, last)
        c = 512
        attention = {
            f"{name}_conv": nn.Conv2d(c, w, 1) for name, w in (("query", 64), ("key", 64), ("value", c))
        }
        self.head = Named(
            conv5a=conv_norm(2048, c),
            conv5c=conv_norm(2048, c),
            sa=Scaled((1,), "gamma", **attention),
            sc=Scaled((1,), "gamma"),
            conv51=conv_norm(c, c),
            conv52=conv_norm(c, c),
            **{f"conv{i}": nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(c, num_classes, 1)) for i in (6, 7, 8)},
        )

    def forward(self, x):
        _, y = self.pretrained(x)
        h = self.head
        a = h.conv51(position(h.conv5a(y), h.sa.query_conv, h.sa.key_conv, h.sa.value_conv, h.sa.gamma))
        b = h.conv52(channel(h.conv5c(y), h.sc.gamma))
        maps = (h.conv8(a + b), h.conv6(a), h.conv7(b))
        return [F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=True) for m in maps]


class MMSegDANet(nn.Module):
    def __init__(self, num_classes: int, auxiliary: bool):
        super().__init__()
        self.backbone = Backbone("stem", 32, (2, 4, 4))
        c = 512

        def module(a, b):
            conv, norm, _ = conv_norm(a, b)
            return Named(conv=conv, bn=norm)

        widths = (("query", 64), ("key", 64), ("value", c))
        project = {f"{name}_project": nn.Conv2d(c, w, 1) for name, w in widths}
        self.decode_head = Named(
            conv_seg=nn.Conv2d(c, num_classes, 1),
            pam_in_conv=module(2048, c),
            pam=Named(gamma=Scaled((), "scale"), **project),
            pam_out_conv=module(c, c),
            pam_conv_seg=nn.Conv2d(c, num_classes, 1),
            cam_in_conv=module(2048, c),
            cam=Named(gamma=Scaled((), "scale")),
            cam_out_conv=module(c, c),
            cam_conv_seg=nn.Conv2d(c, num_classes, 1),
        )
        if auxiliary:
            convs = nn.Sequential(module(1024, 256))
            self.auxiliary_head = Named(conv_seg=nn.Conv2d(256, num_classes, 1), convs=convs)

    def forward(self, x):
        def run(m, y):
            return F.relu(m.bn(m.conv(y)))

        before, y = self.backbone(x)
        h = self.decode_head
        at = position(
            run(h.pam_in_conv, y),
            h.pam.query_project,
            h.pam.key_project,
            h.pam.value_project,
            h.pam.gamma.scale,
        )
        a = run(h.pam_out_conv, at)
        b = run(h.cam_out_conv, channel(run(h.cam_in_conv, y), h.cam.gamma.scale))
        maps = [h.conv_seg(a + b), h.pam_conv_seg(a), h.cam_conv_seg(b)]
        if hasattr(self, "auxiliary_head"):
            maps.append(self.auxiliary_head.conv_seg(run(self.auxiliary_head.convs[0], before)))
        return [F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=False) for m in maps]


def ours(logits):
    """All heads in train mode, the fused one in eval mode."""
    return torch.stack(list(logits.values()))


def all_in_training(peer):
    """What to take of the peer's maps: as many as ours gives in that mode."""
    return lambda maps: torch.stack(list(maps) if peer.training else list(maps)[:1])


@pytest.mark.parametrize(
    ("stem", "last", "options", "name"),
    [(0, (4, 8, 16), {}, "danet_resnet50"), (64, (2, 4, 4), {"multi_grid": None}, "danet_resnet50s")],
)
def test_the_authors_danet(random_peer, agrees, stem, last, options, name):
    peer = random_peer(lambda: OfficialDANet(stem, last, num_classes=5))
    net = agrees(
        peer,
        X,
        "position.1.query.weight",
        "head.sa.query_conv.weight",
        pick=all_in_training(peer),
        pick_ours=ours,
        **options,
    )
    assert net.foveal_info["converted_from"] == "danet-official"
    assert net.foveal_info["variant"].endswith(", corners aligned")
    assert ("multi-grid 1 2 4" in net.foveal_info["variant"]) == (last == (4, 8, 16))
    assert net.foveal_model["name"] == name


def test_width_channels_and_options_are_kept(tmp_path):
    options = {"multi_grid": None, "output_stride": 16, "dropout": 0.2, "align_corners": False}
    net = foveal.create_model("danet_resnet18", num_classes=3, in_chans=1, width=64, **options)
    again = convert(export(net, "danet-official"), **options)
    assert "no multi-grid, corners not aligned" in again.foveal_info["variant"]
    foveal.save(again, tmp_path / "net.safetensors")
    assert str(foveal.load(tmp_path / "net.safetensors")) == str(net)
    assert again.foveal_model["kwargs"].items() >= {"width": 64, "in_chans": 1, **options}.items()


def test_heads_that_the_authors_never_run_are_left_out_and_nothing_else(random_peer):
    peer = random_peer(lambda: OfficialDANet(0, (4, 8, 16), num_classes=2))
    state = peer.state_dict()
    state |= {"pretrained.fc.weight": torch.zeros(1000, 2048), "auxlayer.conv5a.0.weight": torch.zeros(1)}
    assert export(convert(state), "danet-official").keys() == peer.state_dict().keys()
    for strange in ("head.conv9.1.weight", "pretrained.fcs.weight", "auxlayers.0.weight"):
        with pytest.raises(ValueError, match=rf"(?m)unexpected: {re.escape(strange)}$"):
            convert({**state, strange: torch.zeros(1)})


@pytest.mark.parametrize("auxiliary", [False, True])
def test_mmsegmentations_danet(random_peer, agrees, auxiliary):
    peer = random_peer(lambda: MMSegDANet(5, auxiliary))
    net = agrees(
        peer,
        X,
        "channel.1.gamma",
        "decode_head.cam.gamma.scale",
        pick=all_in_training(peer),
        pick_ours=ours,
    )
    assert net.foveal_info["converted_from"] == "mmseg-danet"
    assert "not aligned" in net.foveal_info["variant"]


def test_pytorchcvs_danet(random_peer, agrees):
    from pytorchcv.models import danet

    peer = random_peer(lambda: danet.danet_resnetd50b_cityscapes(num_classes=5, fixed_size=False))
    net = agrees(
        peer,
        X,
        "position.1.query.weight",
        "head.branch_pa.att.query_conv.weight",
        pick=all_in_training(peer),
        pick_ours=ours,
    )
    words = {}
    for name, value in export(net.float(), "pytorchcv-danet").items():
        name = name.replace("backbone.0.", "backbone.init_block.")
        words[re.sub(r"^backbone\.([1-4])\.", r"backbone.stage\1.", name)] = value
    again = convert(words)
    assert again.foveal_info["converted_from"] == "pytorchcv-danet-words"
    back = export(again, "pytorchcv-danet-words")
    assert back.keys() == words.keys()
    assert all(torch.equal(value, words[name]) for name, value in back.items())
