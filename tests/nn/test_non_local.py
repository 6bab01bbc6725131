import pytest
import torch
from mmcv.cnn.bricks.non_local import NonLocal1d, NonLocal2d, NonLocal3d
from torch import nn

from foveal.nn import NonLocal
from foveal.nn.non_local import PAIRWISE

MMCV = {1: NonLocal1d, 2: NonLocal2d, 3: NonLocal3d}
POOL = {1: nn.MaxPool1d(2), 2: nn.MaxPool2d(2), 3: nn.MaxPool3d((1, 2, 2))}
SIZE = {1: (7,), 2: (7, 4), 3: (3, 5, 4)}


def equations(block, x):
    """Non-local equations 1 to 6 over all positions, letter by letter; BatchNorm in eval mode."""
    pool = (
        POOL[block.dims]
        if block.over == "spacetime"
        else {"time": nn.MaxPool3d((2, 1, 1))}.get(block.over, POOL[3])
    )
    keys = pool(x) if block.subsample == "before" else x
    theta, phi = (x, keys) if block.pairwise == "gaussian" else (block.theta(x), block.phi(keys))
    g = block.g(keys)
    if block.subsample == "after":
        phi, g = pool(phi), pool(g)
    key_spatial = g.shape[2:]
    theta, phi, g = theta.flatten(2), phi.flatten(2), g.flatten(2)
    if block.pairwise == "concatenation":
        pairs = torch.cat(
            [
                theta[..., :, None].expand(-1, -1, -1, phi.shape[2]),
                phi[..., None, :].expand(-1, -1, theta.shape[2], -1),
            ],
            dim=1,
        )
        f = torch.einsum("c,bcij->bij", block.pair_weight.flatten(), pairs).relu()
    else:
        f = torch.einsum("bci,bcj->bij", theta, phi) * block.scale
    if block.over != "spacetime":
        # position i = (t, y, x) sees key j only in its own frame, or only in its own place
        query_index = torch.cartesian_prod(*map(torch.arange, x.shape[2:]))
        key_index = torch.cartesian_prod(*map(torch.arange, key_spatial))
        same = slice(0, 1) if block.over == "space" else slice(1, 3)
        sees = (query_index[:, None, same] == key_index[None, :, same]).all(-1)
    else:
        sees = torch.ones(f.shape[1:], dtype=torch.bool)
    if "gaussian" in block.pairwise:
        f = f.masked_fill(~sees, float("-inf")).exp()
        weights = f / f.sum(-1, keepdim=True)
    else:
        weights = f * sees / sees.sum(-1, keepdim=True)
    y = torch.einsum("bij,bcj->bci", weights, g).unflatten(2, x.shape[2:])
    z = block.out(y)
    if isinstance(block.norm, nn.modules.batchnorm._BatchNorm):
        norm = block.norm
        shape = [1, -1] + [1] * block.dims
        z = (z - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
        z = z * norm.weight.view(shape) + norm.bias.view(shape)
    return x + z, weights.unflatten(2, key_spatial)


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("subsample", ["none", "after", "before"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_follows_the_papers_equations(pairwise, dims, subsample, norm, randomise, assert_same):
    block = NonLocal(6, pairwise=pairwise, dims=dims, subsample=subsample, norm=norm)
    randomise(block.double().eval())
    weights = [(w, w) for w in block.parameters()]
    assert_same(block, lambda x: equations(block, x)[0], torch.randn(2, 6, *SIZE[dims]), weights)


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("over", ["space", "time"])
@pytest.mark.parametrize("subsample", ["none", "after", "before"])
def test_video_attention_over_space_or_time_sees_only_that(pairwise, over, subsample, randomise, assert_same):
    block = NonLocal(4, pairwise=pairwise, dims=3, over=over, subsample=subsample)
    randomise(block.double().eval())
    weights = [(w, w) for w in block.parameters()]
    assert_same(block, lambda x: equations(block, x)[0], torch.randn(2, 4, 4, 3, 2), weights)


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("over", ["spacetime", "space", "time"])
@pytest.mark.parametrize("subsample", ["none", "after"])
def test_rows_are_the_weights_of_the_equation(pairwise, over, subsample, randomise):
    block = NonLocal(4, pairwise=pairwise, dims=3, over=over, subsample=subsample)
    randomise(block.double().eval())
    x = torch.randn(2, 4, 4, 3, 2, dtype=torch.float64)
    points = [(0, 0, 0), (3, 1, 1), (2, 2, 0)]
    rows = block.attention(x, points)["rows"]
    literal = equations(block, x)[1].unflatten(1, x.shape[2:])
    for r, (t, y, z) in enumerate(points):
        torch.testing.assert_close(rows[:, r], literal[:, t, y, z])


def load_from_mmcv(block, theirs):
    """mmcv-lite's weights; its pooling, where on, wraps g and phi in a Sequential."""
    plain = {
        name: module[0] if isinstance(module, nn.Sequential) else module
        for name, module in theirs.named_children()
    }
    pairs = []
    for ours, name in [("theta", "theta"), ("phi", "phi"), ("g", "g"), ("out", "conv_out")]:
        if hasattr(block, ours):
            getattr(block, ours).load_state_dict(plain[name].conv.state_dict())
            pairs.append((getattr(block, ours).weight, plain[name].conv.weight))
    if block.pairwise == "concatenation":
        block.pair_weight.data = theirs.concat_project.conv.weight.data.reshape(block.pair_weight.shape)
        pairs.append((block.pair_weight, theirs.concat_project.conv.weight))
    if theirs.conv_out.norm_cfg is not None:
        block.norm.load_state_dict(theirs.conv_out.norm.state_dict())
        pairs.append((block.norm.weight, theirs.conv_out.norm.weight))
    return pairs


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_equals_mmcv(pairwise, dims, sub_sample, normed, randomise, assert_same):
    # mmcv pools after phi and g, and scales by 1/sqrt(d) for the embedded Gaussian only, which the paper does not
    theirs = MMCV[dims](
        6,
        sub_sample=sub_sample,
        mode=pairwise,
        norm_cfg={"type": f"BN{dims}d" if dims != 2 else "BN"} if normed else None,
    )
    randomise(theirs.double())
    if pairwise == "concatenation":
        # mmcv divides the ReLU's output in place, which its backward refuses; a threshold keeps the input instead
        theirs.concat_project.activate = nn.Threshold(0.0, 0.0)
    block = NonLocal(
        6,
        pairwise=pairwise,
        dims=dims,
        subsample="after" if sub_sample else "none",
        scaled=pairwise == "embedded_gaussian",
        norm="batch" if normed else "none",
    ).double()
    pairs = load_from_mmcv(block, theirs)
    assert_same(block, theirs, torch.randn(2, 6, *SIZE[dims]), pairs)


def test_pooling_before_and_after_differ(randomise):
    before, after = NonLocal(6, subsample="before"), NonLocal(6, subsample="after")
    randomise(before.eval()), randomise(after.eval())
    x = torch.randn(2, 6, 6, 4)
    assert not torch.allclose(before(x), after(x), atol=1e-2)


def test_scale_is_one_over_the_root_of_the_width_compared():
    assert NonLocal(32, inner=4, scaled=True).scale == 0.5
    assert NonLocal(16, pairwise="gaussian", scaled=True).scale == 0.25


def test_old_mmdetections_scale_is_there_by_name(randomise, assert_same):
    """It divided by ``width ** -0.5``, which multiplies by the root of the width."""
    block = randomise(NonLocal(6, inner=4, scaled="mmdet", norm="none").double())

    def literal(x):
        theta, phi, g = (layer(x).flatten(2).mT for layer in (block.theta, block.phi, block.g))
        weights = torch.softmax(theta @ phi.mT / theta.shape[-1] ** -0.5, -1)
        return x + block.out((weights @ g).mT.unflatten(2, x.shape[2:]))

    assert_same(block, literal, torch.randn(2, 6, 4, 3), [(w, w) for w in block.parameters()])
    assert NonLocal(32).scale == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NonLocal(1),
            "channels must be at least 2 .*or inner given.* got channels=1",
        ),
        (lambda: NonLocal(8, inner=0), "inner must be a whole number of at least 1, got 0"),
        (
            lambda: NonLocal(8, pairwise="cosine"),
            "pairwise must be one of 'gaussian', .* got 'cosine'",
        ),
        (lambda: NonLocal(8, dims=0), "dims must be 1, 2 or 3, got 0"),
        (lambda: NonLocal(8, over="time"), "over must be one of 'spacetime', got 'time'"),
        (lambda: NonLocal(8, subsample="yes"), "subsample must be one of .* got 'yes'"),
        (lambda: NonLocal(8, norm="layer"), "norm must be one of 'batch', 'none', got 'layer'"),
        (
            lambda: NonLocal(8, pairwise="concatenation", scaled=True),
            "scaled must be False for .* got True",
        ),
        (
            lambda: NonLocal(8, pairwise="dot_product", scaled="mmdet"),
            "scaled='mmdet' must come with pairwise='embedded_gaussian', got 'dot_product'",
        ),
        (
            lambda: NonLocal(8, scaled="sqrt"),
            "scaled must be True, False or 'mmdet', got 'sqrt'",
        ),
        (
            lambda: NonLocal(8)(torch.randn(1, 4, 3, 3)),
            r"input must be \(batch, 8 channels, 2 spatial sizes\)",
        ),
        (
            lambda: NonLocal(8).attention(torch.randn(1, 8, 3, 3), [(3, 0)]),
            r"positions must lie .* \(3, 0\)",
        ),
        (
            lambda: NonLocal(8).attention(torch.randn(1, 8, 3, 3), [(0,)]),
            r"positions .* got \(0,\)",
        ),
        (
            lambda: NonLocal(8).attention(torch.randn(1, 8, 3, 3), []),
            "positions must hold at least one",
        ),
    ],
)
def test_refuses_what_it_cannot_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
