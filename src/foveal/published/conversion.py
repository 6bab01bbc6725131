"""From a state dict of a known format to a network of ours, and back."""

import re
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from foveal.checkpoint import listed, state_dict_mismatch, unwrapped
from foveal.errors import FovealError
from foveal.insertion.example import example_inputs, preserve_state, tensors_in
from foveal.published import blocks, classifiers, danet, detr, sagan, sparse_rcnn, video
from foveal.published.keymap import Format, Shape, Shapes, tensors
from foveal.published.nearest import nearest
from foveal.published.reading import unwrap_state_dict

FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        *classifiers.FORMATS,
        *danet.FORMATS,
        *detr.FORMATS,
        *sagan.FORMATS,
        *sparse_rcnn.FORMATS,
        *video.FORMATS,
        *blocks.FORMATS,
    )
}
"""By name, the formats that `convert` reads and `export` writes."""

COUNTER = "num_batches_tracked"


def convert(
    state_dict: Mapping[str, Any] | nn.Module,
    format: str | None = None,
    *,
    prefix: str = "",
    ema: bool | None = None,
    **options: Any,
) -> nn.Module:
    """The network of ours that a published state dict fits, with its weights; all of them or none.

    Args:
        state_dict: tensors by name as others saved them; wrappers such as ``{"state_dict": ...}`` and prefixes such
            as ``module.`` are taken off. See `read` for files. The network itself in place of its state dict is
            compared with the result on an example, which shows what no name or shape does.
        format: a name in `FORMATS`; told from the names by default.
        prefix: read only what begins so, such as one Non-local block of a whole network,
            ``"layer2.1.non_local_block."``.
        ema: whether to take averaged weights; must be stated where a checkpoint holds both.
        **options: what a file does not show, such as ``pairwise="dot_product"`` of a Non-local block or
            ``multi_grid=None`` of a DANet; `FORMATS` lists them for each format as ``ambiguous_options``.

    Returns:
        The network in float32 on the CPU, in train mode as newly built, one that `foveal.save` and `foveal.load`
        rebuild; for the formats of a single block, the block. ``net.foveal_info`` says under ``"converted_from"``
        and ``"variant"`` what it is, and under ``"notes"`` what was chosen, assumed or left out, if
        anything.

    Raises:
        ValueError: an unknown format, a format that leaves open what must be stated, or names and shapes that do not
            fit it, with the first missing, unexpected and mis-shaped ones; a note on the exception, which a
            traceback shows, lists all.

    Example:
        >>> import timm, torch
        >>> net = convert(timm.create_model("seresnet18", num_classes=5).state_dict()).eval()
        >>> net.foveal_info["converted_from"], net(torch.zeros(1, 3, 64, 64)).shape
        ('timm-se', torch.Size([1, 5]))
    """
    peer = unwrapped(state_dict) if isinstance(state_dict, nn.Module) else None
    read = unwrap_state_dict(peer.state_dict() if peer is not None else state_dict, ema)
    state = {name: value.detach() for name, value in read.items()}
    if prefix:
        prefix = prefix.rstrip(".") + "."
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not state:
            raise FovealError(f"prefix must begin the name of some tensor, got {prefix!r}")
    fitting = _fitting(format, Shapes({name: tuple(value.shape) for name, value in state.items()}))
    chosen = fitting[0]
    if chosen.ignored_names:
        state = {name: value for name, value in state.items() if not re.match(chosen.ignored_names, name)}
    state = chosen.join(state)
    shapes = Shapes({name: tuple(value.shape) for name, value in state.items()})
    (net, variant), *others = (_build(one, shapes, options) for one in fitting)
    table = chosen.table(net)
    if not any(name.endswith(COUNTER) for name in state):  # PyTorch before 0.4.1 did not count batches
        counters = [theirs for ours, (theirs, _) in table.items() if ours.endswith(COUNTER)]
        state |= {theirs: torch.zeros((), dtype=torch.long) for theirs in counters}
        shapes |= dict.fromkeys(counters, ())
    expected = dict(table.values())
    if wrong := state_dict_mismatch(shapes, expected):
        name = getattr(net, "foveal_model", {}).get("name")
        network = f"{chosen.name}, read as {name}" if name else chosen.name
        error = FovealError(f"the weights must be those of {network} ({variant}), got {wrong}")
        error.add_note(_every_misfit(shapes, expected))
        raise error
    if any(str(other) != str(net) for other, _ in others):
        names = " and ".join(one.name for one in fitting)
        raise FovealError(
            f"format must be given where files look the same, got names that fit {names}; "
            + "; ".join(f"{one.name}: {classifiers.TWINS.get(one.name, '')}" for one in fitting)
        )
    strange = [
        f"{n} ({t.dtype})" for n, t in state.items() if not (n.endswith(COUNTER) or t.is_floating_point())
    ]
    if strange:
        raise FovealError(f"weights must be floating-point numbers, got {listed(strange)}")
    infinite = [n for n, t in state.items() if not (t.is_meta or t.float().isfinite().all())]
    if infinite:
        raise FovealError(f"weights must be finite numbers, got NaN or infinity in {listed(infinite)}")
    net.load_state_dict(_ours(net, state, table), strict=True, assign=True)
    left = [name for name, t in chain(net.named_parameters(), net.named_buffers()) if t.is_meta]
    assert not left, f"tensors outside the state dict: {left}"
    info: dict[str, Any] = {"converted_from": chosen.name, "variant": variant}
    if chosen.info is not None:
        info |= chosen.info(net)
    notes = list(read.notes)
    if chosen.assumed and (peer is None or prefix):
        notes.append(f"assumed, as no file shows it: {chosen.assumed}")
    net.foveal_info = info | ({"notes": notes} if notes else {})  # type: ignore[assignment]
    if peer is not None and not prefix:
        _refuse_other_function(peer, net, variant)
    return net


def _refuse_other_function(peer: nn.Module, net: nn.Module, variant: str) -> None:
    """Raise where both return something else for one example: activations and strides show there, not in names."""
    args, kwargs = example_inputs(peer)[-1]
    with preserve_state(peer), preserve_state(net):
        outputs = peer(*args, **kwargs), net(args[0].float())
    wanted, found = (next(tensors_in(output)).float() for output in outputs)
    difference = float("inf") if wanted.shape != found.shape else float((found - wanted).abs().max())
    if difference > 1e-3 * float(wanted.abs().max()):
        raise FovealError(
            f"the network must compute what its weights do in {variant}, got outputs that differ by "
            f"{difference / float(wanted.abs().max()):.1%} on an example; it was built with other options"
        )


def export(net: nn.Module, format: str) -> dict[str, Tensor]:
    """The network's weights with the names and shapes of a published format: what `convert` reads.

    Args:
        net: a network of the kind that `convert` makes from this format, trained or not.
        format: a name in `FORMATS`.

    Returns:
        Tensors by the peer's names, copies on the CPU; values and dtypes are unchanged.

    Raises:
        ValueError: an unknown format, or a network that computes something else than the peer's would with these
            weights, with the first difference.

    Example:
        >>> import foveal
        >>> net = foveal.create_model("cbam_resnet18", variant="official", num_classes=5)
        >>> [name for name in export(net, "cbam-official") if "layer1.0.cbam.Ch" in name][:2]
        ['layer1.0.cbam.ChannelGate.mlp.1.weight', 'layer1.0.cbam.ChannelGate.mlp.1.bias']
    """
    chosen = _named(format)
    net = unwrapped(net)
    state = tensors(net.state_dict())
    table = chosen.table(net)
    there = Shapes(dict(table.values()))
    if not chosen.matches(there):
        raise FovealError(f"{format} must be given a network of its kind, got {type(net).__name__}")
    stated = {**getattr(net, "foveal_model", {}).get("kwargs", {}), **blocks.given_options(net)}
    # what is part of a network's name there, or left at its default
    stated |= {
        name: getattr(net, name) for name in ("dc5", "relu_inplace", "pool_frames") if hasattr(net, name)
    }
    like, variant = _build(chosen, there, {k: v for k, v in stated.items() if k in chosen.ambiguous_options})
    wrong = state_dict_mismatch(there, dict(chosen.table(like).values())) or _difference(net, like)
    if wrong:
        raise FovealError(f"the network must be as {format} files are ({variant}), got {wrong}")
    return chosen.part(
        {
            theirs: state[name].to("cpu", copy=True).reshape(shape).contiguous()
            for name, (theirs, shape) in table.items()
        }
    )


def _difference(net: nn.Module, like: nn.Module) -> str | None:
    """The first line in which two networks print differently: strides, orders and scales show there, not in shapes.

    How much is dropped while training is no part of what the weights mean.
    """
    for mine, theirs in zip_longest(str(net).splitlines(), str(like).splitlines(), fillvalue="nothing"):
        if mine != theirs and not ("Dropout" in mine and "Dropout" in theirs):
            return f"{mine.strip()} instead of {theirs.strip()}"
    return None


def _ours(net: nn.Module, state: dict[str, Tensor], table: dict[str, tuple[str, Shape]]) -> dict[str, Tensor]:
    """Copies under our names, in our shapes: the file's mapping may be closed."""
    ours = {}
    for name, like in tensors(net.state_dict()).items():
        value = state[table[name][0]].reshape(like.shape)
        ours[name] = value.to("cpu", like.dtype, copy=True).contiguous()
    return ours


def _every_misfit(file: Shapes, expected: Mapping[str, Shape]) -> str:
    return "\n".join(
        f"{name}: {file.get(name, 'nothing')} instead of {expected.get(name, 'nothing')}"
        for name in {**expected, **file}
        if file.get(name) != expected.get(name)
    )


def _build(chosen: Format, shapes: Shapes, options: dict[str, Any]) -> tuple[nn.Module, str]:
    unknown = [key for key in options if key not in chosen.ambiguous_options]
    if unknown:
        raise FovealError(
            f"{chosen.name} takes {', '.join(chosen.ambiguous_options) or 'no options'}, got {', '.join(unknown)}"
        )
    for key, value in options.items():
        if key.startswith("drop") and not (type(value) in (int, float) and 0 <= value <= 1):
            raise FovealError(f"{key} must be a number from 0 to 1, got {value!r}")
    try:
        with torch.device("meta"):
            return chosen.build(shapes, options)
    except ValueError as error:
        raise FovealError(f"in files of {chosen.name}, {error}") from error


def _named(format: str) -> Format:
    if format not in FORMATS:
        raise FovealError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    return FORMATS[format]


def _fitting(format: str | None, shapes: Shapes) -> list[Format]:
    """The formats whose names these are; more than one where files look the same."""
    if format is not None:
        return [_named(format)]
    fitting = [one for one in FORMATS.values() if one.matches(shapes)]
    if fitting:
        return fitting
    raise FovealError(
        f"the weights must be in one of the formats {', '.join(FORMATS)}, got {len(shapes)} tensors"
        f"{nearest(shapes, FORMATS)}"
    )
