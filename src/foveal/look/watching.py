"""Watch a network while it runs: hooks that record what each attention site receives, and are gone afterwards."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion import inserted
from foveal.look.readers import is_token_attention, reader_of, token_grid
from foveal.look.recording import Recordings, SiteRecording


@contextmanager
def watch(
    net: nn.Module,
    sites: str | Sequence[str] = "*",
    *,
    weights: str = "not named",
    max_bytes: int = 2**28,
    required: bool = True,
) -> Iterator[Recordings]:
    """Record the input of every attention site of ``net`` while the ``with`` block runs.

    Found are: every module with the block contract (an ``attention`` method; one that takes something else than a map
    also has ``attention_input``, which makes one of its inputs), inserted or built in; SE, ECA and CBAM modules of timm
    and torchvision; softmax attention of timm's plain transformers. Each new forward pass replaces the last. Hooks are
    gone when the ``with`` block ends, however it ends; the result stays readable.

    Args:
        net: any module.
        sites: path patterns (``fnmatch``) of the modules to record; default all.
        weights: what the weights are; every picture says it.
        max_bytes: bound on all recorded inputs together (default 256 MiB). A site that does not fit is not
            recorded, and reading it says so. Reading adds one float32 copy of the site's input and the rows.
        required: raise where there is nothing to record; otherwise nothing is.

    Returns:
        (as the ``with`` target) `Recordings`: ``seen["layer3.0"].gates`` (b, c), ``.mask`` (b, 1, *spatial),
        ``.rows((y, x))`` (b, r, *key_spatial), ``.channels`` (b, c, c).

    Raises:
        FovealError: ``net`` has no attention site that matches, where one is ``required``.

    Example:
        >>> import torch
        >>> from torchvision.ops import SqueezeExcitation
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), SqueezeExcitation(8, 2))
        >>> with watch(net) as seen:
        ...     y = net(torch.rand(1, 3, 32, 32))
        >>> seen["1"].gates.shape
        torch.Size([1, 8])
    """
    patterns = [sites] if isinstance(sites, str) else list(sites)
    chosen, skipped = _chosen_sites(net, patterns, weights, required)
    seen = Recordings(chosen, skipped, max_bytes)
    handles = [net.register_forward_pre_hook(_begin_pass(seen), with_kwargs=True)]
    try:
        for recording in chosen.values():
            module = recording.module
            handles.append(module.register_forward_pre_hook(_record(net, seen, recording), with_kwargs=True))
            handles.append(module.register_forward_hook(_finish(recording)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# --------------------------------------------------------------------------------------------------------- hooks


def _begin_pass(seen: Recordings) -> Callable[..., None]:
    def hook(_net: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        images = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        for recording in seen.values():
            recording.image_size = tuple(images[0].shape[2:]) if images else ()
            recording.forget("it did not run in the last forward pass")

    return hook


def _record(net: nn.Module, seen: Recordings, recording: SiteRecording) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        recording.forget("it could not be recorded")
        if any(value is not None and value is not False for value in (*args[1:], *kwargs.values())):
            recording.forget("it was called with a mask or further inputs, which the rows would not show")
            return
        own = getattr(module, "attention_input", None)
        x = args[0] if own is None else own(*args)
        if x is None:
            recording.forget("a part of its input is padding, which the rows would not show")
            return
        tokens = is_token_attention(module)
        spatial = token_grid(net, x, recording.image_size) if tokens else tuple(x.shape[2:])
        needed = x.numel() * x.element_size()
        if spatial is None:
            recording.forget(f"its {x.shape[1]} tokens are not the grid of the image")
        elif seen.recorded_bytes + needed > seen.max_bytes:
            recording.forget(
                f"its input of {needed:,} bytes does not fit in max_bytes={seen.max_bytes:,} beside the others; "
                "pass a larger max_bytes, fewer images or fewer sites"
            )
        else:
            recording.take(x, spatial)

    return hook


def _finish(recording: SiteRecording) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, _output: object) -> None:
        recording.finish()

    return hook


# ------------------------------------------------------------------------------------------------ finding sites


def _chosen_sites(
    net: nn.Module, patterns: list[str], weights: str, required: bool
) -> tuple[dict[str, SiteRecording], dict[str, str]]:
    found, skipped = _find_sites(net, weights)
    chosen = {
        name: recording
        for name, recording in found.items()
        if any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)
    }
    if chosen or not required:
        return chosen, skipped
    if found:
        raise FovealError(
            f"sites={patterns} must match an attention site, got a network with {', '.join(found)}"
        )
    first = next(iter(skipped.items()), None)
    unread = "" if first is None else f"; {len(skipped)} cannot be read, such as {first[0]}: {first[1]}"
    raise FovealError(
        f"the network must have an attention site, got {type(net).__name__} with none (foveal.insert adds one){unread}"
    )


def _find_sites(net: nn.Module, weights: str) -> tuple[dict[str, SiteRecording], dict[str, str]]:
    """The outermost readable modules, and the attention modules that hold none and cannot be read."""
    options = {id(found.module): found.options for found in inserted(net)}
    recordings: dict[str, SiteRecording] = {}
    unread: dict[str, str] = {}
    for name, module in net.named_modules():
        if any(name.startswith(f"{found}.") for found in recordings):
            continue
        reader = reader_of(module)
        if reader is not None:
            named = [f"{key}={value!r}" for key, value in options.get(id(module), {}).items()]
            stated = dict.fromkeys([*named, *filter(None, module.extra_repr().split(", "))])
            recordings[name] = SiteRecording(name, module, reader, ", ".join(stated), weights)
        elif re.search("Attention|Attn", type(module).__name__):
            unread[name] = f"{type(module).__module__}.{type(module).__name__} has no exact reader"
    holds_recording = {name for name in unread for found in recordings if found.startswith(f"{name}.")}
    return recordings, {name: reason for name, reason in unread.items() if name not in holds_recording}
