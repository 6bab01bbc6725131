"""Numbers beside the pictures, so that a map is evidence: is it selective, does it matter, is it on the object?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveal.data.objects import object_mask
from foveal.errors import FovealError
from foveal.look.cam import grad_cam
from foveal.look.curves import perturbation_curves
from foveal.look.geometry import on_pixels, query_grid
from foveal.look.recording import SiteRecording
from foveal.look.watching import watch
from foveal.statistics import LEVEL, Estimate, estimate

MEASURES = {
    "entropy": "entropy of a row (or mask) over log of its cells: 1 = uniform, 0 = one cell",
    "query_dependence": "half the L1 distance between rows of two queries: 0 = one global context, 1 = disjoint",
    "gate_mean": "mean channel gate",
    "gate_spread": "standard deviation of the gate over channels",
    "mask_mean": "mean spatial mask",
    "mask_spread": "standard deviation of the mask over positions",
    "contribution": "||block(x) - x|| / ||x||",
    "share": "share of the map's weight on the object",
    "share_chance": "share of the image's area the object takes: what a uniform map reaches",
    "share_gain": "share - share_chance",
    "pointing": "share of images where the map's highest cell is on the object",
    "centre": "the same for a map that always points at the image's centre",
    "pointing_vs_centre": "pointing - centre: objects tend to be in the middle of photographs",
    "pointing_gain": "pointing - share_chance, for a random pixel hits as often as the object is large",
    "deletion": "mean probability of the predicted class while cells are removed, highest first (low is good)",
    "deletion_vs_random": "deletion of a random order - deletion: above 0 is better than random",
    "deletion_vs_grad_cam": "deletion of Grad-CAM at this site - deletion: above 0 is better than Grad-CAM",
    "insertion": "mean probability while cells are put back, highest first (high is good)",
    "insertion_vs_random": "insertion - insertion of a random order",
    "insertion_vs_grad_cam": "insertion - insertion of Grad-CAM",
}
# A map is evidence only where these lie above 0: {measure: what it is called in the verdict}.
VS_CHANCE = {
    "share_gain": "attention on the object",
    "pointing_gain": "pointing game",
    "deletion_vs_random": "deletion",
    "insertion_vs_random": "insertion",
}


@dataclass(frozen=True)
class SiteScore:
    """Scores of one site: ``values`` by the names in ``MEASURES``, and a sentence that says what beat chance."""

    site: str
    block: str
    values: dict[str, Estimate]
    verdict: str


def attention_map(recording: SiteRecording, queries: int = 4) -> Float[Tensor, "b *spatial"]:
    """One non-negative map per image, or per clip, of where a site attends, on its own grid.

    The spatial mask where the block has one; else the attention that each position receives, averaged over a
    grid of ``queries`` query positions along each side (signed weights count by size).

    Raises:
        FovealError: if the block weighs channels only, or the site is a sequence.

    Example:
        >>> import foveal
        >>> with watch(net := nn.Sequential(foveal.nn.NonLocal(8)).eval()) as seen:
        ...     y = net(torch.rand(2, 8, 6, 5))
        >>> attention_map(seen["0"]).sum((1, 2)).round(decimals=4).tolist()
        [1.0, 1.0]
    """
    attention = recording.attention(query_grid(recording.spatial, queries))
    if len(recording.spatial) > 1 and "spatial_mask" in attention:
        return attention["spatial_mask"][:, 0].abs()
    if len(recording.spatial) > 1 and "rows" in attention:
        return on_pixels(attention["rows"].abs().mean(1), recording.spatial, recording.spatial)
    raise FovealError(f"{recording.name!r} ({recording.block}) has no map over image positions")


def share_on_object(
    maps: Float[Tensor, "b h w"], objects: Bool[Tensor, "b H W"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Share of each map on the object, whether its highest cell is there, and the chance of both.

    Args:
        maps: non-negative.
        objects: True on the object's pixels.

    Returns:
        share: weight on the object over all weight.
        pointing: 1 where the highest cell lies on the object, 0 where not; where the object covers a part of
            that cell, or several cells are equally high, the part.
        chance: area of the object over area of the image: a uniform map reaches it in both.

    Example:
        >>> maps = torch.tensor([[[0.0, 3.0], [1.0, 0.0]]])
        >>> objects = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> objects[:, :2, 2:] = True
        >>> share_on_object(maps, objects)
        (tensor([0.7500]), tensor([1.]), tensor([0.2500]))
    """
    pixels = on_pixels(maps, tuple(maps.shape[1:]), tuple(objects.shape[1:])).flatten(1)
    on = objects.flatten(1).to(pixels.dtype)
    share = (pixels * on).sum(1) / pixels.sum(1)
    highest = (pixels == pixels.amax(1, keepdim=True)).to(pixels.dtype)
    return share, (highest * on).sum(1) / highest.sum(1), on.mean(1)


def score_sites(
    net: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    sites: str | Sequence[str] = "*",
    curve_images: int = 64,
    queries: int = 4,
    steps: int = 10,
    seed: int = 0,
) -> list[SiteScore]:
    """Score every attention site of a network over a data set.

    Curves and Grad-CAM follow a class score, so a network without logits (b, k), such as one for segmentation, is
    scored without them.

    Args:
        net: in eval mode.
        batches: dictionaries with ``image`` (b, c, H, W), or of clips (b, c, t, H, W), ready for the network, and of
            images, where known, the object as ``mask`` (b, H, W, non-zero on it) or ``box_xyxy`` (b, 4, pixels).
            Consumed once.
        sites: path patterns as in ``watch``.
        curve_images: how many images get deletion and insertion curves (6 curves each and site); 0 for none.
        queries: side of the grid of query positions.
        steps: points on a curve.
        seed: of the random orders.

    Returns:
        One ``SiteScore`` a site, in order of depth. The verdicts hold all at once: "above chance" wants the
        interval at level 1 - 0.05 / (number of comparisons with chance, over all sites) above 0.

    Raises:
        FovealError: if ``net`` has no attention site or there are no images.

    Example:
        >>> import foveal
        >>> net = nn.Sequential(foveal.nn.CBAM(3, reduction=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        >>> batch = {"image": torch.rand(8, 3, 8, 8), "box_xyxy": torch.tensor([[2.0, 2, 6, 6]]).expand(8, 4)}
        >>> (site,) = score_sites(net, [batch])
        >>> site.block, round(site.values["share_chance"].mean, 3)
        ('CBAM', 0.25)
    """
    gathered: dict[str, dict[str, list[Tensor]]] = {}
    blocks: dict[str, str] = {}
    seen_images = 0
    for batch in batches:
        images = batch["image"]
        with watch(net, sites) as seen, torch.no_grad():
            output = net(images)
        objects = object_mask(batch)
        logits = output if isinstance(output, Tensor) and output.ndim == 2 else None
        curved = images[: max(0, curve_images - seen_images) if logits is not None else 0]
        mapped = {
            name: attention_map(recording, queries) for name, recording in seen.items() if has_map(recording)
        }
        cams = {}
        explained = [name for name in mapped if not seen[name].tokens]
        if len(curved) and explained:
            cams, _ = grad_cam(net, curved, explained)
        for name, recording in seen.items():
            blocks[name] = recording.block
            found = _measure(recording, queries)
            if name in mapped and objects is not None:
                share, pointing, chance = share_on_object(mapped[name], objects)
                centre = objects[:, objects.shape[1] // 2, objects.shape[2] // 2].float()
                found |= {"share": share, "share_chance": chance, "share_gain": share - chance}
                found |= {"pointing": pointing, "centre": centre, "pointing_vs_centre": pointing - centre}
                found["pointing_gain"] = pointing - chance
            if name in mapped and logits is not None and len(curved):
                noise = torch.Generator().manual_seed(seed + seen_images)
                maps = mapped[name][: len(curved)]
                baselines = {"random": torch.rand(maps.shape, generator=noise).to(maps)}
                if name in cams:
                    baselines["grad_cam"] = cams[name]
                found |= _curves(net, curved, maps, baselines, logits[: len(curved)].argmax(1), steps, seed)
            for key, values in found.items():
                gathered.setdefault(name, {}).setdefault(key, []).append(values.cpu().double())
        seen_images += len(images)
    if not seen_images:
        raise FovealError("the data set must hold at least one image, got none")
    tests = sum(key in VS_CHANCE for found in gathered.values() for key in found)
    scores = []
    for name, found in gathered.items():
        values = {key: torch.cat(found[key]) for key in MEASURES if key in found}
        intervals = {key: _over_images(value) for key, value in values.items()}
        scores.append(SiteScore(name, blocks[name], intervals, _verdict(values, max(tests, 1))))
    return scores


# --------------------------------------------------------------------------------------------- measures per image


def _curves(
    net: nn.Module,
    images: Tensor,
    maps: Tensor,
    baselines: dict[str, Tensor],
    classes: Tensor,
    steps: int,
    seed: int,
) -> dict[str, Tensor]:
    deletion, insertion = perturbation_curves(net, images, maps, classes, steps=steps, seed=seed)
    found = {"deletion": deletion, "insertion": insertion}
    for name, baseline in baselines.items():
        baseline_deletion, baseline_insertion = perturbation_curves(
            net, images, baseline, classes, steps=steps, seed=seed
        )
        found[f"deletion_vs_{name}"] = baseline_deletion - deletion
        found[f"insertion_vs_{name}"] = insertion - baseline_insertion
    return found


def has_map(recording: SiteRecording) -> bool:
    """Whether the site has a map over positions of an image or a clip (and not over channels or time alone)."""
    return len(recording.spatial) > 1 and bool({"spatial_mask", "rows"} & recording.shows())


def _measure(recording: SiteRecording, queries: int) -> dict[str, Tensor]:
    attention = recording.attention(query_grid(recording.spatial, queries))
    found: dict[str, Tensor] = {}
    if "rows" in attention:
        rows = attention["rows"].flatten(2)
        if bool((rows >= 0).all()):
            found["entropy"] = _entropy(rows).mean(1)
        shares = rows / rows.abs().sum(-1, keepdim=True)
        pairs = torch.cdist(shares, shares, p=1) / 2
        count = rows.shape[1]
        found["query_dependence"] = pairs.sum((1, 2)) / max(count * (count - 1), 1)
    if "channel_gate" in attention:
        gate = attention["channel_gate"]
        found |= {"gate_mean": gate.mean(1), "gate_spread": gate.std(1, unbiased=False)}
    if "spatial_mask" in attention:
        mask = attention["spatial_mask"].flatten(1)
        found |= {"mask_mean": mask.mean(1), "mask_spread": mask.std(1, unbiased=False)}
        found["entropy"] = _entropy(mask.clamp_min(0))
    if not recording.tokens:
        found["contribution"] = recording.contribution()
    return found


def _entropy(weights: Tensor) -> Tensor:
    """Entropy over the last dimension, divided by its largest value; nan for weights that sum to 0."""
    shares = weights / weights.sum(-1, keepdim=True)
    return -torch.special.xlogy(shares, shares).sum(-1) / math.log(max(weights.shape[-1], 2))


def _verdict(values: Mapping[str, Tensor], tests: int) -> str:
    """Which of the comparisons with chance hold at a level shared by all sites."""
    said = []
    for key, name in VS_CHANCE.items():
        if key in values:
            above = _over_images(values[key], LEVEL / tests).low > 0
            verdict = "above chance" if above else "does not beat chance"
            if above and key == "pointing_gain" and values["pointing_vs_centre"].mean() <= 0:
                verdict += ", but no better than the centre of the image"
            said.append(f"{name}: {verdict}")
    return "; ".join(said) or "no map or no known object: nothing to compare with chance"


def _over_images(values: Tensor, level: float = LEVEL) -> Estimate:
    """Mean and interval over images; images where a measure is undefined (nan) are left out, and not counted."""
    return estimate(values[~values.isnan()].tolist(), level)
