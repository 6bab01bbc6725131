"""torchvision's FCOS and Faster R-CNN on any backbone: what DETR and Sparse R-CNN are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from foveal.models.boxes import scale_of, to_cxcywh, to_xyxy
from foveal.models.detection import backbone_at_strides, backbone_maps, best_of_all, whole
from foveal.nn import check

LIMIT = 100
"""Detections of an image, as published."""
LEAST_SCORE = 1e-3
"""Below it a detection is left out: average precision wants those of low scores too."""
ANCHOR_STRIDES = 8.0
"""Side of Faster R-CNN's anchors in strides of their map, as published: 32 at stride 4."""
CANONICAL_SIDE = 224
REGION_SIDE = 7
"""Side of the map that a proposal is pooled to, as published."""
SAMPLED = 512
"""Most proposals of an image of which Faster R-CNN's second stage learns at a step, as published."""
ABSENT = -100.0
"""Logit of a place without a detection."""


class Pyramid(FeaturePyramidNetwork):
    """A feature pyramid on the maps of a backbone, in the place where torchvision's detectors have both."""

    def __init__(self, channels: Sequence[int], width: int, top: Any) -> None:
        super().__init__(list(channels), width, extra_blocks=top)
        self.out_channels = width

    def forward(self, x: Sequence[Tensor]) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward({str(i): one for i, one in enumerate(x)})


class RegionDetector(nn.Module):
    """FCOS (Tian et al. 2019) or Faster R-CNN (Ren et al. 2015) with a feature pyramid, as torchvision has them.

    Args:
        kind: ``"fcos"`` or ``"faster_rcnn"``.
        backbone: a timm model with ``features_only``, or ours.
        pretrained: load published weights of the backbone.
        num_classes: classes, without background.
        in_chans: channels of the image.
        strides: of the backbone's maps, each twice the one before. As published 8, 16, 32 and 4, 8, 16, 32; above them
            FCOS has two more levels, Faster R-CNN one.
        frozen_norm: batch norms as buffers that nothing trains; for pretrained backbones only.
        width: channels of the pyramid, a multiple of 64: FCOS normalises 32 groups, each of more than one.
        anchor_strides: side of Faster R-CNN's anchors, and what FCOS's levels are for, in strides of their map.
        head_width: of the two layers with which Faster R-CNN judges a proposal.
        proposals: most proposals of an image that Faster R-CNN judges; as published 2,000 while training, of which 512
            are sampled, and 1,000 after.

    ``forward`` gives, where it is not training, ``logits`` (b, 100, k) and ``boxes`` (b, 100, 4) of the detections that
    remain after suppression, as `foveal.models.detection.DetectionNet` has them; and with targets ``losses``, those
    of torchvision: of the batch while training, else of each image, (b,).

    Differences from torchvision: images are not resized or normalised inside, and detections are kept from a score of
    0.001 on instead of 0.05 and 0.2.

    Raises:
        FovealError: an option is out of its range, or the backbone has no map of a stride.

    Example:
        >>> net = RegionDetector("fcos", "test_resnet", num_classes=3, width=64, strides=(8, 16)).eval()
        >>> outputs = net(torch.zeros(1, 3, 64, 64))
        >>> tuple(outputs["logits"].shape), tuple(outputs["boxes"].shape)
        ((1, 100, 3), (1, 100, 4))
    """

    def __init__(
        self,
        kind: str,
        backbone: str = "resnet50",
        *,
        pretrained: bool = False,
        num_classes: int = 80,
        in_chans: int = 3,
        strides: Sequence[int] | None = None,
        frozen_norm: bool = False,
        width: int = 256,
        anchor_strides: float = ANCHOR_STRIDES,
        head_width: int = 1024,
        proposals: int | None = None,
    ) -> None:
        super().__init__()
        fcos = kind == "fcos"
        strides = tuple(strides or ((8, 16, 32) if fcos else (4, 8, 16, 32)))
        check.rules(
            ("num_classes", num_classes, "at least 1", num_classes >= 1),
            ("width", width, "a multiple of 64", width >= 1 and width % 64 == 0),
            ("anchor_strides", anchor_strides, "above 0", anchor_strides > 0),
            ("head_width", head_width, "at least 1", head_width >= 1),
            ("proposals", proposals, "at least 1", proposals is None or proposals >= 1),
        )
        self.backbone, channels, _ = backbone_at_strides(
            backbone, strides=strides, pretrained=pretrained, in_chans=in_chans, frozen_norm=frozen_norm
        )
        top = LastLevelP6P7(width, width) if fcos else LastLevelMaxPool()
        pyramid = Pyramid(channels, width, top)
        self.num_classes, self.first_label = num_classes, 0 if fcos else 1
        kept: dict[str, Any] = {"image_mean": [0.0] * in_chans, "image_std": [1.0] * in_chans}
        levels = [strides[0] * 2**i for i in range(len(strides) + (2 if fcos else 1))]
        self.net: Any
        if fcos:
            # its anchors are the levels' cells; what a level is for follows from their side
            sides = tuple((round(stride * anchor_strides / ANCHOR_STRIDES),) for stride in levels)
            self.net = FCOS(
                pyramid, num_classes, anchor_generator=AnchorGenerator(sides, ((1.0,),) * len(levels)),
                score_thresh=LEAST_SCORE, detections_per_img=LIMIT, **kept,
            )  # fmt: skip
            return
        sides = tuple((round(stride * anchor_strides),) for stride in levels)
        pool = MultiScaleRoIAlign(
            [str(i) for i in range(len(strides))], output_size=REGION_SIDE, sampling_ratio=2,
            canonical_scale=round(CANONICAL_SIDE * strides[0] / 4 * anchor_strides / ANCHOR_STRIDES),
        )  # fmt: skip
        if proposals is not None:
            kept["rpn_post_nms_top_n_train"] = kept["rpn_post_nms_top_n_test"] = proposals
            kept["box_batch_size_per_image"] = min(proposals, SAMPLED)
        self.net = FasterRCNN(
            pyramid, box_roi_pool=pool, box_score_thresh=LEAST_SCORE, box_detections_per_img=LIMIT,
            box_head=TwoMLPHead(width * REGION_SIDE**2, head_width),
            box_predictor=FastRCNNPredictor(head_width, num_classes + 1),
            rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(levels)), **kept,
        )  # fmt: skip

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Any]:
        sizes = whole(images) if sizes is None else sizes
        maps = self.net.backbone(backbone_maps(self.backbone, images))
        listed = ImageList(images, [(int(h), int(w)) for h, w in sizes.tolist()])
        outputs: dict[str, Any] = {}
        if targets is not None:
            wanted = [
                {"boxes": one["boxes_xyxy"].float(), "labels": one["labels"] + self.first_label}
                for one in targets
            ]
            outputs["losses"] = (
                self._losses(listed, maps, wanted)
                if self.training
                else self._losses_of_each(listed, maps, wanted)
            )
        if not self.training:
            outputs["logits"], outputs["boxes"] = self._answers(self._found(listed, maps), sizes)
        return outputs

    def _losses(self, images: ImageList, maps: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
        net = self.net
        if isinstance(net, FCOS):
            levels = list(maps.values())
            heads, anchors = net.head(levels), net.anchor_generator(images, levels)
            return net.compute_loss(targets, heads, anchors, [x.shape[2] * x.shape[3] for x in levels])
        with _sampling(net.rpn, net.roi_heads, alike=not self.training):
            proposals, first = net.rpn(images, maps, targets)
            _, second = net.roi_heads(maps, proposals, images.image_sizes, targets)
        return {**first, **second}

    def _losses_of_each(
        self, images: ImageList, maps: dict[str, Tensor], targets: list[Any]
    ) -> dict[str, Tensor]:
        """Of a batch's loss, an average over its boxes and samples, no image's own could be told."""
        found = []
        for i, target in enumerate(targets):
            image = ImageList(images.tensors[i : i + 1], images.image_sizes[i : i + 1])
            found.append(
                self._losses(image, {name: value[i : i + 1] for name, value in maps.items()}, [target])
            )
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    @torch.no_grad()
    def _found(self, images: ImageList, maps: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        net = self.net
        if not isinstance(net, FCOS):
            proposals, _ = net.rpn(images, maps)
            return net.roi_heads(maps, proposals, images.image_sizes)[0]
        levels = list(maps.values())
        counts = [x.shape[2] * x.shape[3] for x in levels]
        heads = {name: list(value.split(counts, 1)) for name, value in net.head(levels).items()}
        anchors = [list(one.split(counts)) for one in net.anchor_generator(images, levels)]
        return net.postprocess_detections(heads, anchors, images.image_sizes)

    def _answers(
        self, found: Sequence[Mapping[str, Tensor]], sizes: Int[Tensor, "b 2"]
    ) -> tuple[Tensor, Tensor]:
        """Detections in places of a fixed number, each with the logit of its class."""
        logits = torch.full(
            (len(found), LIMIT, self.num_classes), ABSENT, device=sizes.device, dtype=torch.float32
        )
        boxes = logits.new_zeros(len(found), LIMIT, 4)
        for i, one in enumerate(found):
            count = min(LIMIT, len(one["scores"]))
            places = torch.arange(count, device=sizes.device)
            labels = one["labels"][:count] - self.first_label
            logits[i, places, labels] = one["scores"][:count].float().logit(1e-7)
            boxes[i, :count] = to_cxcywh(one["boxes"][:count].float())
        return logits, boxes / scale_of(sizes)

    def losses(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]], sizes: Int[Tensor, "b 2"]
    ) -> dict[str, Tensor]:
        """torchvision's parts of the loss, each with weight 1 as published."""
        return dict(outputs["losses"])

    @torch.no_grad()
    def detections(
        self, outputs: Mapping[str, Any], sizes: Int[Tensor, "b 2"], limit: int = LIMIT
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, see `foveal.models.detection.DetectionNet`."""
        scores, labels, queries = best_of_all(outputs["logits"].sigmoid(), limit)
        boxes = to_xyxy(outputs["boxes"]) * scale_of(sizes)
        return [
            {
                "boxes_xyxy": box[query[there]],
                "scores": score[there],
                "labels": label[there],
                "queries": query[there],
            }
            for box, score, label, query, there in zip(
                boxes, scores, labels, queries, scores > LEAST_SCORE / 2, strict=True
            )
        ]

    def detection_attention(
        self, images: Tensor, sizes: Int[Tensor, "b 2"] | None, queries: Int[Tensor, "b r"]
    ) -> dict[str, Tensor]:
        """Nothing: these networks have no attention but that of inserted blocks."""
        return {}


@contextmanager
def _sampling(*parts: nn.Module, alike: bool) -> Iterator[None]:
    """Parts that match and sample as while training, without that of what is inside them.

    Args:
        alike: draw the same samples each time, for a loss that is measured.
    """
    before = [part.training for part in parts]
    for part in parts:
        part.training = True
    try:
        with torch.random.fork_rng(enabled=alike):
            if alike:
                torch.manual_seed(0)
            yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.training = was
