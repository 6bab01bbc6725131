"""Put any block anywhere in any convolutional network, and take it out again."""

from foveal.insertion.api import insert, remove
from foveal.insertion.costs import Plan, plan
from foveal.insertion.hooks import Insertion, inserted
from foveal.insertion.locate import Site, sites
from foveal.insertion.own import own_blocks
from foveal.insertion.param_groups import freeze_backbone, parameter_groups
from foveal.insertion.parse import block_name, parse_insertion
from foveal.insertion.zero_init import undo_zero_init

__all__ = [
    "Insertion",
    "Plan",
    "Site",
    "block_name",
    "freeze_backbone",
    "insert",
    "inserted",
    "own_blocks",
    "parameter_groups",
    "parse_insertion",
    "plan",
    "remove",
    "sites",
    "undo_zero_init",
]
