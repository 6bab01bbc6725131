"""The verb ``foveal convert``: a published file into ours, or one of ours into a published format.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.terminal import write_out


def convert(
    source: str,
    target: str,
    format: str | None = None,
    to: str | None = None,
    prefix: str = "",
    ema: bool | None = None,
    model_options: dict | None = None,
) -> int:
    """Turn weights that others published into a file that foveal rebuilds, or back.

    Args:
        source: A PyTorch checkpoint or safetensors file; nothing in it is run. With --to, a file of foveal.
        target: Where to write; a safetensors file, or with --to also a checkpoint (.pth, .pt).
        format: What the source is, such as cbam-official. Default: told from the names in it.
        to: Write this published format instead.
        prefix: Read only what begins so, such as one block of a network or a momentum encoder.
        ema: Take the averaged weights; must be stated where the source holds raw and averaged ones.
        model_options: What the source does not show, such as --model_options.multi_grid=null of a DANet.
    """
    from foveal.published.conversion import FORMATS
    from foveal.published.reading import read

    if Path(source).resolve() == Path(target).resolve():
        raise FovealError(f"target must be another file than the source, got {target} twice")
    if Path(target).is_dir():
        raise FovealError(f"target must be a file, got the folder {target}")
    if format not in (None, *FORMATS) or to not in (None, *FORMATS):
        raise FovealError(f"a format must be one of {', '.join(FORMATS)}, got {to if to else format}")
    if to is not None:
        if format is not None or model_options or prefix or ema is not None:
            raise FovealError("--to must be given without --format, --prefix, --ema and --model_options")
        return _out(source, Path(target), to)
    from foveal.checkpoint import save
    from foveal.insertion import inserted
    from foveal.published.conversion import convert

    net: Any = convert(read(source, ema), format, prefix=prefix, **(model_options or {}))
    info, model = net.foveal_info, getattr(net, "foveal_model", None)
    if model is None:  # there is no name to rebuild it by
        info = {**info, "block": str(net)}
    save(net, target, **info)
    count = sum(p.numel() for p in net.parameters())
    blocks = len(inserted(net))
    write_out(f"{source}: {info['converted_from']}, {info['variant']}\n")
    for note in info.get("notes", []):
        write_out(f"{source}: {note}\n")
    if model is None:
        write_out(
            f"{target}: one {type(net).__name__}, {count} parameters; foveal.load takes it into a block made alike\n"
        )
        return 0
    write_out(
        f"{target}: {model['name']}, {model['kwargs']['num_classes']} classes, {count / 1e6:.2f} million parameters"
        + (f", {blocks} inserted blocks\n" if blocks else "\n")
    )
    return 0


def _out(source: str, target: Path, to: str) -> int:
    import io

    import torch
    from safetensors.torch import save as to_bytes

    from foveal.checkpoint import load
    from foveal.files import write_bytes
    from foveal.published.conversion import export

    state = export(load(source), to)
    if target.suffix == ".safetensors":
        content = to_bytes(state)
    else:
        held = io.BytesIO()
        torch.save(state, held)
        content = held.getvalue()
    write_bytes(target, content)
    write_out(f"{target}: {to}, {len(state)} tensors\n")
    return 0
