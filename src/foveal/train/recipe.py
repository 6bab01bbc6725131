"""What happens in one training step, as plain functions on tensors: no Lightning, no files, no printing.

Every random choice is a function of (seed, position in the run), never of what was drawn before. A run can
therefore stop anywhere and continue to the same weights, and the number of reading processes changes nothing.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Sampler

from foveal.errors import FovealError
from foveal.insertion import freeze_backbone, parameter_groups
from foveal.insertion.param_groups import backbone


def seed_for(*position: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part of ``position``, and on their order.

    Example:
        >>> seed_for(0, "order", 1) == seed_for(0, "order", 1), seed_for(0, 1) == seed_for(1, 0)
        (True, False)
    """
    text = "/".join(map(str, position)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order fixed by seed and epoch; each process takes every ``world``-th.

    An incomplete last batch is left out, because batch statistics of a few images are noise; a data set smaller
    than one batch is one batch. The epoch goes along with each index so that a data set can seed its
    augmentation by both.

    Args:
        size: images in the data set.
        batch_size: images in a batch of one process.

    Example:
        >>> batches = EpochBatches(5, 2, seed=0)
        >>> len(batches), [len(batch) for batch in batches]
        (2, [2, 2])
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.batch_size = min(batch_size, max(size // world, 1))
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
        self.epoch = 0
        self.passed_over = (0, 0)

    def continue_at(self, epoch: int, batch: int) -> None:
        """Iterate ``epoch`` (from 0) next, and leave out its first ``batch`` batches."""
        self.epoch, self.passed_over = epoch, (epoch, batch)

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()[self.rank :: self.world]
        epoch, batch = self.passed_over
        for i in range(batch if self.epoch == epoch else 0, len(self)):
            yield [(self.epoch, j) for j in order[i * self.batch_size : (i + 1) * self.batch_size]]


def rate_factor(step: int, *, steps: int, warmup_steps: int = 0, schedule: str = "cosine") -> float:
    """Share of the highest learning rate to use in optimiser step ``step``, in [0, 1].

    Linear rise over ``warmup_steps`` (the first step is not 0), then, with t running from 0 to 1 over the rest:
    cosine (1 + cos(pi t)) / 2, poly (1 - t)^0.9, or constant 1.

    Example:
        >>> [round(rate_factor(i, steps=10, warmup_steps=2), 2) for i in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]

    Source:
        Cosine: Loshchilov and Hutter, SGDR (2017), without restarts. Poly: the DeepLab recipe.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    t = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    match schedule:
        case "cosine":
            return (1 + math.cos(math.pi * t)) / 2
        case "poly":
            return (1 - t) ** 0.9
        case "constant":
            return 1.0
    raise FovealError(f"schedule must be cosine, poly or constant, got {schedule}")


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group ``factor`` times the learning rate it was made with."""
    for group in optimizer.param_groups:
        group.setdefault("highest_lr", group["lr"])
        group["lr"] = group["highest_lr"] * factor


def make_optimizer(
    net: nn.Module,
    *,
    optimizer: str = "sgd",
    lr: float,
    inserted_lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over `foveal.parameter_groups`.

    Raises:
        ValueError: an unknown optimiser.
    """
    groups = parameter_groups(net, lr, inserted_lr=inserted_lr, weight_decay=weight_decay)
    match optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    raise FovealError(f"optimizer must be sgd or adamw, got {optimizer}")


def mix_pairs(
    images: Float[Tensor, "b c h w"], alpha: float, generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"], float]:
    """Mixup: share * images + (1 - share) * images[partner], share ~ Beta(alpha, alpha).

    Returns:
        Mixed images; the index of each one's partner; the share, in (0, 1).

    Example:
        >>> mixed, partner, share = mix_pairs(torch.ones(4, 3, 8, 8), 0.2, torch.Generator().manual_seed(0))
        >>> bool((mixed == 1).all()), sorted(partner.tolist())
        (True, [0, 1, 2, 3])

    Source:
        Zhang et al., mixup (2018), equation 1; one share a batch, as in their code.
    """
    # Beta(a, a) as a ratio of Gammas, because torch.distributions takes no generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    return share * images + (1 - share) * images[partner], partner, share


def classification_loss(
    net: nn.Module,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of one batch, with label smoothing and mixup where asked.

    Args:
        net: images (b, c, h, w) to logits (b, classes).
        mixup: alpha of the Beta distribution; 0 mixes nothing and draws nothing.
        generator: a CPU generator, needed for mixup.
    """
    if mixup == 0:
        return nn.functional.cross_entropy(net(images), labels, label_smoothing=label_smoothing)
    if generator is None:
        raise FovealError(f"mixup needs a generator, got mixup={mixup}, generator=None")
    images, partner, share = mix_pairs(images, mixup, generator)
    logits = net(images)
    own = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    other = nn.functional.cross_entropy(logits, labels[partner], label_smoothing=label_smoothing)
    return share * own + (1 - share) * other


class Average(nn.Module):
    """Exponential moving average of a network's weights and batch statistics, in ``self.net``.

    The decay begins small and rises to ``decay``, (1 + t) / (10 + t) after t updates, so that a short run's
    average is not its initial weights.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = Average(layer, decay=0.9)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> average.update(layer)
        >>> float(average.net.weight) != 0
        True
    """

    updates: Tensor

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the average is never trained."""
        return super().train(False)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        t = int(self.updates)
        self.updates += 1
        weight = 1 - min(self.decay, (1 + t) / (10 + t))
        for mine, theirs in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs.to(mine.dtype), weight)
            else:
                mine.copy_(theirs)


class Freeze:
    """A network's backbone, frozen for the first epochs: only inserted blocks and the classifier (or head) train.

    Its weights need no gradient meanwhile, so that backward skips them, and its batch statistics are used and kept.

    Example:
        >>> import foveal
        >>> net = foveal.insert(foveal.create_model("cifar_resnet8"), "se", reduction=4)
        >>> freeze = Freeze(net, epochs=1)
        >>> for epoch in (0, 1):
        ...     changed = freeze.begin(epoch)
        ...     print(changed, net.conv1.weight.requires_grad, net.bn1.training, net.fc.weight.requires_grad)
        True False False True
        True True True True

    Raises:
        ValueError: nothing would be left to train.
    """

    def __init__(self, net: nn.Module, epochs: int) -> None:
        self.net, self.epochs = net, epochs
        get = getattr(net, "get_classifier", None)
        classifier = get() if callable(get) else getattr(net, "fc", None)
        self.kept = [classifier] if isinstance(classifier, nn.Module) else []
        self.norms = backbone(net, self.kept)[1]
        self._thaw: Callable[[], None] | None = None
        if epochs:
            freeze_backbone(net, self.kept)()  # refused now rather than when the run has begun

    def begin(self, epoch: int) -> bool:
        """Put every module into the mode of this epoch, from 0; True if what needs a gradient has changed."""
        self.net.train()
        frozen = epoch < self.epochs
        for norm in self.norms if frozen else []:
            norm.eval()
        if frozen and self._thaw is None:
            self._thaw = freeze_backbone(self.net, self.kept)
            return True
        return not frozen and self.end()

    def end(self) -> bool:
        """Thaw; True if there was something to thaw."""
        thaw, self._thaw = self._thaw, None
        if thaw is not None:
            thaw()
        return thaw is not None


class NonFiniteLoss(FovealError):
    """The loss became infinite or not a number; the message names the epoch and the batch."""


def first_non_finite(net: nn.Module, images: Tensor) -> str:
    """The first module, in order of execution, whose output for ``images`` is not finite; or why there is none.

    Modules whose own weights are not finite are named as such: the update before this batch broke them.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = nn.init.constant_(net[1].weight, float("inf"))
        >>> first_non_finite(net, torch.ones(1, 2))
        "module '1' (Linear), whose weight is not finite since an earlier update"
    """
    if not images.isfinite().all():
        return "the images themselves, before any module"
    found: list[str] = []

    def check(name: str):
        def hook(module: nn.Module, _inputs: tuple, output: object) -> None:
            parts = output.values() if isinstance(output, dict) else output
            tensors = parts if not isinstance(parts, Tensor) and isinstance(parts, Iterable) else [parts]
            if not found and any(isinstance(t, Tensor) and not t.isfinite().all() for t in tensors):
                bad = [n for n, p in module.named_parameters() if not p.isfinite().all()]
                why = f", whose {bad[0]} is not finite since an earlier update" if bad else ""
                found.append(f"module '{name}' ({type(module).__name__}){why}")

        return hook

    handles = [m.register_forward_hook(check(name)) for name, m in net.named_modules() if name]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself, since every module's output was finite"
