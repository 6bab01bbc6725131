"""Recording: exact weights, no output bit changed, nothing left behind, memory bounded."""

import gc

import pytest
import timm
import torch
from torch import nn

from foveal.insertion import insert
from foveal.look.record import on_pixels, watch
from foveal.nn import BLOCKS
from foveal.ops import reference


def small_net(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), *blocks)


def random_block(name: str, **options: object) -> nn.Module:
    torch.manual_seed(1)
    block = BLOCKS[name](16, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


IMAGES = torch.rand(2, 3, 14, 18, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(BLOCKS))
def test_recording_changes_no_output_bit_and_leaves_no_hook(name: str) -> None:
    net = small_net(random_block(name), nn.ReLU(inplace=True))
    before = net(IMAGES)
    with watch(net) as seen:
        during = net(IMAGES)
    assert torch.equal(before, during)
    assert torch.equal(before, net(IMAGES))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    assert seen["2"].attention().keys()


class InPlaceResidual(nn.Module):
    """Overwrites its block's input after the block has read it, as ``x += branch(x)`` does."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(self.block(x))


def test_the_record_survives_in_place_operations_and_a_later_pass() -> None:
    net = small_net(InPlaceResidual(random_block("se"))).eval().requires_grad_(False)
    with watch(net) as seen:
        net(IMAGES)
    features = net[:2](IMAGES)
    net(IMAGES * 3)
    assert torch.equal(seen["2"].input, features)
    assert torch.equal(seen["2"].gates, net[2].block.attention(features)["channel_gate"])


def test_each_pass_replaces_the_last() -> None:
    net = small_net(random_block("se"))
    with watch(net) as seen:
        net(IMAGES)
        first = seen["2"].gates
        net(IMAGES[:1] * 2)
    assert first.shape[0] == 2
    assert seen["2"].gates.shape[0] == 1


def test_hooks_vanish_after_an_exception() -> None:
    net = small_net(random_block("cbam"))
    with pytest.raises(RuntimeError), watch(net):
        net(torch.rand(1, 5, 8, 8))
    with pytest.raises(ZeroDivisionError), watch(net):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_rows_are_the_reference_rows() -> None:
    block = random_block("nonlocal", scaled=True)
    net = small_net(block)
    with watch(net) as seen:
        net(IMAGES)
    x = seen["2"].input
    theta, phi = (layer(x).flatten(2).transpose(1, 2) for layer in (block.theta, block.phi))
    full = reference.softmax_weights(reference.dot_scores(theta, phi, block.scale))
    h, w = seen["2"].spatial
    rows = seen["2"].rows((0, 0), (3, 5))
    torch.testing.assert_close(rows, full[:, [0, 3 * w + 5]].reshape(2, 2, h, w))
    torch.testing.assert_close(rows.sum((2, 3)), torch.ones(2, 2))


def test_both_modules_of_dual_attention_are_read_by_one_name() -> None:
    with watch(net := small_net(random_block("dual"))) as seen:
        net(IMAGES)
    assert list(seen) == ["2"]
    assert seen["2"].rows((1, 1)).shape == (2, 1, 7, 9)
    assert seen["2"].channels.shape == (2, 16, 16)


def test_names_may_be_shortened_to_what_is_unique() -> None:
    net = timm.create_model("resnet18", num_classes=4).eval()
    insert(net, "cbam", at="residual", stages=(3, 4))
    with watch(net) as seen:
        net(torch.rand(1, 3, 32, 32))
    assert len(seen) == 4
    assert seen["layer3.0"] is seen["layer3.0.bn2.cbam"]
    assert seen["layer3.0"].mask.shape == (1, 1, 2, 2)
    with pytest.raises(KeyError, match=r"several sites.*layer3.0.*layer3.1"):
        seen["layer3"]
    with pytest.raises(KeyError, match="no site 'layer9'"):
        seen["layer9"]


def test_an_inserted_block_reports_its_options() -> None:
    net = insert(timm.create_model("resnet18", num_classes=4), "se", at="residual", stages=(4,), reduction=8)
    with watch(net) as seen:
        pass
    assert "reduction=8" in seen["layer4.0"].options


def test_memory_stays_within_its_bound() -> None:
    net = small_net(random_block("se"), random_block("cbam"))
    one = 2 * 16 * 7 * 9 * 4
    with watch(net, max_bytes=one + 5) as seen:
        for _ in range(3):
            net(IMAGES)
            assert seen.recorded_bytes == one
    assert seen["2"].gates.shape == (2, 16)
    with pytest.raises(ValueError, match=r"'3'.*does not fit in max_bytes=8,069"):
        seen["3"].gates  # noqa: B018


def test_sites_can_be_chosen() -> None:
    net = small_net(random_block("se"), random_block("cbam"))
    with watch(net, sites="3") as seen:
        net(IMAGES)
    assert list(seen) == ["3"]
    with (
        pytest.raises(ValueError, match=r"must match an attention site, got a network with 2, 3"),
        watch(net, "layer*"),
    ):
        pass


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="got a network with none"), watch(small_net()):
        pass


def test_reading_without_a_pass_says_why() -> None:
    with watch(small_net(random_block("se"))) as seen:
        pass
    with pytest.raises(ValueError, match="never ran"):
        seen["2"].gates  # noqa: B018


def test_reading_what_a_block_does_not_have_names_what_it_has() -> None:
    with watch(net := small_net(random_block("se"))) as seen:
        net(IMAGES)
    with pytest.raises(ValueError, match=r"'2' \(SqueezeExcite\) has none; it has channel_gate"):
        seen["2"].mask  # noqa: B018


def test_reading_after_a_training_step_is_refused() -> None:
    net = small_net(random_block("se"))
    with watch(net) as seen:
        net(IMAGES).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    with pytest.raises(ValueError, match="weights of '2' changed since"):
        seen["2"].gates  # noqa: B018


def test_reading_in_training_mode_leaves_running_statistics_alone() -> None:
    net = small_net(random_block("cbam", variant="official").train())
    with watch(net) as seen:
        net(IMAGES)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    mask = seen["2"].mask
    assert torch.equal(mask, seen["2"].mask)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_reading_does_not_run_spectral_norm_once_more() -> None:
    net = small_net(random_block("selfattention", spectral_norm=True).train())
    with watch(net) as seen:
        net(IMAGES)
    rows = net[2].eval().attention(seen["2"].input, [(2, 2)])["rows"]
    assert torch.equal(seen["2"].rows((2, 2)), rows)


@pytest.mark.parametrize("name", ["nonlocal", "cbam", "dual"])
def test_a_half_precision_network_is_read_in_float32(name: str) -> None:
    net = small_net(random_block(name)).to(torch.bfloat16)
    with watch(net) as seen:
        net(IMAGES.to(torch.bfloat16))
    assert all(value.dtype == torch.float32 for value in seen["2"].attention().values())


def test_autocast_does_not_reach_the_reading() -> None:
    net = small_net(random_block("nonlocal"))
    with torch.autocast("cpu", torch.bfloat16), watch(net) as seen:
        net(IMAGES)
        inside = seen["2"].rows((1, 1))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, seen["2"].rows((1, 1)))


def test_a_block_in_eval_mode_is_read_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server keeps many recordings, and a copy of a wide block's weights is larger than its input."""
    net = small_net(random_block("nonlocal")).eval()
    with watch(net) as seen:
        net(IMAGES)
    monkeypatch.setattr("copy.deepcopy", lambda _: pytest.fail("copied"))
    assert seen["2"].rows((1, 1)).shape == (2, 1, 7, 9)
    seen["2"].contribution()


def test_contribution_is_the_relative_change() -> None:
    net = small_net(random_block("se"))
    with watch(net) as seen:
        y = net(IMAGES)
    x = seen["2"].input
    expected = (y - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(seen["2"].contribution(), expected.detach())


def test_a_recording_does_not_keep_the_graph_alive() -> None:
    net = small_net(random_block("se"))
    with watch(net) as seen:
        net(IMAGES)
    gc.collect()
    assert seen["2"].input.grad_fn is None
    assert not seen["2"].gates.requires_grad


def test_positions_outside_the_map_are_refused() -> None:
    with watch(net := small_net(random_block("nonlocal"))) as seen:
        net(IMAGES)
    with pytest.raises(ValueError, match=r"must lie inside the map of '2', \(7, 9\), got \(13, 2\)"):
        seen["2"].rows((13, 2))
    assert seen["2"].cell((13, 17)) == (6, 8)
    with pytest.raises(ValueError, match=r"inside the image, \(14, 18\), got \(14, 0\)"):
        seen["2"].cell((14, 0))


# ---------------------------------------------------------------------------------------------- keys back to pixels


def test_sub_sampled_keys_cover_the_cells_they_pool() -> None:
    block = random_block("nonlocal", subsample="after")
    with watch(net := small_net(block)) as seen:
        net(IMAGES)
    row = seen["2"].rows((3, 3))[0, 0]
    assert row.shape == (3, 4)
    cells = on_pixels(row, (7, 9), (7, 9))
    assert torch.equal(cells[0:2, 2:4], row[0, 1].expand(2, 2))
    assert not cells[6].any()
    assert not cells[:, 8].any()
    pixels = on_pixels(row, (7, 9), (14, 18))
    assert torch.equal(pixels[::2, ::2], cells)


def test_a_map_keeps_its_values_on_pixels() -> None:
    values = torch.arange(6.0).reshape(1, 2, 3)
    pixels = on_pixels(values, (2, 3), (5, 7))
    assert pixels.shape == (1, 5, 7)
    assert set(pixels.unique().tolist()) == set(range(6))
    assert on_pixels(values, (2, 3), (2, 3)).equal(values)


def test_clips_have_rows_over_time_and_space() -> None:
    torch.manual_seed(0)
    block = BLOCKS["nonlocal"](8, dims=3, over="time")
    with watch(block) as seen:
        block(torch.rand(1, 8, 4, 5, 6))
    row = seen[""].rows((1, 2, 3))
    assert row.shape == (1, 1, 4, 5, 6)
    assert not row[..., :2, 3].any()


def test_rows_of_a_clip_are_the_reference_rows() -> None:
    torch.manual_seed(0)
    block = BLOCKS["nonlocal"](8, dims=3, scaled=True).eval()
    with watch(block) as seen:
        block(torch.rand(1, 8, 4, 5, 6))
    x = seen[""].input
    theta, phi = (layer(x).flatten(2).transpose(1, 2) for layer in (block.theta, block.phi))
    full = reference.softmax_weights(reference.dot_scores(theta, phi, block.scale))
    query = (2 * 5 + 3) * 6 + 1
    torch.testing.assert_close(seen[""].rows((2, 3, 1))[:, 0], full[:, query].reshape(1, 4, 5, 6))
