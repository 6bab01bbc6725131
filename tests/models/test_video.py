"""Video networks equal their 2-D parents on still clips, and attend over what they are told to."""

import pytest
import torch
from torch import nn

import foveal
from foveal.models.video import VideoResNet, inflate


@pytest.mark.parametrize("time", [1, 3, 5])
def test_an_inflated_convolution_answers_a_still_clip_as_its_frame(time):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    inflated = inflate(conv, time)
    frame = torch.randn(1, 4, 7, 8).double()
    got = inflated(frame[:, :, None].expand(-1, -1, 9, -1, -1))[:, :, 4]
    assert torch.allclose(got, conv(frame), atol=1e-12)


def test_inflate_refuses_an_even_length():
    with pytest.raises(ValueError, match="time must be odd and at least 1, got 2"):
        inflate(nn.Conv2d(1, 1, 3), 2)


@pytest.mark.parametrize(("kind", "over"), [("c2d", "spacetime"), ("i3d", "space"), ("c2d", "time")])
def test_video_networks_classify_clips(kind, over):
    net = VideoResNet(kind, num_classes=4, blocks=1, over=over).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 4, 32, 32)).shape == (1, 4)
    assert [one.site for one in foveal.inserted(net)] == ["net.layer3.4"]


def test_a_c2d_gives_a_still_clip_one_answer_whatever_its_length():
    """Only pooling goes over time there, so the logits of a still clip do not depend on its length."""
    torch.manual_seed(0)
    net = VideoResNet("c2d", num_classes=4, blocks=0).eval()
    frame = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, eight = (net(frame[:, :, None].expand(-1, -1, t, -1, -1)) for t in (1, 8))
    assert torch.allclose(one, eight, atol=1e-5)


def test_without_classes_a_clip_becomes_pooled_features():
    net = VideoResNet("c2d", num_classes=0, blocks=0).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 4, 32, 32)).shape == (1, 2048)


def test_options_of_a_block_need_blocks():
    with pytest.raises(ValueError, match="blocks=0 takes no options of a block, got subsample"):
        VideoResNet("c2d", blocks=0, subsample="before")


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of c2d, i3d, got 'r2plus1d'"):
        VideoResNet("r2plus1d")


@pytest.mark.parametrize(
    ("variant", "inflated", "frames"),
    [
        ("paper", ["1.0", "1.2", "2.0", "2.2", "3.0", "3.2", "3.4", "4.0", "4.2"], 1),
        ("released", ["1.0", "1.1", "1.2", "2.0", "2.2", "3.0", "3.2", "3.4", "4.1"], 4),
    ],
)
def test_each_variant_inflates_its_blocks_and_pools_its_way(variant, inflated, frames):
    net = VideoResNet("i3d", num_classes=4, blocks=0, variant=variant).eval()
    over_time = [n for n, m in net.named_modules() if isinstance(m, nn.Conv3d) and m.kernel_size[0] == 3]
    assert over_time == [f"net.layer{block}.conv1" for block in inflated]
    assert net.net.conv1.kernel_size[0] == 5
    seen = []
    net.net.layer4.register_forward_hook(lambda module, args, output: seen.append(output.shape[2]))
    with torch.no_grad():
        net(torch.randn(1, 3, 8, 32, 32))
    assert seen == [frames]


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant must be one of paper, released, got 'official'"):
        VideoResNet("i3d", variant="official")


@pytest.mark.parametrize("kind", ["c2d", "i3d"])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_small_networks_classify_small_clips(kind, blocks):
    net = foveal.create_model(f"nonlocal_{kind}_cifar_resnet8", num_classes=4, blocks=blocks).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, 5, 20, 20)).shape == (2, 4)
    assert len(foveal.inserted(net)) == blocks
    over_time = [n for n, m in net.named_modules() if isinstance(m, nn.Conv3d) and m.kernel_size[0] == 3]
    wanted = ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"] if kind == "i3d" else []
    assert over_time == [f"net.{name}" for name in wanted]


def test_a_small_c2d_answers_a_still_clip_as_its_image():
    from foveal.models.cifar_resnet import CifarResNet
    from foveal.models.video import SmallVideoResNet

    torch.manual_seed(0)
    flat = CifarResNet(8, num_classes=4).eval()
    net = SmallVideoResNet("c2d", num_classes=4, blocks=0).eval()
    net.net.load_state_dict({name: value.unsqueeze(2) if value.ndim == 4 else value
                             for name, value in flat.state_dict().items()})  # fmt: skip
    image = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.allclose(net(image[:, :, None].expand(-1, -1, 3, -1, -1)), flat(image), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"kind": "r3d"}, "kind must be one of c2d, i3d, got 'r3d'"),
     ({"blocks": 3}, "blocks must be one of 0, 1, 2, got 3"),
     ({"blocks": 0, "subsample": "before"}, "blocks=0 takes no options of a block, got subsample")],
)  # fmt: skip
def test_a_small_network_names_what_it_does_not_take(options, reason):
    from foveal.models.video import SmallVideoResNet

    with pytest.raises(ValueError, match=reason):
        SmallVideoResNet(**options)
