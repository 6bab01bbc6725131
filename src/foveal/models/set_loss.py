"""The loss of a set of predictions: match each object to one prediction, then classify and fit boxes.

A set is what one level of a network says of a batch: logits (b, q, k) and boxes (b, q, 4). Sets of equal size are
matched together: one cost tensor for all levels and images, one copy to the CPU, then one assignment a level and image.
Costs, areas and losses are float32, also under autocast.

Predictions that are not finite make the loss not finite and are never blamed on the data; boxes and labels of the data
are checked first and refused with the image they belong to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from foveal.errors import FovealError
from foveal.models.boxes import generalized_iou, scale_of, to_cxcywh, to_xyxy
from foveal.ops.numerics import autocast_disabled

FORBIDDEN_COST = 1e8


@dataclass(frozen=True)
class Objects:
    """The objects of a batch, padded to the same number.

    Attributes:
        labels: (b, t) int64. boxes: (b, t, 4) centre and size as shares of the image. present: (b, t) bool.
        counts: objects of each image.
    """

    labels: Int[Tensor, "b t"]
    boxes: Float[Tensor, "b t 4"]
    present: Bool[Tensor, "b t"]
    counts: list[int]

    @classmethod
    def of(
        cls, targets: Sequence[Mapping[str, Tensor]], sizes: Int[Tensor, "b 2"], num_classes: int
    ) -> "Objects":
        """From ``boxes_xyxy`` (n, 4) in pixels and ``labels`` (n,) of each image.

        Raises:
            FovealError: a box is not finite or has no extent, or a label is no class; the message says which image.
        """
        counts = [len(target["labels"]) for target in targets]
        b, t = len(targets), max(counts, default=0)
        device = sizes.device
        labels = torch.zeros(b, t, dtype=torch.long, device=device)
        # what is padded is a whole image, so that its arithmetic stays finite
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0], device=device).repeat(b, t, 1)
        for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
            if count:
                labels[i, :count] = target["labels"].to(device)
                scale = scale_of(sizes[i : i + 1])[0].to(device)
                boxes[i, :count] = to_cxcywh(target["boxes_xyxy"].to(device).float() / scale)
        present = torch.arange(t, device=device) < torch.tensor(counts, device=device)[:, None]
        objects = cls(labels, boxes, present, counts)
        objects._check(targets, num_classes)
        return objects

    def _check(self, targets: Sequence[Mapping[str, Tensor]], num_classes: int) -> None:
        broken = ~(self.boxes.isfinite().all(-1) & (self.boxes[..., 2:] > 0).all(-1))
        unknown = (self.labels < 0) | (self.labels >= num_classes)
        if not bool(((broken | unknown) & self.present).any()):  # the one wait for the device
            return
        image, place = (int(i) for i in ((broken | unknown) & self.present).nonzero()[0])
        if broken[image, place]:
            box = [round(v, 2) for v in targets[image]["boxes_xyxy"][place].tolist()]
            raise FovealError(
                f"an annotated box must be finite with x1 < x2 and y1 < y2, got {box}, box {place} of image {image} "
                "in the batch"
            )
        raise FovealError(
            f"labels must be from 0 to {num_classes - 1}, got {int(self.labels[image, place])}, box {place} of "
            f"image {image} in the batch"
        )

    def repeated(self, times: int) -> "Objects":
        """Every object ``times`` times: object after object, group after group."""
        return Objects(
            self.labels.repeat(1, times),
            self.boxes.repeat(1, times, 1),
            self.present.repeat(1, times),
            [count * times for count in self.counts],
        )


def number_of_boxes(objects: Objects, *, shared: bool = False) -> Tensor:
    """Objects in the batch, at least 1.

    Args:
        shared: averaged over the processes that take a training step together. Never while evaluating: they have
            different numbers of batches there, and would wait for each other.
    """
    number = objects.present.sum().float()
    if shared and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(number)
        number = number / torch.distributed.get_world_size()
    return number.clamp(min=1)


@dataclass(frozen=True)
class SetLoss:
    """Matching costs and losses of DETR (``"softmax"``) or of Sparse R-CNN and later detectors (``"focal"``).

    Args:
        classification: ``"softmax"`` over the classes and "no object", which is the last logit, or ``"focal"``: one
            sigmoid a class.
        class_weight, l1_weight, giou_weight: factors in the costs and in the losses.
        no_object_weight: of "no object" in the weighted mean of the cross-entropy.
        corners: the L1 distance compares edges, as in Sparse R-CNN, instead of centre and size, as in DETR.
        alpha, gamma: of the focal loss and its cost.

    Raises:
        ValueError: unknown classification.

    Example:
        >>> loss = SetLoss()
        >>> objects = Objects.of(
        ...     [{"boxes_xyxy": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([1])}],
        ...     torch.tensor([[16, 16]]), num_classes=2)
        >>> logits = torch.zeros(1, 1, 3, 3)
        >>> boxes = torch.tensor([[[[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5], [1, 1, 1, 1]]]])
        >>> loss.match(logits, boxes, objects).tolist()
        [[[1]]]
        >>> {name: round(float(part), 3) for name, part in loss(logits, boxes, objects).items()}
        {'class': 1.099, 'l1': 0.0, 'giou': 0.0}

    Source: Carion et al., DETR, section 3.1 and equations 1 and 2, weights of its released code; Sun et al., Sparse
    R-CNN, section 3.3 and released code; focal: Lin et al., Focal Loss for Dense Object Detection, equation 5.
    """

    classification: str = "softmax"
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1
    corners: bool = False
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.classification not in ("softmax", "focal"):
            raise FovealError(f"classification must be softmax or focal, got {self.classification!r}")

    # ------------------------------------------------------------------------------------------------- matching

    @torch.no_grad()
    def costs(
        self, logits: Float[Tensor, "s b q k"], boxes: Float[Tensor, "s b q 4"], objects: Objects
    ) -> Float[Tensor, "s b q t"]:
        """The cost of every pair of a prediction and an object, float32."""
        with autocast_disabled(logits.device):
            logits, boxes = logits.float(), boxes.float()
            label = objects.labels[None, :, None].expand(*logits.shape[:3], -1)
            if self.classification == "softmax":
                class_cost = -logits.softmax(-1).gather(-1, label)
            else:
                # -log(p + 1e-8), as published, instead of log-sigmoid
                p = logits.sigmoid().gather(-1, label)
                positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
                negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
                class_cost = positive - negative
            one, other = boxes[..., :, None, :], objects.boxes[None, :, None]
            edges, others = to_xyxy(one), to_xyxy(other)
            distance = (edges - others if self.corners else one - other).abs().sum(-1)
            return (
                self.class_weight * class_cost
                + self.l1_weight * distance
                - self.giou_weight * generalized_iou(edges, others)
            )

    def match(
        self, logits: Float[Tensor, "s b q k"], boxes: Float[Tensor, "s b q 4"], objects: Objects
    ) -> Int[Tensor, "s b t"]:
        """The prediction of each object at the least total cost (Hungarian); -1 for objects beyond the predictions.

        A cost that is not finite is never chosen while another is left, and stops nothing.
        """
        from scipy.optimize import linear_sum_assignment

        cost = self.costs(logits, boxes, objects)
        cost = cost.nan_to_num(FORBIDDEN_COST, FORBIDDEN_COST, -FORBIDDEN_COST).cpu().numpy()
        found = torch.full((*cost.shape[:2], cost.shape[3]), -1, dtype=torch.long)
        chosen = found.numpy()
        for level in range(cost.shape[0]):
            for image, count in enumerate(objects.counts):
                if count:
                    rows, columns = linear_sum_assignment(cost[level, image, :, :count])
                    chosen[level, image, columns] = rows
        return found.to(logits.device)

    # --------------------------------------------------------------------------------------------------- losses

    def __call__(
        self,
        logits: Float[Tensor, "s b q k"],
        boxes: Float[Tensor, "s b q 4"],
        objects: Objects,
        *,
        matched: Int[Tensor, "s b t"] | None = None,
        counted: Bool[Tensor, "b q"] | None = None,
        boxes_in_batch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses ``class``, ``l1`` and ``giou`` of the sets, summed over them.

        Args:
            matched: the prediction of each object, where known; by default `match`.
            counted: which predictions count in the classification; by default all.
            boxes_in_batch: what box losses (and the focal loss) are divided by; by default `number_of_boxes` of these.
        """
        number = number_of_boxes(objects) if boxes_in_batch is None else boxes_in_batch
        matched = self.match(logits, boxes, objects) if matched is None else matched
        with autocast_disabled(logits.device):
            logits, boxes = logits.float(), boxes.float()
            kept = (matched >= 0) & objects.present
            index = matched.clamp(min=0)
            mine = boxes.gather(2, index[..., None].expand(-1, -1, -1, 4))
            theirs = objects.boxes[None]
            edges, others = to_xyxy(mine), to_xyxy(theirs)
            distance = (edges - others if self.corners else mine - theirs).abs().sum(-1)
            overlap = 1 - generalized_iou(edges, others)
            # of a box that is not finite the matching makes no use: the loss has to show it
            poison = (boxes * 0).sum()
            return {
                "class": self.class_weight
                * self._class_loss(logits, matched, kept, objects, counted, number),
                "l1": self.l1_weight * torch.where(kept, distance, 0).sum() / number + poison,
                "giou": self.giou_weight * torch.where(kept, overlap, 0).sum() / number,
            }

    def _class_loss(
        self,
        logits: Tensor,
        matched: Tensor,
        kept: Tensor,
        objects: Objects,
        counted: Tensor | None,
        number: Tensor,
    ) -> Tensor:
        s, b, q, k = logits.shape
        none = k - 1 if self.classification == "softmax" else k
        # one place more than there are predictions takes what is not kept
        wanted = torch.full((s, b, q + 1), none, dtype=torch.long, device=logits.device)
        labels = objects.labels[None].expand_as(matched)
        wanted = wanted.scatter(2, torch.where(kept, matched, q), torch.where(kept, labels, none))[..., :q]
        if self.classification == "focal":
            one_hot = F.one_hot(wanted, k + 1)[..., :k].to(logits.dtype)
            loss = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma)
            loss = loss if counted is None else torch.where(counted[None, ..., None], loss, 0)
            return loss.sum() / number
        surprise = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
        weight = torch.where(wanted == none, self.no_object_weight, 1.0)
        weight = weight if counted is None else weight * counted[None]
        return ((weight * surprise).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-9)).sum()


def stacked(sets: Sequence[Mapping[str, Any]]) -> tuple[Float[Tensor, "s b q k"], Float[Tensor, "s b q 4"]]:
    """Logits and boxes of several sets of equal size."""
    return torch.stack([one["logits"] for one in sets]), torch.stack([one["boxes"] for one in sets])
