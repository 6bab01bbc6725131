"""Whole video networks of mmaction2 and PySlowFast: the peers' networks written out by their names, from the released
code, and compared with ours on the same random weights; there and back to the bit.

The counts of tensors and parameters with 0 and 5 blocks are those of the peers' own modules with 7 classes, which
agreed with ours to 7e-7 when they were run beside them.
"""

import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.published import convert, export
from foveal.published.conversion import FORMATS

CLASSES = 7
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def over_time(stage, block, kind):
    """Frames of a block's first convolution: res2 all, res3 and res4 every other from the first, res5 the second."""
    inflated = stage == 0 or (block % 2 == 0 if stage < 3 else block == 1)
    return 3 if kind == "i3d" and inflated else 1


def norm(x, state, name):
    return F.batch_norm(
        x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
    )


def residual(x, state, convs, norms, shortcut, stride, frames):
    strides = (1, stride, stride)
    y = F.conv3d(x, state[f"{convs[0]}.weight"], padding=(frames // 2, 0, 0))
    y = norm(y, state, norms[0]).relu()
    y = F.conv3d(y, state[f"{convs[1]}.weight"], stride=strides, padding=(0, 1, 1))
    y = norm(F.conv3d(norm(y, state, norms[1]).relu(), state[f"{convs[2]}.weight"]), state, norms[2])
    if shortcut is not None:
        x = norm(F.conv3d(x, state[f"{shortcut[0]}.weight"], stride=strides), state, shortcut[1])
    return (x + y).relu()


def slowfast(state, x, kind, similarity, depth=50, pool_frames=2):
    """PySlowFast's ResNet: strides in the 3x3, keys pooled before their convolutions, softmax over scaled products."""
    frames = 5 if kind == "i3d" else 1
    x = F.conv3d(x, state["s1.pathway0_stem.conv.weight"], stride=(1, 2, 2), padding=(frames // 2, 3, 3))
    x = F.max_pool3d(norm(x, state, "s1.pathway0_stem.bn").relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, count in enumerate(BLOCKS[depth]):
        for block in range(count):
            at = f"s{stage + 2}.pathway0_res{block}"
            convs = [f"{at}.branch2.{letter}" for letter in "abc"]
            shortcut = (f"{at}.branch1", f"{at}.branch1_bn") if block == 0 else None
            stride = 2 if block == 0 and stage else 1
            x = residual(
                x, state, convs, [f"{c}_bn" for c in convs], shortcut, stride, over_time(stage, block, kind)
            )
            at = f"s{stage + 2}.pathway0_nonlocal{block}"
            if f"{at}.conv_g.weight" in state:
                keys = F.max_pool3d(x, (1, 2, 2), (1, 2, 2))
                theta, phi, g = (
                    F.conv3d(v, state[f"{at}.conv_{n}.weight"], state[f"{at}.conv_{n}.bias"]).flatten(2)
                    for n, v in (("theta", x), ("phi", keys), ("g", keys))
                )
                product = theta.transpose(1, 2) @ phi
                weights = (
                    (product * theta.shape[1] ** -0.5).softmax(2)
                    if similarity == "softmax"
                    else product / phi.shape[2]
                )
                y = (g @ weights.transpose(1, 2)).reshape(*g.shape[:2], *x.shape[2:])
                y = F.conv3d(y, state[f"{at}.conv_out.weight"], state[f"{at}.conv_out.bias"])
                x = x + norm(y, state, f"{at}.bn")
        if stage == 0:
            x = F.max_pool3d(x, (pool_frames, 1, 1), (pool_frames, 1, 1))
    return F.linear(x.mean((2, 3, 4)), state["head.projection.weight"], state["head.projection.bias"])


def mmaction(state, x, similarity, depth=50):
    """mmaction2's I3D: frames halved by the first convolution and the first pooling, phi and g pooled after them."""
    x = F.conv3d(x, state["backbone.conv1.conv.weight"], stride=2, padding=(2, 3, 3))
    x = F.max_pool3d(norm(x, state, "backbone.conv1.bn").relu(), (1, 3, 3), (2, 2, 2), (0, 1, 1))
    for stage, count in enumerate(BLOCKS[depth]):
        for block in range(count):
            at = f"backbone.layer{stage + 1}.{block}"
            convs, norms = ([f"{at}.conv{i}.{part}" for i in (1, 2, 3)] for part in ("conv", "bn"))
            shortcut = (f"{at}.downsample.conv", f"{at}.downsample.bn") if block == 0 else None
            stride = 2 if block == 0 and stage else 1
            x = residual(x, state, convs, norms, shortcut, stride, over_time(stage, block, "i3d"))
            at = f"{at}.non_local_block"
            if f"{at}.g.0.conv.weight" in state:
                x = x + mmcv_block(state, x, at, similarity)
        if stage == 0:
            x = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
    return F.linear(x.mean((2, 3, 4)), state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def mmaction_c2d(state, x, depth=50):
    """mmaction2's C2D: convolutions of frames that lie in the batch, poolings of clips, none of them padded."""
    clips = len(x)

    def frames(v):
        return v.permute(0, 2, 1, 3, 4).flatten(0, 1)

    def clip(v):
        return v.unflatten(0, (clips, -1)).permute(0, 2, 1, 3, 4)

    x = F.conv2d(frames(x), state["backbone.conv1.conv.weight"], stride=2, padding=3)
    x = frames(F.max_pool3d(clip(norm(x, state, "backbone.conv1.bn").relu()), (1, 3, 3), (1, 2, 2)))
    for stage, count in enumerate(BLOCKS[depth]):
        for block in range(count):
            at, stride = f"backbone.layer{stage + 1}.{block}", 2 if block == 0 and stage else 1
            y = norm(F.conv2d(x, state[f"{at}.conv1.conv.weight"]), state, f"{at}.conv1.bn").relu()
            y = F.conv2d(y, state[f"{at}.conv2.conv.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, state, f"{at}.conv2.bn").relu(), state[f"{at}.conv3.conv.weight"])
            if block == 0:
                x = F.conv2d(x, state[f"{at}.downsample.conv.weight"], stride=stride)
                x = norm(x, state, f"{at}.downsample.bn")
            x = (x + norm(y, state, f"{at}.conv3.bn")).relu()
        if stage == 0:
            x = frames(F.max_pool3d(clip(x), (2, 1, 1), (2, 1, 1)))
    return F.linear(clip(x).mean((2, 3, 4)), state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"])


def mmcv_block(state, x, at, similarity):
    def pooled(v):
        return F.max_pool3d(v, (1, 2, 2), (1, 2, 2))

    def conv(v, name):
        return F.conv3d(v, state[f"{at}.{name}.weight"], state.get(f"{at}.{name}.bias"))

    g = pooled(conv(x, "g.0.conv")).flatten(2)
    theta = (x if similarity == "gaussian" else conv(x, "theta.conv")).flatten(2)
    phi = pooled(x if similarity == "gaussian" else conv(x, "phi.0.conv")).flatten(2)
    product = theta.transpose(1, 2) @ phi
    weights = product / phi.shape[2] if similarity == "dot_product" else product.softmax(2)
    y = (g @ weights.transpose(1, 2)).reshape(*g.shape[:2], *x.shape[2:])
    return norm(conv(y, "conv_out.conv"), state, f"{at}.conv_out.bn")


def randomised(net):
    """Weights drawn anew, norms that start at zero too: what a block does must show."""
    torch.manual_seed(0)
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.6, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def ours(kind, blocks, depth=50, **options):
    name = f"nonlocal_{kind}_resnet{depth}"
    return randomised(
        foveal.create_model(name, variant="released", num_classes=CLASSES, blocks=blocks, **options)
    )


def agree(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


SLOWFAST = [
    ("c2d", 0, None, 320, 23_522_375),
    ("i3d", 1, "softmax", 333, 29_339_975),
    pytest.param("i3d", 5, "softmax", 385, 34_596_679, marks=pytest.mark.slow),
    pytest.param("i3d", 5, "dot_product", 385, 34_596_679, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "blocks", "similarity", "tensors", "parameters"), SLOWFAST)
def test_pyslowfast(kind, blocks, similarity, tensors, parameters):
    pairwise = {"softmax": "embedded_gaussian"}.get(similarity, similarity)
    block = {"pairwise": pairwise, "scaled": similarity == "softmax", "subsample": "before", "out_bias": True}
    net = ours(kind, blocks, **(block if blocks else {}))
    state = export(net, "pyslowfast")
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        assert agree(net(x), slowfast(state, x, kind, similarity)) < 1e-5
    stated = {"pool_frames": 2, **({"pairwise": pairwise} if blocks else {})}
    again = convert({"model_state": state}, **stated).eval()
    assert again.foveal_info["converted_from"] == "pyslowfast"
    assert all(torch.equal(value, state[name]) for name, value in export(again, "pyslowfast").items())
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    assert (len(state), sum(p.numel() for p in net.parameters())) == (tensors, parameters)


MMACTION = [
    ("embedded_gaussian", 1, 332, 29_338_951),
    pytest.param("none", 0, 320, 27_238_215, marks=pytest.mark.slow),
    pytest.param("dot_product", 5, 380, 34_592_583, marks=pytest.mark.slow),
    pytest.param("gaussian", 5, 360, 30_918_471, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("similarity", "blocks", "tensors", "parameters"), MMACTION)
def test_mmaction2(similarity, blocks, tensors, parameters):
    block = {"pairwise": similarity, "subsample": "after"} if blocks else {}
    net = ours("i3d", blocks, stem_stride=2, **block)
    state = export(net, "mmaction2")
    x = torch.randn(1, 3, 16, 32, 32)
    with torch.no_grad():
        assert agree(net(x), mmaction(state, x, similarity)) < 1e-5
    stated = {"pairwise": similarity} if similarity in ("dot_product", "embedded_gaussian") else {}
    again = convert(state, **stated).eval()
    assert again.foveal_info["converted_from"] == "mmaction2"
    assert all(torch.equal(value, state[name]) for name, value in export(again, "mmaction2").items())
    assert (len(state), sum(p.numel() for p in net.parameters())) == (tensors, parameters)


def shapes_of(format, net):
    return {theirs: torch.zeros(shape) for theirs, shape in FORMATS[format].table(net).values()}


def test_what_a_file_leaves_open_must_be_stated():
    with torch.device("meta"):
        options = {"variant": "released", "blocks": 1, "subsample": "before", "out_bias": True}
        net = foveal.create_model("nonlocal_i3d_resnet50", **options)
    with pytest.raises(ValueError, match="pairwise must be stated as 'embedded_gaussian' or 'dot_product'"):
        convert(shapes_of("pyslowfast", net), pool_frames=2)


def test_a_network_without_the_second_pooling_is_told_apart():
    """PySlowFast's C2D_NOPOOL has the names and shapes of its C2D: which it is must be said."""
    net = ours("c2d", 0, pool_frames=1)
    state = export(net, "pyslowfast")
    x = torch.randn(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert agree(net(x), slowfast(state, x, "c2d", None, pool_frames=1)) < 1e-5
        assert agree(net(x), slowfast(state, x, "c2d", None)) > 1e-3
    with pytest.raises(ValueError, match=r"pool_frames must be stated as 2 for a C2D or I3D.* got None"):
        convert(state)
    again = convert(state, pool_frames=1).eval()
    assert again.foveal_model["kwargs"]["pool_frames"] == 1
    assert all(torch.equal(value, state[name]) for name, value in export(again, "pyslowfast").items())
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    with pytest.raises(ValueError, match="pool_frames must be 2, or 1 with variant='released', got 1"):
        foveal.create_model("nonlocal_c2d_resnet50", pool_frames=1)


def test_another_depth_or_a_cut_file_is_refused():
    with torch.device("meta"):
        net = foveal.create_model("nonlocal_c2d_resnet50", variant="released", blocks=0)
    state = shapes_of("pyslowfast", net)
    shorter = {name: value for name, value in state.items() if not name.startswith("s4.pathway0_res5")}
    with pytest.raises(ValueError, match="blocks per stage must be one of"):
        convert(shorter, pool_frames=2)
    cut = {name: value for name, value in state.items() if name != "s2.pathway0_res0.branch2.a_bn.weight"}
    with pytest.raises(ValueError, match=r"s2\.pathway0_res0\.branch2\.a_bn\.weight"):
        convert(cut, pool_frames=2)


# where PySlowFast's configuration of ResNet-101 has its blocks, unlike the released code
SITES_101 = ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]


@pytest.mark.slow
def test_a_resnet_101_of_pyslowfast_keeps_its_places():
    block = {"pairwise": "embedded_gaussian", "scaled": True, "subsample": "before", "out_bias": True}
    net = ours("i3d", SITES_101, 101, **block)
    state = export(net, "pyslowfast")
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert agree(net(x), slowfast(state, x, "i3d", "softmax", 101)) < 1e-5
    again = convert(state, pairwise="embedded_gaussian", pool_frames=2).eval()
    assert again.foveal_model["kwargs"]["blocks"] == SITES_101
    assert all(torch.equal(value, state[name]) for name, value in export(again, "pyslowfast").items())


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_a_c2d_of_mmaction2(depth):
    net = ours("c2d", 0, depth, pool_padding=0)
    state = export(net, "mmaction2")
    assert state["backbone.layer1.0.conv2.conv.weight"].shape == (64, 64, 3, 3)
    x = torch.randn(2, 3, 4, 33, 40)
    with torch.no_grad():
        assert agree(net(x), mmaction_c2d(state, x, depth)) < 1e-5
    again = convert(state, pool_padding=0).eval()
    assert again.foveal_model["name"] == f"nonlocal_c2d_resnet{depth}"
    assert all(torch.equal(value, state[name]) for name, value in export(again, "mmaction2").items())
    with pytest.raises(ValueError, match=r"pool_padding must be stated as 0, .* a TSN"):
        convert(state)


@pytest.mark.slow
def test_an_i3d_of_mmaction2_of_resnet_101():
    net = ours("i3d", 1, 101, stem_stride=2, pairwise="dot_product", subsample="after")
    state = export(net, "mmaction2")
    x = torch.randn(1, 3, 16, 32, 32)
    with torch.no_grad():
        assert agree(net(x), mmaction(state, x, "dot_product", 101)) < 1e-5
    again = convert(state, pairwise="dot_product")
    assert again.foveal_model["kwargs"]["blocks"] == 1


def test_places_of_a_deeper_network_are_read_from_the_names():
    with torch.device("meta"):
        net = foveal.create_model(
            "nonlocal_c2d_resnet101", variant="released", blocks=SITES_101, subsample="before", out_bias=True
        )
    again = convert(shapes_of("pyslowfast", net), pairwise="dot_product", pool_frames=2)
    assert again.foveal_model["name"] == "nonlocal_c2d_resnet101"
    assert again.foveal_model["kwargs"]["blocks"] == SITES_101
