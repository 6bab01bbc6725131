"""Attention for convolutional networks, from paper to product."""

__version__ = "0.1.0"

# Functions are bound here at once, not on first use: `insert` and its package have one name, and importing the
# package later would put the module in the function's place.
from foveal.checkpoint import load, read_info, save
from foveal.insert import (
    Insertion,
    Plan,
    Site,
    freeze_backbone,
    insert,
    inserted,
    parameter_groups,
    parse_insertion,
    plan,
    remove,
    sites,
)
from foveal.look import watch
from foveal.models import create_model, list_models

__all__ = [
    "Insertion",
    "Plan",
    "Site",
    "create_model",
    "freeze_backbone",
    "insert",
    "inserted",
    "list_models",
    "load",
    "parameter_groups",
    "parse_insertion",
    "plan",
    "read_info",
    "remove",
    "save",
    "sites",
    "watch",
]
