"""The shortest training loop: images in memory, one process, no files, no Lightning. For many small runs."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.train.classify import count, metrics
from foveal.train.config import TrainConfig
from foveal.train.recipe import (
    Average,
    EpochBatches,
    Freeze,
    NonFiniteLoss,
    classification_loss,
    make_optimizer,
    rate_factor,
    seed_for,
    set_rate,
)


def train_in_memory(
    net: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    config: TrainConfig,
    *,
    on_step: Callable[[int, float], None] | None = None,
    augment: Callable[[Float[Tensor, "b c h w"], torch.Generator], Float[Tensor, "b c h w"]] | None = None,
) -> nn.Module:
    """Train ``net`` in place with the same steps, order and schedule as `foveal.train.fit`.

    Two networks trained with one ``config.seed`` see the same images in the same order.

    Args:
        net: images to logits (n, classes); on the device of ``images``.
        images: normalised.
        on_step: called with (step, loss) after each optimiser step.
        augment: changes a batch, with random numbers from the generator it is given.

    Returns:
        What to evaluate: ``net``, or its running average with ``config.ema``.

    Raises:
        NonFiniteLoss: a ValueError; the loss became infinite or not a number.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> images, labels = torch.eye(3)[:2, :, None, None].repeat(32, 1, 1, 1), torch.arange(2).repeat(32)
        >>> net = train_in_memory(net, images, labels, TrainConfig(epochs=20, batch_size=16, lr=0.1))
        >>> measure(net, images, labels)["val_accuracy"]
        1.0
    """
    batches = EpochBatches(len(images), config.batch_size, seed=config.seed)
    steps_per_epoch = -(-len(batches) // config.accumulate)
    optimizer = make_optimizer(
        net,
        optimizer=config.optimizer,
        lr=config.lr,
        inserted_lr=config.inserted_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    average = Average(net, config.ema) if config.ema else None
    freeze = Freeze(net, config.freeze_epochs)
    step = 0
    for epoch in range(config.epochs):
        batches.epoch = epoch
        freeze.begin(epoch)
        for number, keys in enumerate(batches):
            seed = seed_for(config.seed, "step", epoch, number, 0)
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.tensor([index for _, index in keys], device=images.device)
            x, y = images[chosen], labels[chosen]
            if augment is not None:
                x = augment(x, generator)
            loss = classification_loss(
                net, x, y, label_smoothing=config.label_smoothing, mixup=config.mixup, generator=generator
            )
            value = float(loss.detach())
            if value != value or abs(value) == float("inf"):
                raise NonFiniteLoss(
                    f"the loss must be finite, got {value} in epoch {epoch + 1}, batch {number + 1}"
                )
            (loss / config.accumulate).backward()
            if (number + 1) % config.accumulate and number + 1 < len(batches):
                continue
            if config.clip_norm:
                nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
            warmup_steps = round(config.warmup_epochs * steps_per_epoch)
            steps = config.epochs * steps_per_epoch
            set_rate(
                optimizer, rate_factor(step, steps=steps, warmup_steps=warmup_steps, schedule=config.schedule)
            )
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(net)
            step += 1
            if on_step is not None:
                on_step(step, value)
    freeze.end()
    return net if average is None else average.net


@torch.no_grad()
def measure(
    net: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"], *, batch_size: int = 256
) -> dict[str, float]:
    """val_loss, val_accuracy and val_top5 of ``net`` in eval mode; it is left in its mode."""
    training = net.training
    net.eval()
    classes = int(labels.max()) + 1
    sums = sum(
        count(net, {"image": x, "label": y}, classes)
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )
    net.train(training)
    assert isinstance(sums, Tensor)
    return metrics(sums)
