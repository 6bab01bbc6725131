"""Put any block anywhere in any convolutional network, and take it out again."""

from foveal.insertion.attach import Insertion, insert, inserted, remove
from foveal.insertion.cost import Plan, plan
from foveal.insertion.find import Site, sites
from foveal.insertion.groups import freeze_backbone, parameter_groups
from foveal.insertion.spelling import parse_insertion

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
