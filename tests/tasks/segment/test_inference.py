"""Ways of inference: each is what it says, on a network whose answer can be computed by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.errors import FovealError
from foveal.tasks.segment import SegmentInference
from foveal.tasks.segment.inference import (
    argmax_at_size,
    logits_of,
    multiscale,
    resized,
    sliding,
    window_starts,
)


class Local(nn.Module):
    """One logit map a class, each pixel from its own neighbourhood; remembers what sizes it saw."""

    def __init__(self, kernel=1):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, kernel, padding=kernel // 2)
        self.seen = []

    @torch.no_grad()
    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        return {"fused": self.convolution(x)}


IMAGES = torch.randn(2, 3, 13, 21, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("crop", "stride"), [(8, 8), (8, 5), (13, 1), (16, 10)])
def test_windows_of_a_pointwise_network_give_the_whole_image(crop, stride):
    net = Local()
    torch.testing.assert_close(sliding(net, IMAGES, crop, stride), net(IMAGES)["fused"])
    assert set(net.seen[:-1]) == {(crop, crop)}


def test_where_windows_meet_logits_are_averaged():
    net = Local(kernel=3)  # the border of a window differs from its middle
    image = torch.ones(1, 3, 4, 6)
    left, right = (net(image[..., a : a + 4])["fused"] for a in (0, 2))
    expected = torch.cat([left[..., :2], (left[..., 2:] + right[..., :2]) / 2, right[..., 2:]], -1)
    torch.testing.assert_close(sliding(net, image, 4, 2), expected)


def test_windows_cover_every_pixel_and_end_flush():
    for length in range(4, 30):
        for stride in range(1, 5):
            first = window_starts(length, 4, stride)
            assert {i for a in first for i in range(a, a + 4)} == set(range(length))
            assert first == sorted(set(first))


def test_the_mirror_image_is_mirrored_back():
    net = Local(kernel=3)
    with torch.no_grad():
        net.convolution.weight[..., 0] = 0  # looks to the right more than to the left
    plain, mirrored = net(IMAGES)["fused"], net(IMAGES.flip(-1))["fused"].flip(-1)
    assert not torch.allclose(plain, mirrored)
    torch.testing.assert_close(multiscale(net, IMAGES, [1.0], True), (plain + mirrored) / 2)
    torch.testing.assert_close(multiscale(net, IMAGES, [1.0], False), plain)


def test_scales_resize_the_image_and_bring_the_logits_back():
    net = Local()
    found = multiscale(net, IMAGES, [0.5, 1.0, 2.0], False)
    assert net.seen == [(6, 10), (13, 21), (26, 42)]
    one = net(F.interpolate(IMAGES, (26, 42), mode="bilinear", antialias=True))["fused"]
    half = net(F.interpolate(IMAGES, (6, 10), mode="bilinear", antialias=True))["fused"]
    parts = [resized(half, (13, 21)), net(IMAGES)["fused"], resized(one, (13, 21))]
    torch.testing.assert_close(found, torch.stack(parts).mean(0))


def test_every_way_says_what_it_is():
    whole = SegmentInference()
    windows = SegmentInference("sliding").with_defaults(90)
    scales = SegmentInference("multiscale", flip=True).with_defaults(90)
    assert (windows.crop, windows.stride, whole.to_dict()) == (90, 60, {"mode": "whole"})
    assert str(windows) == "sliding: windows of 90 every 60 pixels, logits averaged"
    assert "mirror images" in str(scales)
    for way in (whole, windows, scales):
        assert logits_of(Local(), IMAGES, way).shape == (2, 4, 13, 21)


@pytest.mark.parametrize(("classes", "dtype"), [(7, torch.uint8), (256, torch.uint8), (300, torch.int16)])
def test_the_highest_logit_is_found_a_few_classes_at_a_time_whatever_their_number(
    monkeypatch, classes, dtype
):
    logits = torch.randn(1, classes, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 3] = logits[:, 1]
    logits[:, -1, 0] += 9
    size = (23, 31)
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)
    assert (expected == classes - 1).any()
    for values in (10**6, 23 * 31 * 3):
        monkeypatch.setattr("foveal.tasks.segment.inference.PIXELS_AT_ONCE", values)
        found = argmax_at_size(logits, size)
        assert found.dtype == dtype
        assert torch.equal(found.long(), expected)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"inference": "half"}, "inference must be one of whole, sliding, multiscale, got half"),
        ({"crop": 96}, "crop is an option of inference sliding, got it with whole"),
        (
            {"inference": "sliding", "flip": True},
            "flip is an option of inference multiscale, got it with sliding",
        ),
        ({"inference": "sliding", "crop": 4}, "crop must be at least 8, got 4"),
        ({"inference": "sliding", "crop": 16, "stride": 17}, "stride must be 1 to crop=16, got 17"),
        (
            {"inference": "multiscale", "scales": [1.0, 0.0]},
            "scales must be one or more factors from 0.05 to 8.0",
        ),
        (
            {"inference": "multiscale", "scales": [20000.0]},
            "scales must be one or more factors from 0.05 to 8.0",
        ),
        ({"inference": "multiscale", "scales": []}, "scales must be one or more factors from 0.05 to 8.0"),
    ],
)
def test_options_out_of_range_or_of_another_way_are_refused(options, rule):
    with pytest.raises(FovealError, match=rule):
        SegmentInference(**options)
