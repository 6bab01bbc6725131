"""SAGAN's networks: shapes and sizes of each form, attention at its places, classes that reach both networks."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import foveal
from foveal.models.sagan import SAGAN, ConditionalBatchNorm
from foveal.nn import BLOCKS
from foveal.nn.spectral_norm import spectral_layers


def places(net):
    """Sizes of the maps that attention sees, in the order of the passes."""
    seen = []
    handles = [
        module.register_forward_hook(lambda _, args, __: seen.append((args[0].shape[1], args[0].shape[2])))
        for module in net.modules()
        if isinstance(module, tuple(BLOCKS.values()))
    ]
    return seen, handles


# channels and size of the maps with attention, generator then discriminator: the authors' code, mmagic, the port
PLACES = {
    "sagan_128": [(256, 32), (128, 32)],
    "sagan_64": [(128, 32), (64, 32)],
    "sagan_32": [(256, 16), (128, 16)],
    "sagan_dcgan_64": [(128, 16), (64, 32), (256, 8), (512, 4)],
    "sagan_dcgan_32": [(128, 8), (64, 16), (128, 8), (256, 4)],
}


@pytest.mark.parametrize("name", PLACES)
def test_images_have_their_size_and_attention_its_published_place(name):
    torch.manual_seed(0)
    net = foveal.create_model(name, num_classes=3).eval()
    seen, _ = places(net)
    with torch.no_grad():
        images = net.generate(torch.randn(2, 128), torch.tensor([0, 2]))
        scores = net(images, torch.tensor([0, 2]))
    size = int(name.rpartition("_")[2])
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert scores.shape == (2,)
    assert seen == PLACES[name]


def conv_size(channels_in, channels, kernel):
    return channels_in * channels * kernel**2 + channels


def test_the_released_network_has_the_parameters_of_its_layer_table():
    classes, w = 1000, 64
    widths = [16 * w, 16 * w, 8 * w, 4 * w, 2 * w, w]
    generator = 128 * 16 * widths[0] + 16 * widths[0]
    for a, b in pairwise(widths):
        generator += conv_size(a, b, 3) + conv_size(b, b, 3) + conv_size(a, b, 1) + 2 * classes * (a + b)
    generator += 2 * widths[-1] + conv_size(widths[-1], 3, 3)

    def attention(c):
        # query and key of an eighth, value of a half, output, no bias, gamma
        return 2 * c * c // 8 + c * c // 2 + c * c // 2 + 1

    generator += attention(4 * w)
    widths = [3, w, 2 * w, 4 * w, 8 * w, 16 * w, 16 * w]
    discriminator = 0
    for number, (a, b) in enumerate(pairwise(widths)):
        discriminator += conv_size(a, b, 3) + conv_size(b, b, 3) + (conv_size(a, b, 1) if number < 5 else 0)
    discriminator += attention(2 * w) + 16 * w + 1 + classes * 16 * w
    net = SAGAN("released", 128, num_classes=classes)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (net.generator, net.discriminator)]
    assert sizes == [generator, discriminator] == [42_078_852, 39_463_618]


def test_every_layer_of_the_released_form_but_the_norms_is_under_spectral_norm():
    net = SAGAN("released", 32, num_classes=3, width=8)
    normed = {id(layer.weight) for layer in spectral_layers(net)}
    bare = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and id(module.weight) not in normed
    ]
    assert bare == []


@pytest.mark.parametrize("attention", ["none", *BLOCKS])
def test_any_block_or_none_goes_to_the_published_places(attention):
    torch.manual_seed(0)
    net = SAGAN("released", 32, num_classes=3, width=16, attention=attention)
    found = [module for module in net.modules() if type(module) is BLOCKS.get(attention)]
    assert len(found) == (0 if attention == "none" else 2)
    scores = net(net.generate(torch.randn(2, 128)))
    scores.sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "gamma" not in name)


@pytest.mark.parametrize("attention", BLOCKS)
def test_any_width_has_room_for_any_block(attention):
    net = SAGAN("dcgan", 32, width=1, attention=attention)
    assert net(net.generate(torch.zeros(2, 128))).shape == (2,)


def test_classes_reach_both_networks_and_only_where_they_are_known():
    torch.manual_seed(0)
    noise = torch.randn(1, 128)
    for form, conditional in (("released", True), ("dcgan", False), ("dcgan", True)):
        net = SAGAN(form, 32, num_classes=3, width=8, conditional=conditional).eval()
        if conditional:
            nn.init.normal_(
                next(m for m in net.generator.modules() if isinstance(m, ConditionalBatchNorm)).gain.weight
            )
        images = [net.generate(noise, torch.tensor([label])) for label in (0, 1)]
        assert torch.equal(*images) is not conditional
        scores = [net(images[0], torch.tensor([label])) for label in (0, 1)]
        assert torch.equal(*scores) is not conditional


def test_weights_come_back_from_a_file(tmp_path):
    net = foveal.create_model("sagan_dcgan_32", num_classes=4, width=8, conditional=True, attention="cbam")
    foveal.save(net, tmp_path / "g.safetensors")
    noise = torch.randn(3, 128)
    again = foveal.load(tmp_path / "g.safetensors")
    assert torch.equal(again.eval().generate(noise), net.eval().generate(noise))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "big"}, "form must be one of released, dcgan, got 'big'"),
        ({"size": 48}, r"size must be one of \(128, 64, 32\) with form released, got 48"),
        ({"form": "dcgan", "size": 128}, "with form dcgan, got 128"),
        ({"attention": "cbma"}, "attention must be one of none, se, .*, got 'cbma'"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(foveal.FovealError, match=words):
        SAGAN(**options)
