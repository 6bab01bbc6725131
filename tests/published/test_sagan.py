"""mmagic's SAGAN: its two networks written out by their names, from the released code, and compared with ours on the
same random weights, whose singular vectors have converged as in training; there and back to the bit.
"""

import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.nn.spectral_norm import singular_value, spectral_layers
from foveal.published import convert, export

FORMAT = "mmagic-sagan"


def weight(state, name):
    """A weight divided by its singular value, as PyTorch's first spectral norm does in evaluation."""
    matrix, u, v = (state[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
    return matrix / torch.dot(u, matrix.flatten(1) @ v)


def conv(state, x, name, padding=1):
    return F.conv2d(x, weight(state, name), state.get(f"{name}.bias"), padding=padding)


def normed(state, x, name):
    """Batch norm in evaluation, its eps as mmagic has it."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state.get(f"{name}.weight"), state.get(f"{name}.bias"), eps=1e-4)


def conditional(state, x, labels, name):
    gain, shift = (weight(state, f"{name}.{part}_embedding")[labels] for part in ("weight", "bias"))
    return normed(state, x, f"{name}.norm") * (gain[..., None, None] + 1) + shift[..., None, None]


def attention(state, x, name):
    theta, phi, g = (conv(state, x, f"{name}.{part}.conv", 0) for part in ("theta", "phi", "g"))
    phi, g = F.max_pool2d(phi, 2).flatten(2), F.max_pool2d(g, 2).flatten(2)
    beta = (theta.flatten(2).transpose(1, 2) @ phi).softmax(-1)
    y = (g @ beta.transpose(1, 2)).unflatten(2, x.shape[2:])
    return state[f"{name}.gamma"] * conv(state, y, f"{name}.o.conv", 0) + x


def generated(state, noise, labels, blocks, place):
    x = F.linear(noise, weight(state, "generator.noise2feat"), state["generator.noise2feat.bias"])
    x = x.reshape(len(noise), -1, 4, 4)
    for number in range(blocks + 1):
        at = f"generator.conv_blocks.{number}"
        if number == place:
            x = attention(state, x, at)
            continue
        y = F.interpolate(conditional(state, x, labels, f"{at}.norm_1").relu(), scale_factor=2)
        y = conditional(state, conv(state, y, f"{at}.conv_1.conv"), labels, f"{at}.norm_2").relu()
        y = conv(state, y, f"{at}.conv_2.conv")
        x = y + conv(state, F.interpolate(x, scale_factor=2), f"{at}.shortcut.conv", 0)
    x = normed(state, x, "generator.to_rgb.bn").relu()
    return conv(state, x, "generator.to_rgb.conv").tanh()


def judged(state, x, labels, halved, inplace):
    at = "discriminator.from_rgb"
    y = conv(state, conv(state, x, f"{at}.conv_1.conv").relu(), f"{at}.conv_2.conv")
    x = F.avg_pool2d(y, 2) + conv(state, F.avg_pool2d(x, 2), f"{at}.shortcut.conv", 0)
    x = attention(state, x, "discriminator.conv_blocks.0")
    for number, halve in enumerate(halved, start=1):
        at = f"discriminator.conv_blocks.{number}"
        y = conv(state, conv(state, x.relu(), f"{at}.conv_1.conv").relu(), f"{at}.conv_2.conv")
        x = x.relu() if inplace else x
        if f"{at}.shortcut.conv.weight_orig" in state:
            x = conv(state, x, f"{at}.shortcut.conv", 0)
        x = F.avg_pool2d(y, 2) + F.avg_pool2d(x, 2) if halve else y + x
    h = x.relu().sum((2, 3))
    score = F.linear(h, weight(state, "discriminator.decision"), state["discriminator.decision.bias"])
    return score[:, 0] + (weight(state, "discriminator.proj_y")[labels] * h).sum(1)


def network(size, iterations=0, **options):
    torch.manual_seed(0)
    net = foveal.create_model(f"sagan_{size}", variant="mmagic", num_classes=5, width=8, latent=16, **options)
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.7)
        for layer in spectral_layers(net):
            for _ in range(iterations):
                singular_value(layer.matrix(), layer.u, update=True)
    return net.eval()


CASES = [
    (32, False, {"blocks": 3, "place": 2}, (True, False, False)),
    (32, True, {"blocks": 3, "place": 2}, (True, False, False)),
    pytest.param(
        128, False, {"blocks": 5, "place": 4}, (True, True, True, True, False), marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("size", "inplace", "layout", "halved"), CASES)
def test_both_networks_compute_what_mmagics_do(size, inplace, layout, halved):
    net = network(size, iterations=300, relu_inplace=inplace)
    state = export(net, FORMAT)
    noise, labels = torch.randn(3, 16), torch.tensor([0, 4, 2])
    with torch.no_grad():
        images = net.generate(noise, labels)
        wanted = generated(state, noise, labels, **layout)
        torch.testing.assert_close(images, wanted, atol=1e-4, rtol=1e-3)
        scores = judged(state, images, labels, halved, inplace)
        torch.testing.assert_close(net(images, labels), scores, atol=1e-4, rtol=1e-3)
    again = convert({"state_dict": state}, relu_inplace=inplace)
    assert again.foveal_info["converted_from"] == FORMAT
    back = export(again, FORMAT)
    assert back.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in back.items())


def test_what_a_file_does_not_show_must_be_stated():
    state = export(network(32), FORMAT)
    with pytest.raises(ValueError, match="relu_inplace must be stated"):
        convert(state)
    with pytest.raises(ValueError, match=r"generator\.to_rgb\.bn\.weight"):
        convert({n: v for n, v in state.items() if n != "generator.to_rgb.bn.weight"}, relu_inplace=False)


def test_an_average_beside_the_networks_is_left_out():
    state = export(network(32), FORMAT)
    average = {f"generator_ema.module.{n.removeprefix('generator.')}": v for n, v in state.items()}
    with_average = {**state, **{n: v for n, v in average.items() if "discriminator" not in n}}
    again = convert(with_average, relu_inplace=False)
    assert torch.equal(again.generator.to_image.layer.weight, state["generator.to_rgb.conv.weight_orig"])
