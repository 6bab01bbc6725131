"""What timm needs to open a repository: for its own networks without inserted blocks, and proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveal.checkpoint import load
from foveal.data.transforms import SMALL
from foveal.files import write_json
from foveal.hub import WEIGHTS

CONFIG = "config.json"
NAMES_OF_LAYERS = ("first_conv", "classifier", "pool_size", "fixed_input_size")
"""What timm knows of a network's own layers, with which it changes classes and channels."""


def timm_config(folder: Path, description: dict[str, Any]) -> dict[str, Any] | None:
    """The ``config.json`` with which timm opens a folder's weights to the same values; None where it cannot.

    timm knows no inserted blocks: loading the rest of such a network would silently lose them.

    Args:
        folder: holds the weights file; a ``config.json`` is tried there.
        description: the file's metadata.
    """
    import timm
    import torch

    model, info = description["model"], description["info"]
    if model is None or description["plan"] or description["changed"] or not timm.is_model(model["name"]):
        return None
    net = load(folder / WEIGHTS)
    known: dict[str, Any] = net.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    side, classes = info["image_size"], len(info["classes"])
    config = {
        "architecture": model["name"].partition(".")[0],
        "num_classes": classes,
        "num_features": getattr(net, "num_features", None),
        "label_names": info["classes"],
        "model_args": {k: v for k, v in model["kwargs"].items() if k not in ("num_classes", "in_chans")},
        "pretrained_cfg": {
            **{key: known[key] for key in NAMES_OF_LAYERS if known.get(key) is not None},
            "num_classes": classes,
            "input_size": [len(info["mean"]), side, side],
            "interpolation": info.get("interpolation", "bilinear"),
            "crop_pct": info.get("crop_share") or (0.875 if side > SMALL else 1.0),
            "mean": info["mean"],
            "std": info["std"],
        },
    }
    write_json(folder / CONFIG, config)
    try:
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    except (RuntimeError, TypeError, ValueError, AttributeError):
        # a network of timm that cannot be described so
        return None
    finally:
        (folder / CONFIG).unlink()
    ours = net.state_dict()
    same = opened.keys() == ours.keys() and all(torch.equal(opened[name], ours[name]) for name in ours)
    return config if same else None
