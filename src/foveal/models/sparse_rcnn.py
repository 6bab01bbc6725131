"""Sparse R-CNN: a few learned boxes, refined stage by stage by what lies inside them."""

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from foveal.models.boxes import apply_deltas, scale_of, to_cxcywh, to_xyxy
from foveal.models.detection import (
    FOCAL_PRIOR,
    backbone_at_strides,
    backbone_maps,
    best_of_all,
    check_sizes,
    recorded_rows,
    whole,
)
from foveal.models.region_pooling import pooled
from foveal.models.set_loss import Objects, SetLoss, number_of_boxes, stacked
from foveal.models.transformer import MultiheadAttention, take_rows
from foveal.nn import check
from foveal.ops.numerics import autocast_disabled

Targets = Sequence[Mapping[str, Tensor]]
START_BOXES = ("image", "grid")
CANONICAL_SIDE, CANONICAL_IMAGE = 224, 800


class SparseRCNN(nn.Module):
    """Backbone, feature pyramid, learned boxes and vectors, stages that each read the inside of every box.

    The defaults are the paper's. Options that learn from few images say so below.

    Args:
        backbone: any timm model with ``features_only``, or ``cifar_resnetN``.
        pretrained: load timm's weights of the backbone.
        num_classes: classes.
        in_chans: channels of the image.
        strides: of the maps that the pyramid is built on, ascending, each twice the one before.
        frozen_norm: batch norms as buffers that nothing trains; for pretrained backbones only.
        width, heads, ffn_width, dynamic_width: of the head; the interaction goes through ``dynamic_width`` channels.
        stages: with weights of their own.
        num_queries: learned boxes and vectors.
        pool: side of the grid that each box is read at.
        dropout: behind attention, interaction and feed-forward; 0 in the paper's code.
        start_boxes: every box the whole ``"image"``, or a ``"grid"`` of boxes that cover it, each twice as wide as its
            cell.
        zero_deltas: the last layer of every box branch starts at zero, so that boxes begin where they are. At random
            weights its exponentials otherwise multiply over the stages.
        roi_reference: side in pixels of a box that is read from stride 16; 224 in the paper, for images of 800 pixels.
            None: in proportion to the image, so that small images use every level. That is not better as such: boxes
            of few pixels are then read from maps on which they are one or two cells wide.

    ``forward``: images (b, in_chans, h, w), normalised and then padded with zeros at the right and below, and their
    ``sizes`` (b, 2) without the padding. Returns ``logits`` (b, q, num_classes), one sigmoid a class, and ``boxes``
    (b, q, 4), centre and size as shares of the unpadded image, not clipped; while training also ``levels``, the same
    of the stages before.

    Raises:
        ValueError: an unknown backbone, or an option outside its range.

    Source: Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, section 3, and its
    released code. Deviation: the focal prior is set on the class layer alone; the released code sets it on every
    parameter whose last axis happens to equal the number of classes. ``zero_deltas``: as in Deformable DETR and all
    later detectors; ``roi_reference=None``: our own, after Lin et al., FPN, equation 1.

    Example:
        >>> net = SparseRCNN("resnet18", num_classes=5, stages=2, num_queries=7, width=64, ffn_width=128)
        >>> images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [50, 80]])
        >>> outputs = net(images, sizes)
        >>> outputs["logits"].shape, outputs["boxes"].shape, len(outputs["levels"])
        (torch.Size([2, 7, 5]), torch.Size([2, 7, 4]), 1)
        >>> targets = [{"boxes_xyxy": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([3])}] * 2
        >>> list(net.losses(outputs, targets, sizes))
        ['class', 'l1', 'giou', 'class_inner', 'l1_inner', 'giou_inner']
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        pretrained: bool = False,
        num_classes: int = 80,
        in_chans: int = 3,
        strides: Sequence[int] = (4, 8, 16, 32),
        frozen_norm: bool = False,
        width: int = 256,
        heads: int = 8,
        ffn_width: int = 2048,
        dynamic_width: int = 64,
        stages: int = 6,
        num_queries: int = 100,
        pool: int = 7,
        dropout: float = 0.0,
        start_boxes: str = "image",
        zero_deltas: bool = False,
        roi_reference: float | None = CANONICAL_SIDE,
    ):
        super().__init__()
        strides = tuple(strides)
        check.rules(
            ("num_classes", num_classes, "at least 1", num_classes >= 1),
            ("num_queries", num_queries, "at least 1", num_queries >= 1),
            ("stages", stages, "at least 1", stages >= 1),
            ("pool", pool, "at least 1", pool >= 1),
            ("dropout", dropout, "from 0 to below 1", 0 <= dropout < 1),
            ("start_boxes", start_boxes, "image or grid", start_boxes in START_BOXES),
            ("roi_reference", roi_reference, "above 0 or None", roi_reference is None or roi_reference > 0),
            (
                "strides",
                strides,
                "ascending, each twice the one before",
                bool(strides) and all(2 * a == b for a, b in itertools.pairwise(strides)),
            ),
        )
        self.backbone, channels, _ = backbone_at_strides(
            backbone, strides=strides, pretrained=pretrained, in_chans=in_chans, frozen_norm=frozen_norm
        )
        self.num_classes, self.num_queries, self.strides = num_classes, num_queries, strides
        self.roi_reference, self.pool = roi_reference, pool
        self.default_cfg = {"input_size": (in_chans, 224, 224)}
        self.loss = SetLoss("focal", class_weight=2.0, corners=True)
        self.fpn = FeaturePyramidNetwork(channels, width)
        self.init_proposal_boxes = nn.Embedding(num_queries, 4)
        self.init_proposal_features = nn.Embedding(num_queries, width)
        self.stages = nn.ModuleList(
            Stage(width, heads, ffn_width, dynamic_width, num_classes, pool, dropout) for _ in range(stages)
        )
        with torch.no_grad():
            start = whole_image(num_queries) if start_boxes == "image" else grid_boxes(num_queries)
            self.init_proposal_boxes.weight.copy_(start)
        if zero_deltas:
            for stage in self.stages:
                layer: Any = stage.bboxes_delta
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def pyramid(self, images: Tensor, sizes: Int[Tensor, "b 2"] | None) -> list[Tensor]:
        """Feature maps of one width, fine to coarse, of images padded to whole cells of the coarsest."""
        check_sizes(images, sizes)
        h, w = images.shape[-2:]
        images = F.pad(images, (0, -w % self.strides[-1], 0, -h % self.strides[-1]))
        maps = OrderedDict((str(i), x) for i, x in enumerate(backbone_maps(self.backbone, images)))
        return list(self.fpn(maps).values())

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: Targets | None = None,
    ) -> dict[str, Any]:
        maps = self.pyramid(images, sizes)
        levels = self._stages(maps, whole(images) if sizes is None else sizes)
        outputs: dict[str, Any] = dict(levels[-1])
        if self.training:
            outputs["levels"] = levels[:-1]
        return outputs

    def _stages(self, maps: list[Tensor], sizes: Int[Tensor, "b 2"]) -> list[dict[str, Tensor]]:
        b = sizes.shape[0]
        scale = scale_of(sizes)
        boxes = to_xyxy(self.init_proposal_boxes.weight.float()) * scale
        vectors = self.init_proposal_features.weight.repeat(b, 1, 1)
        reference = self.roi_reference
        sides = sizes.amin(1).float() * (CANONICAL_SIDE / CANONICAL_IMAGE)
        sides = sides if reference is None else torch.full_like(sides, reference)
        levels = []
        for stage in self.stages:
            inside = pooled(maps, self.strides, boxes.detach(), sides, self.pool)
            vectors, logits, deltas = stage(vectors, inside)
            with autocast_disabled(boxes.device):
                boxes = apply_deltas(deltas.float(), boxes)
            levels.append({"logits": logits, "boxes": to_cxcywh(boxes) / scale})
            boxes = boxes.detach()
        return levels

    # --------------------------------------------------------------------------------- losses, boxes, attention

    def losses(
        self, outputs: Mapping[str, Any], targets: Targets, sizes: Int[Tensor, "b 2"]
    ) -> dict[str, Tensor]:
        """Weighted parts of the loss, see `DetectionNet`: of the last stage, and ``_inner`` of those before."""
        objects = Objects.of(targets, sizes, self.num_classes)
        number = number_of_boxes(objects, shared=self.training)
        logits, boxes = stacked([outputs, *outputs.get("levels", [])])
        matched = self.loss.match(logits, boxes, objects)
        found = {}
        for name, part in (("", slice(0, 1)), ("_inner", slice(1, None))):
            if len(matched[part]):
                parts = self.loss(
                    logits[part], boxes[part], objects, matched=matched[part], boxes_in_batch=number
                )
                found |= {f"{key}{name}": value for key, value in parts.items()}
        return found

    def detections(
        self, outputs: Mapping[str, Any], sizes: Int[Tensor, "b 2"], limit: int = 100
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, see `DetectionNet`: the best of all scores, clipped; no box without extent."""
        scores, labels, queries = best_of_all(outputs["logits"].float().sigmoid(), limit)
        scale = scale_of(sizes)
        boxes = (to_xyxy(outputs["boxes"].float()) * scale).clamp(min=0)
        boxes = take_rows(torch.minimum(boxes, scale), queries)
        there = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        return [
            {"boxes_xyxy": box[keep], "scores": score[keep], "labels": label[keep], "queries": query[keep]}
            for box, score, label, query, keep in zip(boxes, scores, labels, queries, there, strict=True)
        ]

    @torch.no_grad()
    def detection_attention(
        self, images: Tensor, sizes: Int[Tensor, "b 2"] | None, queries: Int[Tensor, "b r"]
    ) -> dict[str, Tensor]:
        """How the asked boxes came to be.

        Returns:
            ``boxes_xyxy`` (b, stages + 1, r, 4) in pixels of the unpadded image, from the learned box to the last, and
            ``self`` (b, stages, heads, r, q) float32, how much each attends to every other.
        """
        maps = self.pyramid(images, sizes)
        sizes = whole(images) if sizes is None else sizes
        with recorded_rows([stage.self_attn for stage in self.stages], queries) as rows:
            levels = self._stages(maps, sizes)
        start = self.init_proposal_boxes.weight.float().expand(len(images), -1, -1)
        shares = [start, *(level["boxes"] for level in levels)]
        boxes = [take_rows(to_xyxy(share) * scale_of(sizes), queries) for share in shares]
        return {"boxes_xyxy": torch.stack(boxes, 1), "self": torch.stack(rows, 1)}


class Stage(nn.Module):
    """One stage: attention among the boxes of an image, interaction with what is inside each, feed-forward, heads.

    ``forward``: vectors (b, q, width), the inside of boxes (b * q, pool * pool, width) -> vectors, logits
    (b, q, classes) and deltas (b, q, 4).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dynamic_width: int,
        num_classes: int,
        pool: int,
        dropout: float,
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.inst_interact = DynamicInteraction(width, dynamic_width, pool)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.cls_module, self.reg_module = _branch(width, 1), _branch(width, 3)
        self.class_logits, self.bboxes_delta = nn.Linear(width, num_classes), nn.Linear(width, 4)
        self.dropout = dropout
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.class_logits.bias, FOCAL_PRIOR)

    def forward(
        self, x: Float[Tensor, "b q d"], inside: Float[Tensor, "bq n d"]
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b q k"], Float[Tensor, "b q 4"]]:
        x = self.norm1(x + self._drop(self.self_attn(x, None, x, None)))
        y = self.inst_interact(x.flatten(0, 1), inside).unflatten(0, x.shape[:2])
        x = self.norm2(x + self._drop(y))
        x = self.norm3(x + self._drop(self.linear2(self._drop(F.relu(self.linear1(x))))))
        return x, self.class_logits(self.cls_module(x)), self.bboxes_delta(self.reg_module(x))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class DynamicInteraction(nn.Module):
    """Two 1x1 convolutions over the inside of each box, with weights made from the box's own vector.

    Source: Sun et al., Sparse R-CNN, section 3.2, figure 4 and released code.
    """

    def __init__(self, width: int, dynamic_width: int, pool: int):
        super().__init__()
        self.shape = (width, dynamic_width)
        self.dynamic_layer = nn.Linear(width, 2 * width * dynamic_width)
        self.norm1, self.norm2 = nn.LayerNorm(dynamic_width), nn.LayerNorm(width)
        self.out_layer = nn.Linear(width * pool**2, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, vectors: Float[Tensor, "n d"], inside: Float[Tensor, "n p d"]) -> Float[Tensor, "n d"]:
        into, back = self.dynamic_layer(vectors).chunk(2, -1)
        x = F.relu(self.norm1(torch.bmm(inside, into.unflatten(-1, self.shape))))
        x = F.relu(self.norm2(torch.bmm(x, back.unflatten(-1, self.shape[::-1]))))
        return F.relu(self.norm3(self.out_layer(x.flatten(1))))


def _branch(width: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)


def whole_image(n: int) -> Float[Tensor, "n 4"]:
    """Centre and size, n times the whole image."""
    return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(n, 1)


def grid_boxes(n: int) -> Float[Tensor, "n 4"]:
    """Centre and size of n boxes on a grid over the image, each twice its cell wide and high.

    Example:
        >>> grid_boxes(4)[:, :2].tolist()
        [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    columns = max(round(n**0.5), 1)
    rows = -(-n // columns)
    place = torch.arange(n)
    x = (place % columns + 0.5) / columns
    y = (torch.div(place, columns, rounding_mode="floor") + 0.5) / rows
    size = torch.tensor([min(2 / columns, 1.0), min(2 / rows, 1.0)]).expand(n, 2)
    return torch.cat([torch.stack([x, y], 1), size], 1)
