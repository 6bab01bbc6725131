"""Sparse R-CNN against its equations written out, stage by stage, and its options."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

import foveal
from foveal.models.boxes import apply_deltas, to_cxcywh
from foveal.models.sparse_rcnn import SparseRCNN

SMALL = {"width": 32, "heads": 4, "ffn_width": 48, "dynamic_width": 8, "num_queries": 6, "num_classes": 5}
SMALL |= {"stages": 3, "strides": (4, 8, 16)}
SIZES = torch.tensor([[48, 64], [40, 50]])


def small(**options) -> SparseRCNN:
    torch.manual_seed(0)
    return SparseRCNN("test_resnet", **{**SMALL, **options})


def images() -> torch.Tensor:
    x = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    x[1, :, 40:], x[1, :, :, 50:] = 0, 0
    return x


class LiteralStage(nn.Module):
    """One stage as the paper and its code have it, in PyTorch's own layers; sequence first, boxes one by one."""

    def __init__(self, d=32, heads=4, hidden=48, dynamic=8, classes=5, pool=7):
        super().__init__()
        self.d, self.dynamic, self.pool = d, dynamic, pool
        self.self_attn = nn.MultiheadAttention(d, heads)
        self.inst_interact = nn.Module()
        self.inst_interact.dynamic_layer = nn.Linear(d, 2 * d * dynamic)
        self.inst_interact.norm1, self.inst_interact.norm2 = nn.LayerNorm(dynamic), nn.LayerNorm(d)
        self.inst_interact.out_layer, self.inst_interact.norm3 = nn.Linear(d * pool**2, d), nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        three = [part for _ in range(3) for part in (nn.Linear(d, d, False), nn.LayerNorm(d), nn.ReLU())]
        self.cls_module = nn.Sequential(nn.Linear(d, d, False), nn.LayerNorm(d), nn.ReLU())
        self.reg_module = nn.Sequential(*three)
        self.class_logits, self.bboxes_delta = nn.Linear(d, classes), nn.Linear(d, 4)

    def forward(self, maps, boxes, vectors):
        """Maps by stride; boxes (b, q, 4) pixel edges; vectors (b, q, d) -> vectors, logits, boxes."""
        b, q = boxes.shape[:2]
        new_vectors, logits, new_boxes = [], [], []
        x = vectors.transpose(0, 1)
        x = self.norm1(x + self.self_attn(x, x, x)[0]).transpose(0, 1)
        for i in range(b):
            for j in range(q):
                x1, y1, x2, y2 = boxes[i, j].tolist()
                side = math.sqrt((x2 - x1) * (y2 - y1))
                level = min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), max(maps_levels(maps)))
                features = maps[2**level][i : i + 1]
                roi = torch.tensor([[0.0, x1, y1, x2, y2]])
                inside = roi_align(features, roi, self.pool, 1 / 2**level, 2, aligned=True)[0]
                inside = inside.flatten(1).T  # (49, d)
                parameters = self.inst_interact.dynamic_layer(x[i, j])
                first = parameters[: self.d * self.dynamic].view(self.d, self.dynamic)
                second = parameters[self.d * self.dynamic :].view(self.dynamic, self.d)
                y = F.relu(self.inst_interact.norm1(inside @ first))
                y = F.relu(self.inst_interact.norm2(y @ second))
                y = F.relu(self.inst_interact.norm3(self.inst_interact.out_layer(y.flatten())))
                z = self.norm2(x[i, j] + y)
                z = self.norm3(z + self.linear2(F.relu(self.linear1(z))))
                dx, dy, dw, dh = self.bboxes_delta(self.reg_module(z)).unbind()
                w, h = x2 - x1, y2 - y1
                cx, cy = x1 + w / 2 + dx / 2 * w, y1 + h / 2 + dy / 2 * h
                w, h = (
                    w * torch.exp(dw.clamp(max=math.log(1e5 / 16))),
                    h * torch.exp(dh.clamp(max=math.log(1e5 / 16))),
                )
                new_boxes.append(torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]))
                logits.append(self.class_logits(self.cls_module(z)))
                new_vectors.append(z)
        return (torch.stack(part).view(b, q, -1) for part in (new_vectors, logits, new_boxes))


def maps_levels(maps):
    return [int(math.log2(stride)) for stride in maps]


@torch.no_grad()
def test_every_stage_is_the_papers():
    """Literal stages one after the other; boxes begin on a grid, as rounding grows with boxes that run away."""
    net = small(start_boxes="grid", num_queries=5).eval()
    x = images()
    maps = dict(zip(net.strides, net.pyramid(x, SIZES), strict=True))
    levels = net._stages(list(maps.values()), SIZES)
    scale = SIZES.flip(1).repeat(1, 2)[:, None].float()
    start = net.init_proposal_boxes.weight.expand(2, -1, -1)
    boxes = torch.cat([start[..., :2] - start[..., 2:] / 2, start[..., :2] + start[..., 2:] / 2], -1) * scale
    vectors = net.init_proposal_features.weight.expand(2, -1, -1)
    for stage, level in zip(net.stages, levels, strict=True):
        literal = LiteralStage().eval()
        literal.load_state_dict(stage.state_dict())
        vectors, logits, boxes = literal(maps, boxes, vectors)
        torch.testing.assert_close(level["logits"], logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(level["boxes"], to_cxcywh(boxes) / scale, rtol=1e-3, atol=1e-4)


def test_size_is_the_papers():
    with torch.device("meta"):
        net = foveal.create_model("sparse_rcnn_resnet50", frozen_norm=True)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(net.stages) == 79_412_472
    assert round(count(net) / 1e6, 1) == 106.2


@pytest.mark.parametrize("classes", [4, 32, 8])
def test_the_focal_prior_is_on_the_class_layer_alone(classes):
    """Whatever the number of classes equals: deltas (4), width (32), dynamic width (8)."""
    net = small(num_classes=classes)
    assert [
        name for name, p in net.named_parameters() if torch.allclose(p, torch.tensor(-math.log(99.0)))
    ] == [f"stages.{i}.class_logits.bias" for i in range(3)]
    torch.testing.assert_close(net(images())["logits"].sigmoid().mean(), torch.tensor(0.01), rtol=0.9, atol=0)


def test_deltas_are_limited_and_move_by_half_the_size():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 4.0]])
    moved = apply_deltas(torch.tensor([[1.0, -1.0, math.log(2), 0.0]]), boxes)
    torch.testing.assert_close(moved, torch.tensor([[0.0, -2.0, 16.0, 2.0]]))
    grown = apply_deltas(torch.tensor([[0.0, 0.0, 99.0, 0.0]]), boxes)
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(8 * 100_000 / 16))


def test_boxes_begin_as_the_whole_image_or_on_a_grid_and_stay_with_zero_deltas():
    for start in ("image", "grid"):
        net = small(start_boxes=start, zero_deltas=True).eval()
        boxes = net(images(), SIZES)["boxes"]
        torch.testing.assert_close(boxes[0], net.init_proposal_boxes.weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(boxes[1], boxes[0], rtol=0, atol=1e-6)
    assert small().init_proposal_boxes.weight.unique(dim=0).tolist() == [[0.5, 0.5, 1.0, 1.0]]
    assert len(boxes[0].unique(dim=0)) == 6


def test_boxes_carry_no_gradient_between_stages_and_vectors_do():
    net = small()
    outputs = net(images(), SIZES)
    last = outputs["boxes"].sum()
    start, vectors, delta = torch.autograd.grad(
        last,
        (
            net.init_proposal_boxes.weight,
            net.init_proposal_features.weight,
            net.stages[0].bboxes_delta.weight,
        ),
        allow_unused=True,
        retain_graph=True,
    )
    assert start is None
    assert delta is None
    assert vectors.abs().max() > 0
    (first,) = torch.autograd.grad(outputs["levels"][0]["boxes"].sum(), net.init_proposal_boxes.weight)
    assert first.abs().max() > 0


def test_images_are_padded_to_whole_cells_of_the_coarsest_level():
    net = small().eval()
    x = images()
    padded = F.pad(x, (0, 16, 0, 16))
    sizes = torch.tensor([[48, 64]] * 2)
    torch.testing.assert_close(
        net(x[:, :, :41, :50], SIZES.clamp(max=40))["boxes"].isfinite().all(), torch.tensor(True)
    )
    assert net.pyramid(x[:, :, :41, :50], None)[-1].shape[-2:] == (3, 4)
    # what is whole already is not padded, and more padding is not seen where boxes end before it
    assert net.pyramid(x, sizes)[0].shape[-2:] == (12, 16)
    assert net.pyramid(padded, sizes)[0].shape[-2:] == (16, 20)


def test_small_images_use_every_level_with_a_reference_in_proportion():
    from foveal.models import region_pooling

    read = {}
    for reference in (224, None):
        net = small(roi_reference=reference, start_boxes="grid", zero_deltas=True, stages=1).eval()
        maps = [torch.full((2, 32, 12 // 2**i, 16 // 2**i), float(i)) for i in range(3)]
        boxes = torch.tensor([[[10.0, 10, 16, 16], [8, 8, 20, 20], [0, 0, 48, 48]]] * 2)
        sides = torch.tensor([224.0, 224]) if reference else SIZES.amin(1) * 224 / 800
        inside = region_pooling.pooled(maps, net.strides, boxes, sides.float(), 3)
        read[reference] = inside.amax((1, 2))[:3].round().tolist()
    assert read == {224: [0, 0, 0], None: [0, 1, 2]}


def test_detections_are_clipped_and_none_is_empty():
    net = small()
    logits = torch.full((1, 3, 5), -9.0)
    logits[0, 0, 2], logits[0, 1, 1], logits[0, 2, 0] = 3.0, 2.0, 1.0
    boxes = torch.tensor([[[0.9, 0.5, 0.6, 0.5], [1.8, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]])
    found = net.detections({"logits": logits, "boxes": boxes}, torch.tensor([[10, 20]]), limit=3)[0]
    assert found["queries"].tolist() == [0, 2]
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["boxes_xyxy"][0], torch.tensor([12.0, 2.5, 20.0, 7.5]))


def test_pictures_show_the_way_of_the_boxes_and_who_attends_to_whom():
    net = small(start_boxes="grid").eval()
    x, queries = images(), torch.tensor([[1, 4], [0, 0]])
    shown = net.detection_attention(x, SIZES, queries)
    assert shown["boxes_xyxy"].shape == (2, 4, 2, 4)
    assert shown["self"].shape == (2, 3, 4, 2, 6)
    torch.testing.assert_close(shown["self"].sum(-1), torch.ones(2, 3, 4, 2))
    last = to_cxcywh(shown["boxes_xyxy"][:, -1]) / SIZES.flip(1).repeat(1, 2)[:, None]
    outputs = net(x, SIZES)["boxes"]
    expected = torch.stack([outputs[0, [1, 4]], outputs[1, [0, 0]]])
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
