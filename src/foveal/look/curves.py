"""Deletion and insertion curves: does the class score follow the map?"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.look.geometry import on_pixels


def perturbation_curves(
    net: nn.Module,
    images: Float[Tensor, "b c *size"],
    maps: Float[Tensor, "b *spatial"],
    classes: Tensor,
    *,
    steps: int = 10,
    seed: int = 0,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Areas under the deletion and the insertion curve of each map of an image or a clip, in 0..1.

    Cells are ranked by the map (ties in random order) and replaced, or put back, from the highest on in
    ``steps`` equal parts; what is missing has the image's mean colour. A curve is the softmax probability of
    ``classes`` against the share of replaced cells; its area is taken by trapezoids.

    Example:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
        >>> images, maps = torch.rand(4, 3, 8, 8), torch.rand(4, 4, 4)
        >>> deletion, insertion = perturbation_curves(net, images, maps, net(images).argmax(1))
        >>> deletion.shape, bool(((0 <= insertion) & (insertion <= 1)).all())
        (torch.Size([4]), True)

    Source: Petsiuk et al., "RISE", BMVC 2018, section 4.2, with the mean colour for both curves instead of
    zero and blur.
    """
    b, cells = len(maps), maps[0].numel()
    shuffle = torch.randperm(cells, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    order = shuffle[maps.flatten(1)[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(cells, device=maps.device).expand(b, -1))
    blank = images.mean(tuple(range(2, images.ndim)), keepdim=True)
    curves = []
    for step in range(steps + 1):
        hit = (rank * steps < step * cells).reshape(maps.shape).float()
        hit = on_pixels(hit, tuple(maps.shape[1:]), tuple(images.shape[2:]))[:, None]
        with torch.no_grad():
            both = net(torch.cat([torch.where(hit > 0, blank, images), torch.where(hit > 0, images, blank)]))
        curves.append(both.float().softmax(1).gather(1, torch.cat([classes, classes])[:, None])[:, 0])
    area = torch.trapezoid(torch.stack(curves), dx=1 / steps, dim=0)
    return area[:b], area[b:]
