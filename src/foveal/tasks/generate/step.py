"""One step of a generator and a discriminator against each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.nn.spectral_norm import hold_vectors


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))), the hinge loss.

    Example:
        >>> float(discriminator_loss(torch.tensor([2.0]), torch.tensor([-0.5])))
        0.5

    Source: Zhang et al., SAGAN, equation 4.
    """
    return F.relu(1 - real).mean() + F.relu(1 + generated).mean()


def generator_loss(generated: Tensor) -> Tensor:
    """-mean D(G(z)); Zhang et al., SAGAN, equation 4."""
    return -generated.mean()


def adversarial_losses(net: Any, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """The losses of both networks on one batch.

    Args:
        net: a SAGAN.
        batch: real images (b, c, h, w) in -1..1 and their labels.
        generator: the noise comes from it.
    """
    images, labels = batch["image"], batch["label"]
    noise = torch.randn(len(images), net.latent, generator=generator).to(images.device)
    made = net.generate(noise, labels)
    real = net(images, labels)
    with hold_vectors(net.discriminator):
        loss_d = discriminator_loss(real, net(made.detach(), labels))
        return {"discriminator": loss_d, "generator": generator_loss(net(made, labels))}


def adversarial_step(training: Any, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Steps of the discriminator, then one of the generator.

    Singular vectors of the discriminator move in its passes over real images only, as in the released code.

    Args:
        training: `foveal.train.training.Training` of a SAGAN.
        batch: real images (b, c, h, w) in -1..1 and their labels.
        generator: all noise comes from it.
    """
    net, options = training.net, training.options
    for_generator, for_discriminator = training.optimizers
    images, labels = batch["image"], batch["label"]

    def noise() -> Tensor:
        return torch.randn(len(images), net.latent, generator=generator).to(images.device)

    net.discriminator.requires_grad_(True)
    loss_d = images.new_zeros(())
    for _ in range(options.discriminator_steps):
        with torch.no_grad():
            made = net.generate(noise(), labels)
        real = net(images, labels)
        with hold_vectors(net.discriminator):
            loss_d = discriminator_loss(real, net(made, labels))
        for_discriminator.zero_grad()
        training.fabric.backward(loss_d)
        for_discriminator.step()

    # the discriminator only hands gradients through
    net.discriminator.requires_grad_(False)
    with hold_vectors(net.discriminator):
        loss_g = generator_loss(net(net.generate(noise(), labels), labels))
    for_generator.zero_grad()
    training.fabric.backward(loss_g)
    for_generator.step()
    net.discriminator.requires_grad_(True)
    if training.ema is not None:
        training.ema.update(net)
    return {"discriminator": loss_d, "generator": loss_g}
