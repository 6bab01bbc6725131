"""What is compared: the network as it is, with one attention block each, and with a control of equal cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion import block_name, insert, inserted, parse_insertion
from foveal.insertion.build import build as build_block
from foveal.insertion.build import resolve
from foveal.insertion.hooks import rename
from foveal.insertion.own import from_file, sources, split_own
from foveal.insertion.parse import parse_options
from foveal.measure import count_parameters
from foveal.nn import PlainConvolution
from foveal.train.config import TrainConfig
from foveal.train.memory_format import channels_last
from foveal.train.network import add_blocks, build_network, example_input


@dataclass(frozen=True)
class Variant:
    """One column of the experiment.

    Attributes:
        name: short, unique.
        insert: the insertion as a user writes it; None for the network as it is. For the control, that of the
            attention variant whose sites and number of parameters it takes.
        control: whether a plain convolution block takes the attention's place.
        model: another network than that of the comparison, with all its ``model_options``.
        baseline: whether the others are compared with this one.
        width: of a control, times as wide as the one of equal parameters.
    """

    name: str
    insert: str | None = None
    control: bool = False
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    baseline: bool = False
    width: float = 1.0

    @property
    def attends(self) -> bool:
        """Whether it is neither the baseline nor the control."""
        return not self.baseline and not self.control

    @property
    def described(self) -> str:
        """What it is, as a person would type it."""
        options = ", ".join(f"{name}={value}" for name, value in self.model_options.items())
        return self.insert or (f"{self.model}({options})" if options else self.model) or ""


NONE = Variant("none", baseline=True)
CONTROL = "control"
"""The name of the control, and that of the baseline is "none": no block is called so."""


def plain_convolution(
    channels: int,
    *,
    like: str,
    like_options: dict[str, Any] | None = None,
    width: float = 1.0,
    dims: int = 2,
) -> PlainConvolution:
    """The control of a comparison: no attention, the same place, as many parameters as ``like`` or a few more.

    Args:
        channels: of the feature map.
        like: name of the block whose number of parameters to take, as `foveal.insert` takes it.
        like_options: its options.
        width: the hidden channels are so many times as many.
        dims: number of spatial sizes, 2 or 3.

    Example:
        >>> count_parameters(plain_convolution(64, like="nonlocal"))  # a Non-local block has 8416
        8988
    """
    name, make, fixed = resolve(from_file(like))
    counted = build_block(name, make, channels, dims, "identity", {**fixed, **(like_options or {})})
    wanted = count_parameters(counted)
    a_hidden_channel = 3**dims * channels + 2 + channels  # kernel, norm, 1x1 kernel
    hidden = max(1, round(width * math.ceil(wanted / a_hidden_channel)))
    return PlainConvolution(channels, hidden=hidden, dims=dims)


def parse_variants(insertions: Sequence[str]) -> list[Variant]:
    """One attention variant for each insertion, named by its block and what tells it from others of that block.

    Raises:
        ValueError: an insertion cannot be read, is given twice, or there is none.

    Example:
        >>> [v.name for v in parse_variants(["se@residual:3", "cbam@residual:3", "cbam@stage:3"])]
        ['se', 'cbam@residual:3', 'cbam@stage:3']
        >>> given = ["cbam(reduction=4,start=paper)@block", "cbam(reduction=4)@block"]
        >>> [v.name for v in parse_variants(given)]
        ['cbam(start=paper)', 'cbam']
        >>> [v.name for v in parse_variants(["mine.py:ECA@block", "mine.py:control@block"])]
        ['ECA', 'mine.py:control']
    """
    if not insertions:
        raise FovealError("insert must name at least one block, got none")
    parsed = [parse_insertion(text) for text in insertions]
    blocks = [block_name(text) for text in insertions]
    names = [
        _name_among(one, [other for other, name in zip(parsed, blocks, strict=True) if name == block])
        for one, block in zip(parsed, blocks, strict=True)
    ]
    twice = [text for text, name in zip(insertions, names, strict=True) if names.count(name) > 1]
    if twice:
        raise FovealError(f"every insertion must differ from the others, got {twice[-1]!r} twice")
    return [Variant(name, text) for name, text in zip(names, insertions, strict=True)]


def _name_among(parsed: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> str:
    """The insertion, without what it has in common with all others of its block."""
    missing = object()

    def differs(key: str) -> bool:
        return any(one.get(key, missing) != parsed.get(key, missing) for one in group)

    options = [
        f"{key}={value}"
        for key, value in parsed.items()
        if key not in ("block", "at", "stages") and differs(key)
    ]
    block = parsed["block"].rpartition(":")[2]
    if differs("block") or block in (NONE.name, CONTROL):
        # with its file, which a block that is not this library's own has
        block = parsed["block"]
    name = f"{block}({','.join(options)})" if options else block
    if differs("at") or differs("stages"):
        stages = ",".join(str(stage) for stage in parsed["stages"] or ())
        name += f"@{parsed['at']}:{stages}" if stages else f"@{parsed['at']}"
    return name


def own_sources(variants: Sequence[Variant]) -> dict[str, str]:
    """A hash of every file of own blocks, and of those that it imports from beside it: what was trained with another
    content is trained anew."""
    owned = [split_own(parse_insertion(v.insert)["block"]) for v in variants if v.insert]
    files = {own[0] for own in owned if own is not None}
    return {name: digest for path in sorted(files) for name, digest in sources(path).items()}


def parse_models(models: Sequence[str]) -> list[Variant]:
    """One variant for each network by name, with its options in brackets; the first is the baseline.

    Raises:
        FovealError: a name cannot be read, is given twice, or there are fewer than two.

    Example:
        >>> [v.described for v in parse_models(["fcn_resnet18", "danet_resnet18(channel_form=paper)"])]
        ['fcn_resnet18', 'danet_resnet18(channel_form=paper)']
    """
    if len(models) < 2:
        raise FovealError(f"models must name at least two networks, got {', '.join(models) or 'none'}")
    if len(set(models)) < len(models):
        twice = next(name for name, count in Counter(models).items() if count > 1)
        raise FovealError(f"every model must differ from the others, got {twice!r} twice")
    variants = []
    for number, text in enumerate(models):
        name, bracket, options = text.partition("(")
        if bracket and not options.rstrip().endswith(")"):
            raise FovealError(f"options of a model must end with a bracket, got {text!r}")
        given = parse_options(options.rstrip().removesuffix(")"), text)
        variants.append(Variant(text, model=name.strip(), model_options=given, baseline=number == 0))
    return variants


def control_of(
    variants: Sequence[Variant], config: TrainConfig, *, classes: Sequence[str], image_size: int
) -> Variant:
    """The control of the attention variant with the most parameters, so that none has more than its control.

    Building them all also finds every insertion that cannot be made, before any time is spent on training.
    """

    def added(variant: Variant) -> int:
        net = build(variant, config, classes, image_size)
        return sum(count_parameters(one.module) for one in inserted(net))

    costliest = max(variants, key=added)
    return Variant(CONTROL, costliest.insert, control=True)


def awake_norms(
    variants: Sequence[Variant], config: TrainConfig, *, classes: Sequence[str], image_size: int
) -> list[str]:
    """Norms that start at zero in the plain network and at one in any variant, where they feed a block.

    All variants start with them at one, those without a block there too: the variants must differ in nothing else.
    """
    asleep = [name for name, scale in _norm_scales(build_network(config, classes)).items() if not scale.any()]
    if not asleep:
        return []
    scales = [_norm_scales(build(variant, config, classes, image_size)) for variant in variants]
    return [name for name in asleep if any(bool(found[name].all()) for found in scales)]


def _norm_scales(net: nn.Module) -> dict[str, Tensor]:
    """The scale of every normalisation, by its module's path."""
    return {
        name.removesuffix(".weight"): value
        for name, value in net.named_parameters()
        if name.endswith(".weight") and value.ndim == 1
    }


def build(
    variant: Variant, config: TrainConfig, classes: Sequence[str], image_size: int, norms: Sequence[str] = ()
) -> nn.Module:
    """The initial network of a variant; one ``config.seed`` gives the same backbone to all of them.

    Args:
        norms: whose scale starts at one, from `awake_norms`.

    Raises:
        ValueError: the model or the block is unknown, or the block cannot go where it was asked for.
    """
    chosen = [variant.insert] if variant.insert is not None and not variant.control else []
    if variant.model is not None:
        config = replace(config, model=variant.model, model_options=variant.model_options)
    net = build_network(config, classes)
    for name in norms:
        nn.init.ones_(net.get_submodule(name).weight)  # pyright: ignore[reportArgumentType]
    net = add_blocks(net, replace(config, insert=chosen), image_size)
    if variant.control:
        assert variant.insert is not None
        asked = parse_insertion(variant.insert)
        place = {name: asked.pop(name) for name in ("at", "stages") if name in asked}
        like = asked.pop("block")
        example = example_input(config, image_size)
        options = {"like": like, "like_options": asked, "width": variant.width}
        insert(net, plain_convolution, **place, example=example, **options)
        for one in inserted(net):
            if isinstance(one.module, PlainConvolution):
                # a file of its weights says what it is, not after which block, which may be a person's own
                hidden = one.module.mix.out_channels
                rename(one, "PlainConvolution", {"hidden": hidden})
        if config.channels_last:
            net = net.to(memory_format=channels_last(example))  # pyright: ignore[reportCallIssue]
    return net
