"""DETR: a set of boxes from a transformer over one feature map, and the forms of it that learn from few images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.models.boxes import inverse_sigmoid, scale_of, sine_box_code, to_xyxy
from foveal.models.denoising import Noisy, noisy_copies
from foveal.models.detection import (
    FOCAL_PRIOR,
    backbone_at_strides,
    backbone_maps,
    best_of_all,
    best_of_each,
    check_sizes,
    recorded_rows,
    whole,
)
from foveal.models.set_loss import Objects, SetLoss, number_of_boxes, stacked
from foveal.models.transformer import (
    MLP,
    DecoderLayer,
    EncoderLayer,
    LearnedPosition,
    Memory,
    QuerySet,
    SinePosition,
    grid_valid,
    take_rows,
)
from foveal.nn import check
from foveal.nn.positions import validate_positions

QUERIES = ("learned", "anchors", "selected")
Targets = Sequence[Mapping[str, Tensor]]


class DETR(nn.Module):
    """Backbone, encoder, decoder with queries, one class and one box for each query.

    The defaults are the paper's. Options that learn from few images, each by its own paper, say so below.

    Args:
        backbone: any timm model with ``features_only``, or ``cifar_resnetN``.
        pretrained: load timm's weights of the backbone.
        num_classes: classes, without "no object".
        in_chans: channels of the image.
        dc5: the last stage at stride 16 by dilation (DETR-DC5).
        stride: of the feature map; by default that of the backbone's last.
        frozen_norm: batch norms as buffers that nothing trains. For pretrained backbones only: statistics of a network
            that never saw an image are 0 and 1 and would stay so.
        positions: ``"sine"`` or ``"learned"``.
        width, heads, encoder_layers, decoder_layers, ffn_width, dropout: of the transformer.
        num_queries: boxes predicted for an image.
        queries: ``"learned"`` vectors; ``"anchors"``, learned boxes that every layer refines (Liu et al., DAB-DETR); or
            ``"selected"``, boxes proposed by the encoder at its most certain positions (Zhu et al., Deformable DETR,
            section 4.2, with learned contents as in Zhang et al., DINO, section 3.4).
        concatenated: cross-attention with content and position side by side (Meng et al., Conditional DETR).
        denoising: groups of noisy objects to restore while training (Li et al., DN-DETR); needs anchors or selected.
        groups: of queries while training, each matched to all objects (Chen et al., Group DETR); the first is used
            afterwards. The losses of the others are averaged.
        classification: ``"softmax"`` with "no object", or ``"focal"``, one sigmoid a class, as in all of the above.

    ``forward``: images (b, in_chans, h, w), normalised and then padded with zeros at the right and below, their
    ``sizes`` (b, 2) without the padding, and, with ``denoising`` while training, ``targets``. Returns ``logits``
    (b, q, k), where k is ``num_classes`` and with softmax one more, and ``boxes`` (b, q, 4), centre and size as shares
    of the unpadded image; while training also what `losses` needs: ``levels`` and, by option, ``groups``, ``encoder``
    and ``denoising``. Padding changes results a little even so: batches of one size, or one by one, do not have it.

    Raises:
        ValueError: an unknown backbone, or an option outside its range or without what it builds on.

    Source: Carion et al., End-to-End Object Detection with Transformers, and its released code: post-norm, dropout
    inside attention weights, after attention and twice in the feed-forward part, shared heads and final norm.

    Example:
        >>> net = DETR("resnet18", num_classes=5, encoder_layers=1, decoder_layers=2, num_queries=7)
        >>> images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [50, 80]])
        >>> outputs = net(images, sizes)
        >>> outputs["logits"].shape, outputs["boxes"].shape, len(outputs["levels"])
        (torch.Size([2, 7, 6]), torch.Size([2, 7, 4]), 1)
        >>> targets = [{"boxes_xyxy": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([3])}] * 2
        >>> list(net.losses(outputs, targets, sizes))
        ['class', 'l1', 'giou', 'class_inner', 'l1_inner', 'giou_inner']
        >>> net.eval().detections(net(images, sizes), sizes)[0]["boxes_xyxy"].shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        pretrained: bool = False,
        num_classes: int = 91,
        in_chans: int = 3,
        dc5: bool = False,
        stride: int | None = None,
        frozen_norm: bool = False,
        positions: str = "sine",
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        ffn_width: int = 2048,
        dropout: float = 0.1,
        num_queries: int = 100,
        queries: str = "learned",
        concatenated: bool = False,
        denoising: int = 0,
        groups: int = 1,
        classification: str = "softmax",
    ):
        super().__init__()
        anchored = queries in ("anchors", "selected")
        check.rules(
            ("num_classes", num_classes, "at least 1", num_classes >= 1),
            ("positions", positions, "sine or learned", positions in ("sine", "learned")),
            ("queries", queries, "one of " + ", ".join(QUERIES), queries in QUERIES),
            ("num_queries", num_queries, "at least 1", num_queries >= 1),
            ("decoder_layers", decoder_layers, "at least 1", decoder_layers >= 1),
            ("encoder_layers", encoder_layers, "at least 0", encoder_layers >= 0),
            ("dropout", dropout, "from 0 to below 1", 0 <= dropout < 1),
            ("groups", groups, "at least 1", groups >= 1),
            ("denoising", denoising, "at least 0", denoising >= 0),
            ("denoising", denoising, "0 with learned queries", anchored or not denoising),
            ("concatenated", concatenated, "left out with learned queries", anchored or not concatenated),
            ("dc5", dc5, "left out where stride is given", not dc5 or stride is None),
        )
        self.backbone, (channels,), _ = backbone_at_strides(
            backbone,
            strides=None if stride is None else [stride],
            pretrained=pretrained,
            in_chans=in_chans,
            output_stride=16 if dc5 else None,
            frozen_norm=frozen_norm,
        )
        self.num_classes, self.num_queries, self.width = num_classes, num_queries, width
        self.dc5 = dc5
        self.queries, self.denoising, self.groups, self.dropout = queries, denoising, groups, dropout
        self.default_cfg = {"input_size": (in_chans, 224, 224)}
        self.loss = SetLoss(classification, class_weight=1.0 if classification == "softmax" else 2.0)
        self.input_proj = nn.Conv2d(channels, width, 1)
        sine = SinePosition(width, 20.0 if anchored else 10_000.0, centred=anchored)
        self.position = sine if positions == "sine" else LearnedPosition(width)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, heads, ffn_width, dropout) for _ in range(encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, ffn_width, dropout, concatenated) for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        logits = num_classes + (classification == "softmax")
        self.query_embed = nn.Embedding(num_queries * groups, width)
        self.class_embed = nn.Linear(width, logits)
        self.bbox_embed = MLP(width, width, width, 4)
        self.anchors = self.label_embed = self.proposals = None
        if anchored:
            self.anchor_position = MLP(2 * width, width, width)
            self.anchor_size = MLP(width, width, 2)
            # of the second layer on; a part that nothing trains would stop processes that train together
            self.anchor_scale = MLP(width, width, width) if decoder_layers > 1 else nn.Identity()
        if queries == "anchors":
            self.anchors = nn.Embedding(num_queries * groups, 4)
        if queries == "selected":
            self.proposals = Proposals(width, logits)
        if denoising:
            self.label_embed = nn.Embedding(num_classes, width)
        self._initialise(classification == "focal")

    def _initialise(self, focal: bool) -> None:
        """As published: Xavier in the transformer (where its layers do so themselves), PyTorch's own in the heads."""
        nn.init.normal_(self.query_embed.weight)
        boxes = [self.bbox_embed] if self.queries != "learned" else []
        classes = [self.class_embed]
        if self.anchors is not None:
            nn.init.uniform_(self.anchors.weight)
            self.anchors.weight.data = inverse_sigmoid(self.anchors.weight.data)
        if self.proposals is not None:
            boxes.append(self.proposals.bbox_embed)
            classes.append(self.proposals.class_embed)
        for head in boxes:  # every box starts where its anchor is
            nn.init.zeros_(head.layers[-1].weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(head.layers[-1].bias)  # pyright: ignore[reportArgumentType]
        for head in classes if focal else []:
            nn.init.constant_(head.bias, FOCAL_PRIOR)

    # -------------------------------------------------------------------------------------------------- forward

    def encode(self, images: Tensor, sizes: Int[Tensor, "b 2"] | None = None) -> Memory:
        """The encoder's tokens, with their positions and the mask of padding."""
        check_sizes(images, sizes)
        features = self.input_proj(backbone_maps(self.backbone, images)[-1])
        image, grid = tuple(images.shape[-2:]), tuple(features.shape[-2:])
        mask = None
        if sizes is None:
            counts = torch.tensor([grid], device=images.device)
        else:
            counts, mask = grid_valid(sizes, image, grid)  # pyright: ignore[reportArgumentType]
            mask = None if bool(mask.all()) else mask
        position = self.position(counts, grid).to(features.dtype)
        memory = Memory(features.flatten(2).transpose(1, 2), position, mask, grid)  # pyright: ignore[reportArgumentType]
        for layer in self.encoder:
            memory = layer(memory)
        return memory

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: Targets | None = None,
    ) -> dict[str, Any]:
        memory = self.encode(images, sizes)
        groups = self.groups if self.training else 1
        content, anchors, outputs = self._queries(memory, groups)
        sets = [QuerySet(groups, content.shape[1] // groups)]
        noisy = None
        if self.label_embed is not None and self.training and targets is not None:
            objects = Objects.of(targets, whole(images) if sizes is None else sizes, self.num_classes)
            if max(objects.counts):
                noisy = noisy_copies(objects, self.denoising, self.num_classes)
                content = torch.cat([content, self.label_embed(noisy.labels).to(content.dtype)], 1)
                anchors = torch.cat([anchors, noisy.boxes], 1)
                # a query must see something: where an image has no object, the one place that is padded first
                seen = noisy.present.unflatten(1, (noisy.groups, -1)).clone()
                seen[..., 0] = True
                sets.append(QuerySet(noisy.groups, seen.shape[-1], seen.flatten(1)))
            else:
                # no object in the whole batch: still a gradient, of 0, for which other processes wait
                content = content + 0 * self.label_embed.weight.sum()
        levels = self._decode(content, anchors, memory, sets)
        return {**self._sorted_out(levels, sets, noisy), **outputs}

    def _queries(self, memory: Memory, groups: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Contents (b, n, width), anchors (b, n, 4) or, of learned queries, their vectors; what the encoder says."""
        b = memory.tokens.shape[0]
        learned = self.query_embed.weight[: self.num_queries * groups].repeat(b, 1, 1)
        if self.proposals is not None:
            proposed = self.proposals(memory)
            n = min(self.num_queries, memory.tokens.shape[1])
            best = proposed["logits"].detach()
            # the last logit of a softmax is "no object"
            best = best.softmax(-1)[..., :-1] if self.loss.classification == "softmax" else best
            score = best.amax(-1)
            score = score if memory.mask is None else score.masked_fill(~memory.mask, float("-inf"))
            chosen = score.topk(n, 1).indices
            anchors = take_rows(proposed["boxes"], chosen).detach().repeat(1, groups, 1)
            content = learned.unflatten(1, (groups, -1))[:, :, :n].flatten(1, 2)
            return content, anchors, {"encoder": proposed} if self.training else {}
        if self.anchors is not None:
            anchors = self.anchors.weight[: self.num_queries * groups].sigmoid().expand(b, -1, -1)
            return learned, anchors, {}
        return torch.zeros_like(learned), learned, {}

    def _decode(
        self, x: Tensor, anchors: Tensor, memory: Memory, sets: list[QuerySet]
    ) -> list[dict[str, Tensor]]:
        """Logits and boxes after each layer; anchors are refined and passed on without gradient."""
        levels = []
        x = x.to(memory.tokens.dtype)
        for i, layer in enumerate(self.decoder):
            position, cross = self._query_positions(x, anchors, first=i == 0)
            x = layer(x, position, cross, memory, sets)
            if not self.training and self.queries == "learned" and i + 1 < len(self.decoder):
                continue
            normed = self.decoder_norm(x)
            offset = self.bbox_embed(normed).float()
            if self.queries == "learned":
                boxes = offset.sigmoid()
            else:
                boxes = (offset + inverse_sigmoid(anchors)).sigmoid()
                anchors = boxes.detach()
            levels.append({"logits": self.class_embed(normed), "boxes": boxes})
        return levels

    def _query_positions(self, x: Tensor, anchors: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        """Position of the queries in self-attention and in cross-attention.

        Source: DAB-DETR, section 4.3 and equation 6 (the width and height of the anchor scale its code).
        """
        if self.queries == "learned":
            position = anchors.to(x.dtype)
            return position, position
        code = sine_box_code(anchors, self.width // 2, 20.0)
        centre = code[..., : self.width]
        wanted = self.anchor_size(x).sigmoid().flip(-1)  # height, width: y comes first in the code
        ratio = (wanted / anchors[..., 2:].flip(-1).clamp(min=1e-3)).clamp(max=10)
        centre = (centre.unflatten(-1, (2, -1)) * ratio[..., None]).flatten(-2).to(x.dtype)
        return self.anchor_position(code.to(x.dtype)), centre if first else centre * self.anchor_scale(x)

    def _sorted_out(
        self, levels: list[dict[str, Tensor]], sets: list[QuerySet], noisy: Noisy | None
    ) -> dict[str, Any]:
        """The predictions of the first group, and what the others and the denoising queries say."""
        groups, length, _ = sets[0]
        parts = [
            [{k: v[:, i * length : (i + 1) * length] for k, v in level.items()} for level in levels]
            for i in range(groups)
        ]
        outputs: dict[str, Any] = dict(parts[0][-1])
        if self.training:
            outputs["levels"] = parts[0][:-1]
            if groups > 1:
                outputs["groups"] = [level for part in parts[1:] for level in part]
            if noisy is not None:
                rest = [{k: v[:, groups * length :] for k, v in level.items()} for level in levels]
                outputs["denoising"] = {"levels": rest, "groups": noisy.groups}
        return outputs

    # --------------------------------------------------------------------------------- losses, boxes, attention

    def losses(
        self, outputs: Mapping[str, Any], targets: Targets, sizes: Int[Tensor, "b 2"]
    ) -> dict[str, Tensor]:
        """Weighted parts of the loss, see `DetectionNet`: of the last level, ``_inner``, and by option ``_groups``,
        ``_encoder`` and ``_denoising``.
        """
        objects = Objects.of(targets, sizes, self.num_classes)
        number = number_of_boxes(objects, shared=self.training)
        every = [outputs, *outputs.get("levels", []), *outputs.get("groups", [])]
        logits, boxes = stacked(every)
        matched = self.loss.match(logits, boxes, objects)
        inner = 1 + len(outputs.get("levels", []))
        found = {}
        for name, part, share in (
            ("", slice(0, 1), 1),
            ("_inner", slice(1, inner), 1),
            ("_groups", slice(inner, None), max(self.groups - 1, 1)),
        ):
            if len(matched[part]):
                parts = self.loss(
                    logits[part], boxes[part], objects, matched=matched[part], boxes_in_batch=number
                )
                found |= {f"{key}{name}": value / share for key, value in parts.items()}
        if "encoder" in outputs:
            parts = self.loss(*stacked([outputs["encoder"]]), objects, boxes_in_batch=number)
            found |= {f"{key}_encoder": value for key, value in parts.items()}
        if "denoising" in outputs:
            found |= self._denoising_losses(outputs["denoising"], objects, number)
        return found

    def _denoising_losses(
        self, denoising: dict[str, Any], objects: Objects, number: Tensor
    ) -> dict[str, Tensor]:
        logits, boxes = stacked(denoising["levels"])
        groups = denoising["groups"]
        # every group of every level is a set whose answers are known: query j is object j
        logits, boxes = (x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1) for x in (logits, boxes))
        known = torch.arange(logits.shape[2], device=logits.device).expand(*logits.shape[:2], -1)
        parts = self.loss(
            logits, boxes, objects, matched=known, counted=objects.present, boxes_in_batch=number
        )
        return {f"{key}_denoising": value / groups for key, value in parts.items()}

    def detections(
        self, outputs: Mapping[str, Any], sizes: Int[Tensor, "b 2"], limit: int = 100
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, see `DetectionNet`: with softmax one a query, its best class but "no object"."""
        logits = outputs["logits"].float()
        if self.loss.classification == "softmax":
            scores, labels, queries = best_of_each(logits.softmax(-1)[..., :-1], limit)
        else:
            scores, labels, queries = best_of_all(logits.sigmoid(), limit)
        boxes = take_rows(to_xyxy(outputs["boxes"].float()) * scale_of(sizes), queries)
        return [
            {"boxes_xyxy": box, "scores": score, "labels": label, "queries": query}
            for box, score, label, query in zip(boxes, scores, labels, queries, strict=True)
        ]

    @torch.no_grad()
    def detection_attention(
        self, images: Tensor, sizes: Int[Tensor, "b 2"] | None, queries: Int[Tensor, "b r"]
    ) -> dict[str, Tensor]:
        """``{"cross": (b, layers, heads, r, h, w)}``, the weights over the feature map of the asked queries.

        They are float32, computed beside the exact attention, for those rows alone; run in eval mode.
        """
        with recorded_rows([layer.multihead_attn for layer in self.decoder], queries) as rows:
            memory = self.encode(images, sizes)
            content, anchors, _ = self._queries(memory, 1)
            self._decode(content, anchors, memory, [QuerySet(1, content.shape[1])])
        return {"cross": torch.stack(rows, 1).unflatten(-1, memory.grid)}

    @torch.no_grad()
    def encoder_attention(
        self, images: Tensor, sizes: Int[Tensor, "b 2"] | None, positions: Sequence[Sequence[int]]
    ) -> Float[Tensor, "b layers heads r h w"]:
        """Self-attention weights of the encoder for chosen positions, (row, column) in the feature map.

        Raises:
            FovealError: a position outside the map.
        """
        features = self.input_proj(backbone_maps(self.backbone, images)[-1])
        points = torch.tensor(validate_positions(positions, features.shape[-2:]), device=images.device)
        places = (points[:, 0] * features.shape[-1] + points[:, 1]).expand(len(images), -1)
        with recorded_rows([layer.self_attn for layer in self.encoder], places) as rows:
            memory = self.encode(images, sizes)
        return torch.stack(rows, 1).unflatten(-1, memory.grid)


class Proposals(nn.Module):
    """A class and a box at every position of the encoder, relative to a box of two cells there.

    Source: Zhu et al., Deformable DETR, appendix A.4, two-stage; classes as in DINO. Deviation: the box a position
    starts from is two cells of its map wide instead of a twentieth of the image, as there is one map alone.
    """

    def __init__(self, width: int, logits: int):
        super().__init__()
        self.project, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.class_embed, self.bbox_embed = nn.Linear(width, logits), MLP(width, width, width, 4)

    def forward(self, memory: Memory) -> dict[str, Tensor]:
        h, w = memory.grid
        x = self.norm(self.project(memory.tokens))
        grid = self._grid(memory, h, w).to(x.device)
        return {
            "logits": self.class_embed(x),
            "boxes": (self.bbox_embed(x).float() + inverse_sigmoid(grid)).sigmoid(),
        }

    def _grid(self, memory: Memory, h: int, w: int) -> Float[Tensor, "b n 4"]:
        """The starting boxes as shares of each unpadded image."""
        if memory.mask is None:
            rows, columns = torch.tensor([[h]]), torch.tensor([[w]])
        else:
            valid = memory.mask.unflatten(1, memory.grid)
            rows, columns = valid.any(2).sum(1, keepdim=True), valid.any(1).sum(1, keepdim=True)
        y = ((torch.arange(h, device=rows.device) + 0.5) / rows)[:, :, None].expand(-1, h, w)
        x = ((torch.arange(w, device=rows.device) + 0.5) / columns)[:, None].expand(-1, h, w)
        width, height = ((2 / n)[:, :, None].expand_as(x) for n in (columns, rows))
        return torch.stack([x, y, width, height], -1).flatten(1, 2)
