"""Deletion and insertion curves: the class score falls and rises with the cells that decide it."""

import torch
from torch import nn

from foveal.look.curves import perturbation_curves

from .test_measures import classifier


def test_curves_of_a_known_case() -> None:
    """One of four cells decides: removing it first, or putting it back first, gives the extreme curves."""
    net = classifier(nn.Identity())
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0, :2, :2] = 4.0
    image -= image.mean((2, 3), keepdim=True) * 0.999
    best = torch.zeros(1, 2, 2)
    best[0, 0, 0] = 1
    results = [perturbation_curves(net, image, maps, torch.tensor([0]), steps=4) for maps in (best, -best)]
    (good_deletion, good_insertion), (bad_deletion, bad_insertion) = results
    assert good_deletion <= bad_deletion + 1e-6
    assert good_insertion >= bad_insertion - 1e-6
