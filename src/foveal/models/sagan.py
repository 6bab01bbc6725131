"""SAGAN: generator and discriminator with attention, in the released form and in the popular one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.nn import BLOCKS
from foveal.nn.spectral_norm import SpectralNorm

ATTENTIONS = ("none", *BLOCKS)
# size of the images -> factors on the width, from the smallest map to the largest, and the map with attention
GENERATOR = {128: ((16, 16, 8, 4, 2, 1), 32), 64: ((16, 8, 4, 2, 1), 32), 32: ((4, 4, 4, 4), 16)}
VARIANTS = ("released", "mmagic")
MMAGIC_PLACES = {128: 64, 32: 16}
"""Size of the images -> the map with attention in both of mmagic's networks."""
DISCRIMINATOR = {
    128: ((1, 2, 4, 8, 16, 16), 32, 5),
    64: ((1, 2, 4, 8, 8), 32, 4),
    32: ((2, 2, 2, 2), 16, 2),
}
"""Size -> factors on the width of each block, the map with attention, and how many blocks halve the map."""


class SAGAN(nn.Module):
    """A generator and a discriminator that train against each other.

    Args:
        form: ``"released"``: residual blocks, conditional batch norm and a projection discriminator, as in the
            authors' code at 128 pixels; at 64 one block less; at 32 as in mmagic's CIFAR networks. ``"dcgan"``: the
            popular form of transposed convolutions, attention on the last two maps of the generator and of the
            discriminator.
        size: side of the images: 128, 64 or 32; 64 or 32 with ``form="dcgan"``.
        variant: of ``form="released"``; ``"mmagic"``, at 128 or 32 pixels, has attention on maps of 64 or 16 pixels,
            spectral norm on the tables of conditional batch norm too, which are added to 1, and an eps of 1e-4 there.
        num_classes: classes; with ``conditional=False`` they are not used.
        in_chans: channels of the images.
        width: channels that the factors of each map multiply; 64 as published.
        latent: numbers a generated image is made from; 128 as published.
        attention: a block by its name, or ``"none"``, at the published places. ``"selfattention"`` has the released
            layer's form in ``"released"`` and the popular one's in ``"dcgan"``.
        conditional: whether both networks know the class.
        norm_eps: of the generator's batch norms. Default: 1e-5, with ``variant="mmagic"`` 1e-4.
        relu_inplace: with ``variant="mmagic"``, that shortcuts of the discriminator see what ReLU left, as where the
            configuration rectifies in place.

    ``forward``: images (b, in_chans, size, size) in -1..1, labels (b,) -> scores (b,); without labels, of class 0.

    Raises:
        FovealError: an option is not among the choices.

    Source: Zhang et al., "Self-Attention Generative Adversarial Networks" (2019) and the authors' code; the DCGAN form
    after the common PyTorch port. Of the released code the spectral norm's gradient differs, see `SelfAttention`.

    Example:
        >>> net = SAGAN("dcgan", 32, num_classes=10, width=8)
        >>> images = net.generate(torch.zeros(2, 128), torch.tensor([3, 7]))
        >>> tuple(images.shape), tuple(net(images, torch.tensor([3, 7])).shape)
        ((2, 3, 32, 32), (2,))
    """

    def __init__(
        self,
        form: str = "released",
        size: int = 128,
        *,
        variant: str = "released",
        num_classes: int = 1000,
        in_chans: int = 3,
        width: int = 64,
        latent: int = 128,
        attention: str | None = "selfattention",
        conditional: bool | None = None,
        norm_eps: float | None = None,
        relu_inplace: bool = False,
    ) -> None:
        super().__init__()
        # "none" in brackets, as of a comparison, is read as None
        attention = attention or "none"
        sizes = {"released": tuple(GENERATOR), "dcgan": (64, 32)}
        if form not in sizes:
            raise FovealError(f"form must be one of {', '.join(sizes)}, got {form!r}")
        if size not in sizes[form]:
            raise FovealError(f"size must be one of {sizes[form]} with form {form}, got {size}")
        if variant not in VARIANTS:
            raise FovealError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        mmagic = variant == "mmagic"
        if mmagic and (form != "released" or size not in MMAGIC_PLACES):
            raise FovealError(
                f"variant mmagic must be of form released at 128 or 32 pixels, got {form} at {size}"
            )
        if relu_inplace and not mmagic:
            raise FovealError("relu_inplace must be False without variant mmagic, got True")
        if attention not in ATTENTIONS:
            raise FovealError(f"attention must be one of {', '.join(ATTENTIONS)}, got {attention!r}")
        for name, value in (("width", width), ("latent", latent), ("num_classes", num_classes)):
            if value < 1:
                raise FovealError(f"{name} must be at least 1, got {value}")
        conditional = form == "released" if conditional is None else conditional
        self.size, self.latent, self.num_classes = size, latent, num_classes
        self.conditional, self.relu_inplace = conditional, relu_inplace
        known = num_classes if conditional else 0
        if form == "dcgan":
            self.generator: nn.Module = TransposedGenerator(size, width, latent, known, in_chans, attention)
            self.discriminator: nn.Module = StridedDiscriminator(size, width, known, in_chans, attention)
        else:
            places = (MMAGIC_PLACES[size],) * 2 if mmagic else (GENERATOR[size][1], DISCRIMINATOR[size][1])
            style = NormStyle((1e-4 if mmagic else 1e-5) if norm_eps is None else norm_eps, mmagic)
            self.generator = ResidualGenerator(
                size, width, latent, known, in_chans, attention, places[0], style
            )
            self.discriminator = ResidualDiscriminator(
                size, width, known, in_chans, attention, places[1], relu_inplace
            )
        self.default_cfg = {"input_size": (in_chans, size, size), "fixed_input_size": True}
        self.pretrained_cfg = self.default_cfg

    def generate(
        self, noise: Float[Tensor, "b latent"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c size size"]:
        """Images in -1..1 from noise; without labels, of class 0."""
        return self.generator(noise, _labels(labels, noise))

    def forward(
        self, images: Float[Tensor, "b c size size"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b"]:
        return self.discriminator(images, _labels(labels, images))


def _labels(labels: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros(len(like), dtype=torch.long, device=like.device) if labels is None else labels


def attention_block(name: str, channels: int, form: str) -> nn.Module:
    """The block at a published place, or none."""
    if name == "none":
        return nn.Identity()
    # narrow networks have fewer channels than the usual reductions
    squeezed, keys = {"reduction": min(16, channels)}, {"key_width": max(1, channels // 8)}
    options: dict[str, dict[str, Any]] = {
        "se": squeezed, "cbam": squeezed, "selfattention": {**keys, "form": form}, "dual": keys, "position": keys,
        "nonlocal": {"inner": max(1, channels // 2)},
    }  # fmt: skip
    return BLOCKS[name](channels, **options.get(name, {}))


def spectral(layer: nn.Module) -> SpectralNorm:
    """A layer under spectral norm that starts as the released code's: Xavier uniform, biases 0."""
    nn.init.xavier_uniform_(layer.weight)  # pyright: ignore[reportArgumentType]
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return SpectralNorm(layer)


def conv(channels_in: int, channels: int, kernel: int = 3) -> SpectralNorm:
    return spectral(nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2))


class NormStyle(NamedTuple):
    """How the generator's norms are: their eps, and whether the tables of classes are mmagic's."""

    eps: float = 1e-5
    mmagic: bool = False


USUAL = NormStyle()


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are rows of tables, one for each class; a usual one without classes.

    mmagic's tables are under spectral norm, and the scale is 1 and its row.

    Example:
        >>> norm = ConditionalBatchNorm(4, num_classes=3)
        >>> tuple(norm(torch.randn(2, 4, 5, 5), torch.tensor([0, 2])).shape)
        (2, 4, 5, 5)
    """

    def __init__(self, channels: int, num_classes: int, style: NormStyle = USUAL) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=style.eps, affine=num_classes == 0)
        self.base = 1.0 if style.mmagic else 0.0
        self.gain: nn.Module | None = None
        self.shift: nn.Module | None = None
        if num_classes == 0:
            return
        gain, shift = nn.Embedding(num_classes, channels), nn.Embedding(num_classes, channels)
        if style.mmagic:
            self.gain, self.shift = spectral(gain), spectral(shift)
            return
        nn.init.ones_(gain.weight)
        nn.init.zeros_(shift.weight)
        self.gain, self.shift = gain, shift

    def forward(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        x = self.norm(x)
        if self.gain is None or self.shift is None:
            return x
        gain = self.base + self.gain(labels)
        return gain[..., None, None] * x + self.shift(labels)[..., None, None]


# ------------------------------------------------------------------------------------------------------ released form


class GeneratorBlock(nn.Module):
    """norm, ReLU, enlarge, 3x3, norm, ReLU, 3x3; beside it enlarge, 1x1."""

    def __init__(self, channels_in: int, channels: int, num_classes: int, style: NormStyle) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(channels_in, num_classes, style)
        self.norm2 = ConditionalBatchNorm(channels, num_classes, style)
        self.conv1, self.conv2 = conv(channels_in, channels), conv(channels, channels)
        self.shortcut = conv(channels_in, channels, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.conv1(F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2.0))
        y = self.conv2(F.relu(self.norm2(y, labels)))
        return y + self.shortcut(F.interpolate(x, scale_factor=2.0))


class ResidualGenerator(nn.Module):
    """Noise -> 4x4 -> blocks that double the map -> batch norm, ReLU, 3x3, tanh."""

    def __init__(
        self,
        size: int,
        width: int,
        latent: int,
        num_classes: int,
        channels: int,
        attention: str,
        place: int,
        style: NormStyle,
    ) -> None:
        super().__init__()
        factors, _ = GENERATOR[size]
        widths = [factor * width for factor in factors]
        self.project = spectral(nn.Linear(latent, 16 * widths[0]))
        self.blocks, side = nn.ModuleList(), 4
        for channels_in, channels_out in pairwise(widths):
            side *= 2
            self.blocks.append(GeneratorBlock(channels_in, channels_out, num_classes, style))
            if side == place:
                self.blocks.append(attention_block(attention, channels_out, "official"))
        self.norm = nn.BatchNorm2d(widths[-1], eps=style.eps)
        self.to_image = conv(widths[-1], channels)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.project(noise).reshape(len(noise), -1, 4, 4)
        for block in self.blocks:
            x = block(x, labels) if isinstance(block, GeneratorBlock) else block(x)
        return torch.tanh(self.to_image(F.relu(self.norm(x))))


class DiscriminatorBlock(nn.Module):
    """(ReLU,) 3x3, ReLU, 3x3 (, average pool); beside it 1x1 where something changes."""

    def __init__(
        self, channels_in: int, channels: int, *, halve: bool, first: bool, relu_inplace: bool
    ) -> None:
        super().__init__()
        self.halve, self.first, self.relu_inplace = halve, first, relu_inplace
        self.conv1, self.conv2 = conv(channels_in, channels), conv(channels, channels)
        self.shortcut = conv(channels_in, channels, 1) if halve or channels_in != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        rectified = x if self.first else F.relu(x)
        if self.relu_inplace:
            x = rectified
        y = self.conv1(rectified)
        y = self.conv2(F.relu(y))
        if not self.halve:
            return y + self.shortcut(x)
        if self.first:
            return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return F.avg_pool2d(y, 2) + F.avg_pool2d(self.shortcut(x), 2)


class ResidualDiscriminator(nn.Module):
    """Image -> blocks -> ReLU, sum over positions -> linear, plus the inner product with the class's vector."""

    def __init__(
        self,
        size: int,
        width: int,
        num_classes: int,
        channels: int,
        attention: str,
        place: int,
        relu_inplace: bool,
    ) -> None:
        super().__init__()
        factors, _, halvings = DISCRIMINATOR[size]
        widths = [channels, *(factor * width for factor in factors)]
        blocks: list[nn.Module] = []
        side = size
        for number, (channels_in, channels_out) in enumerate(pairwise(widths)):
            halve, first = number < halvings, number == 0
            blocks.append(
                DiscriminatorBlock(
                    channels_in, channels_out, halve=halve, first=first, relu_inplace=relu_inplace
                )
            )
            side //= 1 + halve
            if halve and side == place:
                blocks.append(attention_block(attention, channels_out, "official"))
        self.blocks = nn.Sequential(*blocks)
        self.score = spectral(nn.Linear(widths[-1], 1))
        self.classes = spectral(nn.Embedding(num_classes, widths[-1])) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = F.relu(self.blocks(images)).sum((2, 3))
        return _projected(self.score, self.classes, features, labels)


def _projected(
    score: nn.Module, classes: nn.Module | None, features: Tensor, labels: Tensor
) -> Float[Tensor, " b"]:
    """Miyato and Koyama, cGANs with Projection Discriminator (2018), equation 7."""
    scores = score(features)[:, 0]
    return scores if classes is None else scores + (classes(labels) * features).sum(1)


# --------------------------------------------------------------------------------------------------------- DCGAN form


class TransposedGenerator(nn.Module):
    """Noise -> 4x4 transposed convolutions, each with batch norm and ReLU -> image."""

    def __init__(
        self, size: int, width: int, latent: int, num_classes: int, channels: int, attention: str
    ) -> None:
        super().__init__()
        factors = (8, 4, 2, 1) if size == 64 else (4, 2, 1)
        widths = [latent, *(factor * width for factor in factors)]
        self.layers, self.norms, self.attentions = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, (channels_in, channels_out) in enumerate(pairwise(widths)):
            stride, padding = (1, 0) if number == 0 else (2, 1)
            self.layers.append(spectral(nn.ConvTranspose2d(channels_in, channels_out, 4, stride, padding)))
            self.norms.append(ConditionalBatchNorm(channels_out, num_classes))
            last_two = number >= len(factors) - 2
            self.attentions.append(
                attention_block(attention if last_two else "none", channels_out, "article")
            )
        self.to_image = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = noise[..., None, None]
        for layer, norm, attention in zip(self.layers, self.norms, self.attentions, strict=True):
            x = attention(F.relu(norm(layer(x), labels)))
        return torch.tanh(self.to_image(x))


class StridedDiscriminator(nn.Module):
    """4x4 convolutions of stride 2 with leaky ReLU, attention on the last two maps, a 4x4 convolution to the score."""

    def __init__(self, size: int, width: int, num_classes: int, channels: int, attention: str) -> None:
        super().__init__()
        factors = (1, 2, 4, 8) if size == 64 else (1, 2, 4)
        widths = [channels, *(factor * width for factor in factors)]
        layers: list[nn.Module] = []
        for number, (channels_in, channels_out) in enumerate(pairwise(widths)):
            layers += [spectral(nn.Conv2d(channels_in, channels_out, 4, 2, 1)), nn.LeakyReLU(0.1)]
            if number >= len(factors) - 2:
                layers.append(attention_block(attention, channels_out, "article"))
        self.layers = nn.Sequential(*layers)
        # a 4x4 convolution over a 4x4 map is a linear layer
        self.score = spectral(nn.Linear(16 * widths[-1], 1))
        self.classes = spectral(nn.Embedding(num_classes, 16 * widths[-1])) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return _projected(self.score, self.classes, self.layers(images).flatten(1), labels)
