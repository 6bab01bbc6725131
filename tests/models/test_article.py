"""The residual blocks with CBAM are the article's listing, written out here as plain equations on the same weights."""

import pytest
import torch
import torch.nn.functional as F

import foveal


def cbam(y, w):
    """Mean and maximum through one bottleneck of a sixteenth, without biases; then a 7x7 over [mean, maximum]."""
    down, up, kernel = w["channel.fc1.weight"], w["channel.fc2.weight"], w["spatial.conv.weight"]
    squeezed = [y.mean((2, 3)), y.amax((2, 3))]
    y = (
        torch.sigmoid(sum(F.relu(z @ down.flatten(1).T) @ up.flatten(1).T for z in squeezed))[..., None, None]
        * y
    )
    maps = torch.stack([y.mean(1), y.amax(1)], dim=1)
    return torch.sigmoid(F.conv2d(maps, kernel, padding=3)) * y


def norm(y, w, name, training):
    if training:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    else:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    y = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return y * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def shortcut(x, w, stride, training):
    if "downsample.0.weight" not in w:
        return x
    return norm(F.conv2d(x, w["downsample.0.weight"], stride=stride), w, "downsample.1", training)


def basic_block(x, w, stride, training):
    """3x3 (with the stride), 3x3; CBAM after the second normalisation, then the addition and ReLU."""
    y = F.relu(norm(F.conv2d(x, w["conv1.weight"], stride=stride, padding=1), w, "bn1", training))
    y = norm(F.conv2d(y, w["conv2.weight"], padding=1), w, "bn2", training)
    y = cbam(y, {k.removeprefix("bn2.cbam."): v for k, v in w.items()})
    return F.relu(y + shortcut(x, w, stride, training))


def bottleneck(x, w, stride, training):
    """1x1, 3x3 (with the stride), 1x1 to four times the width; CBAM after the third normalisation."""
    y = F.relu(norm(F.conv2d(x, w["conv1.weight"]), w, "bn1", training))
    y = F.relu(norm(F.conv2d(y, w["conv2.weight"], stride=stride, padding=1), w, "bn2", training))
    y = norm(F.conv2d(y, w["conv3.weight"]), w, "bn3", training)
    y = cbam(y, {k.removeprefix("bn3.cbam."): v for k, v in w.items()})
    return F.relu(y + shortcut(x, w, stride, training))


@pytest.fixture(scope="module", params=[("cbam_resnet18", basic_block), ("cbam_resnet50", bottleneck)])
def network(request):
    name, listing = request.param
    return foveal.create_model(name, num_classes=2), listing


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("site", "stride"), [("layer1.0", 1), ("layer2.0", 2), ("layer2.1", 1)])
def test_a_residual_block_with_cbam_is_the_articles(network, site, stride, training):
    net, listing = network
    block = net.get_submodule(site).double().train(training)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in block.state_dict().values():
            if value.is_floating_point():
                scale = 0.5 if value.ndim == 1 else value[0].numel() ** -0.5
                value.copy_(scale * torch.randn(value.shape, generator=generator))
        for name, value in block.named_buffers():
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    weights = dict(block.named_parameters())
    x = torch.randn(2, block.conv1.in_channels, 9, 7, generator=generator).double().requires_grad_()
    everything = {k: v.clone() for k, v in block.named_buffers()} | weights
    inputs = [x, *weights.values()]
    theirs = listing(x, everything, stride, training)
    ours = block(x)
    seed = torch.randn(ours.shape, generator=generator).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(theirs, inputs, seed), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
