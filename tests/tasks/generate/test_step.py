"""One step against the equations, and the vectors of the spectral norm that move in the pass over real images only."""

import copy
import types

import torch

from foveal.models.sagan import SAGAN
from foveal.nn.spectral_norm import SpectralNorm, spectral_layers
from foveal.tasks.generate import Generate, GenerateOptions
from foveal.tasks.generate.step import adversarial_step


class OneDevice:
    def backward(self, loss):
        loss.backward()


def training(net, **options):
    chosen = GenerateOptions(**options)
    config = types.SimpleNamespace(options=chosen, lr=1e-3, data="photos")
    made = Generate().make_optimizers(net, config)
    return types.SimpleNamespace(net=net, options=chosen, optimizers=made, ema=None, fabric=OneDevice())


def small_net():
    torch.manual_seed(0)
    return SAGAN("dcgan", 32, num_classes=3, width=8, conditional=True)


def batch():
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(8, 3, 32, 32, generator=generator) * 2 - 1, "label": torch.arange(8) % 3}


def literal_step(net, images, labels, generator, rate, rate_d):
    """Equation 4 of the paper with Adam written out, in the order of the released code."""
    for_d, for_g = (
        torch.optim.Adam(part.parameters(), lr=lr, betas=(0.0, 0.9))
        for part, lr in ((net.discriminator, rate_d), (net.generator, rate))
    )
    z = torch.randn(8, 128, generator=generator)
    made = net.generate(z, labels).detach()
    real = net(images, labels)
    kept = [layer.u.clone() for layer in spectral_layers(net.discriminator)]
    fake = net(made, labels)
    for layer, u in zip(spectral_layers(net.discriminator), kept, strict=True):
        layer.u.copy_(u)
    loss_d = torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean()
    for_d.zero_grad()
    loss_d.backward()
    for_d.step()
    z = torch.randn(8, 128, generator=generator)
    loss_g = -net(net.generate(z, labels), labels).mean()
    for layer, u in zip(spectral_layers(net.discriminator), kept, strict=True):
        layer.u.copy_(u)
    for_g.zero_grad()
    loss_g.backward()
    for_g.step()
    return float(loss_d.detach()), float(loss_g.detach())


def test_a_step_is_the_papers_equation_4_with_two_rates():
    net = small_net()
    expected = copy.deepcopy(net)
    data = batch()
    losses = adversarial_step(training(net), data, torch.Generator().manual_seed(5))
    told = literal_step(
        expected, data["image"], data["label"], torch.Generator().manual_seed(5), rate=1e-3, rate_d=2e-3
    )
    assert [float(losses[name].detach()) for name in ("discriminator", "generator")] == list(told)
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_the_discriminators_vectors_move_once_a_step_whatever_the_number_of_generated_images():
    net = small_net()
    data = batch()
    before = copy.deepcopy(net.discriminator)
    adversarial_step(training(net), data, torch.Generator().manual_seed(5))
    # one pass over the real images moves them as far
    before(data["image"], data["label"])
    for moved, once in zip(spectral_layers(net.discriminator), spectral_layers(before), strict=True):
        assert torch.equal(moved.u, once.u)
        assert isinstance(moved, SpectralNorm)


def test_more_steps_of_the_discriminator_see_new_noise():
    data = batch()
    nets = [small_net() for _ in range(2)]
    for net, steps in zip(nets, (1, 3), strict=True):
        adversarial_step(training(net, discriminator_steps=steps), data, torch.Generator().manual_seed(5))
    score = [next(net.discriminator.parameters()) for net in nets]
    assert not torch.equal(*score)


def test_the_discriminator_trains_again_after_the_generators_step():
    net = small_net()
    adversarial_step(training(net), batch(), torch.Generator().manual_seed(5))
    assert all(p.requires_grad for p in net.parameters())
