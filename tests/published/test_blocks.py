"""Single Non-local blocks of the common PyTorch port and of mmcv compute the same here, and go back bit by bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import foveal
from foveal.nn import NonLocal
from foveal.published import convert, export

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.MaxPool1d(2), 2: nn.MaxPool2d(2), 3: nn.MaxPool3d((1, 2, 2))}
SIZES = {1: (9,), 2: (6, 5), 3: (3, 4, 5)}
PAIRWISE = ["gaussian", "embedded_gaussian", "dot_product", "concatenation"]


class Port(nn.Module):
    """The names of the common PyTorch port, and the paper's equations."""

    def __init__(self, pairwise: str, dims: int, pooled: bool, norm: bool, channels: int = 8, inner: int = 4):
        super().__init__()
        self.pairwise = pairwise

        def conv(a, b):
            return CONV[dims](a, b, 1)

        def keys(layer):
            return nn.Sequential(layer, POOL[dims]) if pooled else layer

        self.g = keys(conv(channels, inner))
        out = conv(inner, channels)
        self.W = nn.Sequential(out, NORM[dims](channels)) if norm else out
        if pairwise != "gaussian":
            self.theta = conv(channels, inner)
            self.phi = keys(conv(channels, inner))
        elif pooled:
            self.phi = POOL[dims]
        if pairwise == "concatenation":
            self.concat_project = nn.Sequential(nn.Conv2d(2 * inner, 1, 1, bias=False), nn.ReLU())

    def forward(self, x):
        g = self.g(x).flatten(2).transpose(1, 2)
        theta = (self.theta(x) if hasattr(self, "theta") else x).flatten(2)
        phi = (self.phi(x) if hasattr(self, "phi") else x).flatten(2)
        n, m = theta.shape[2], phi.shape[2]
        if self.pairwise == "concatenation":
            pairs = [theta[..., None].expand(-1, -1, n, m), phi[:, :, None].expand(-1, -1, n, m)]
            f = self.concat_project(torch.cat(pairs, dim=1))[:, 0] / m
        else:
            f = theta.transpose(1, 2) @ phi
            f = f / m if self.pairwise == "dot_product" else F.softmax(f, dim=-1)
        y = (f @ g).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.W(y) + x


def stated(pairwise: str) -> dict[str, str]:
    return {"pairwise": pairwise} if pairwise in ("embedded_gaussian", "dot_product") else {}


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_the_common_port(random_peer, agrees, pairwise, dims, pooled, norm):
    peer = random_peer(lambda: Port(pairwise, dims, pooled, norm))
    x = torch.randn(2, 8, *SIZES[dims])
    ours = {"concatenation": "pair_weight", "gaussian": "g.weight"}.get(pairwise, "phi.weight")
    theirs = {"pair_weight": "concat_project.0.weight"}.get(ours, ours)
    theirs = theirs.replace(".weight", ".0.weight") if pooled and ours != "pair_weight" else theirs
    block = agrees(peer, x, ours, theirs, **stated(pairwise))
    assert isinstance(block, NonLocal)
    assert block.foveal_info["converted_from"] == "nonlocal-port"
    said = f"one Non-local block, {dims}-D, {pairwise}"
    said += ", scale 1" if pairwise == "embedded_gaussian" else ""
    assert block.foveal_info["variant"] == said + (", keys sub-sampled after phi and g" if pooled else "")


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_mmcv(random_peer, agrees, pairwise, dims, pooled, norm):
    from mmcv.cnn.bricks import non_local

    make = getattr(non_local, f"NonLocal{dims}d")
    config = {"type": {1: "BN1d", 2: "BN", 3: "BN3d"}[dims]} if norm else None
    for scaled in (True, False) if pairwise == "embedded_gaussian" else (True,):
        peer = make(8, sub_sample=pooled, mode=pairwise, norm_cfg=config, use_scale=scaled)
        peer = random_peer(lambda peer=peer: peer.to("meta"))
        x = torch.randn(2, 8, *SIZES[dims])
        options = stated(pairwise) | ({"scaled": scaled} if pairwise == "embedded_gaussian" else {})
        ours, theirs = "g.weight", "g.0.conv.weight" if pooled else "g.conv.weight"
        if pairwise == "concatenation":  # mmcv's backward stops at its own in-place division after the ReLU
            ours, theirs = "out.weight", "conv_out.conv.weight"
        block = agrees(peer, x, ours, theirs, **options)
        assert block.foveal_info["converted_from"] == "mmcv-nonlocal"
        assert (block.scale != 1) == (scaled and pairwise == "embedded_gaussian")
        assert ("scale 0.5" in block.foveal_info["variant"]) == (block.scale != 1)  # inner is 4


def test_a_block_in_a_whole_networks_file(random_peer, agrees):
    """mmaction2 keeps its blocks inside residual blocks, below ``backbone``."""
    from mmcv.cnn import NonLocal3d

    peer = random_peer(lambda: NonLocal3d(8, sub_sample=True, use_scale=False, norm_cfg={"type": "BN3d"}))
    state = {f"backbone.layer2.1.non_local_block.{name}": value for name, value in peer.state_dict().items()}
    state |= {
        "backbone.layer2.1.conv1.conv.weight": torch.randn(8, 8, 1, 1, 1),
        "cls_head.fc_cls.bias": torch.randn(4),
    }
    with pytest.raises(ValueError, match=r"pass prefix='backbone\.layer2\.1\.non_local_block\.'"):
        convert({"meta": {}, "state_dict": state})
    options = {"pairwise": "embedded_gaussian", "scaled": False}
    prefix = "backbone.layer2.1.non_local_block"
    block = convert({"state_dict": state}, prefix=prefix, **options).eval()
    x = torch.randn(1, 8, 2, 4, 5)
    torch.testing.assert_close(block(x), peer.eval()(x))
    with pytest.raises(ValueError, match=r"prefix must begin the name of some tensor, got 'layer9\.'"):
        convert(state, prefix="layer9")


def test_what_a_file_does_not_show_must_be_stated(random_peer):
    state = random_peer(lambda: Port("dot_product", 2, False, True)).state_dict()
    with pytest.raises(
        ValueError, match=r"pairwise must be stated as 'embedded_gaussian' or 'dot_product', .* None"
    ):
        convert(state)
    from mmcv.cnn import NonLocal2d

    with pytest.raises(ValueError, match=r"scaled must be stated .* mmaction2's configurations"):
        convert(random_peer(lambda: NonLocal2d(8)).state_dict(), pairwise="embedded_gaussian")
    with pytest.raises(ValueError, match="pairwise must be 'gaussian' for these names, got 'dot_product'"):
        convert(random_peer(lambda: Port("gaussian", 2, False, True)).state_dict(), pairwise="dot_product")


def test_a_block_the_peer_cannot_be_is_not_exported():
    for options in ({"scaled": True}, {"subsample": "before"}):
        with pytest.raises(ValueError, match="the network must be as nonlocal-port files are"):
            export(NonLocal(8, out_bias=True, **options), "nonlocal-port")
    with pytest.raises(ValueError, match="nonlocal-port must be given a network of its kind, got ResNet"):
        export(foveal.create_model("resnet18"), "nonlocal-port")


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_se_block_of_the_article_and_of_timm(bias):
    x = torch.randn(2, 32, 5, 5)
    block = foveal.nn.SqueezeExcite(32, reduction=4, bias=bias)
    for name in ("se-listing-block", "timm-se-block"):
        state = export(block, name)
        again = convert({f"layer1.0.se.{key}": value for key, value in state.items()}, prefix="layer1.0.se")
        assert again.foveal_info["converted_from"] == name
        assert torch.equal(again(x), block(x))
