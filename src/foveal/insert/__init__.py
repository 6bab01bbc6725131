"""Put any block anywhere in any convolutional network, and take it out again."""

from foveal.insert.attach import Insertion, insert, inserted, remove
from foveal.insert.cost import Plan, plan
from foveal.insert.find import Site, sites
from foveal.insert.groups import freeze_backbone, parameter_groups
from foveal.insert.spelling import parse_insertion

__all__ = [
    "Insertion",
    "Plan",
    "Site",
    "freeze_backbone",
    "insert",
    "inserted",
    "parameter_groups",
    "parse_insertion",
    "plan",
    "remove",
    "sites",
]
