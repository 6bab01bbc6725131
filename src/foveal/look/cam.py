"""Grad-CAM at any module, to hold an attention map against. It explains one class score and is not attention."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.errors import FovealError


def grad_cam(
    net: nn.Module,
    images: Float[Tensor, "b c *size"],
    sites: Sequence[str],
    classes: Int[Tensor, " b"] | None = None,
) -> tuple[dict[str, Float[Tensor, "b *spatial"]], Float[Tensor, "b k"]]:
    """``relu(sum_c a_c A_c)`` with ``a_c`` the mean gradient of the class logit on the output ``A`` of each site.

    Args:
        net: a classifier returning logits (b, k); run in its current mode, parameters and their gradients are
            left as they are.
        images: what the network takes.
        sites: module paths whose outputs are maps (b, c, h, w), or of clips (b, c, t, h, w).
        classes: class whose logit is explained, per image; default the predicted one.

    Returns:
        {site: (b, h, w)}, or (b, t, h, w), at least 0 and not normalised; and the logits.

    Raises:
        FovealError: if the network returns no (b, k) logits or a site no map.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> cams, logits = grad_cam(net, torch.rand(1, 3, 8, 8), ["1"])
        >>> cams["1"].shape, logits.shape
        (torch.Size([1, 6, 6]), torch.Size([1, 2]))

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2.
    """
    outputs: dict[str, Tensor] = {}

    def keep(site: str, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        outputs[site] = output
        # what follows may work in place (``x += shortcut``, ReLU) and must not reach ours
        return output.clone()

    handles = [net.get_submodule(site).register_forward_hook(partial(keep, site)) for site in sites]
    try:
        with torch.enable_grad():
            # The image carries the gradient, so that frozen parameters do not matter.
            logits = net(images.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise FovealError(f"the network must return logits (b, k), got {_describe(logits)}")
    for site in sites:
        if site not in outputs or outputs[site].ndim != images.ndim:
            raise FovealError(
                f"site {site!r} must give a map of {images.ndim} dimensions like the input, got "
                f"{_describe(outputs.get(site))}"
            )
    chosen = logits.argmax(1) if classes is None else classes
    score = logits.gather(1, chosen[:, None]).sum()
    gradients = torch.autograd.grad(score, [outputs[site] for site in sites])
    cams = {
        site: (_mean(gradient) * outputs[site].detach()).sum(1).relu().float()
        for site, gradient in zip(sites, gradients, strict=True)
    }
    return cams, logits.detach()


def _mean(gradient: Tensor) -> Tensor:
    """Over all places, (b, c, 1, ...)."""
    return gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True)


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
