"""Recording: exact weights, no output bit changed, nothing left behind, memory bounded."""

import gc

import pytest
import timm
import torch
from torch import nn

from foveal.insertion import insert
from foveal.look.watching import watch
from foveal.nn import BLOCKS

from .conftest import IMAGES, random_block, small_net


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


def test_both_modules_of_dual_attention_are_read_by_one_name() -> None:
    with watch(net := small_net(random_block("dual"))) as seen:
        net(IMAGES)
    assert list(seen) == ["2"]
    assert seen["2"].rows((1, 1)).shape == (2, 1, 7, 9)
    assert seen["2"].channels.shape == (2, 16, 16)


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
    with (
        pytest.raises(ValueError, match="must have an attention site, got Sequential with none"),
        watch(small_net()),
    ):
        pass


def test_reading_without_a_pass_says_why() -> None:
    with watch(small_net(random_block("se"))) as seen:
        pass
    with pytest.raises(ValueError, match="never ran"):
        seen["2"].gates  # noqa: B018


def test_a_recording_does_not_keep_the_graph_alive() -> None:
    net = small_net(random_block("se"))
    with watch(net) as seen:
        net(IMAGES)
    gc.collect()
    assert seen["2"].input.grad_fn is None
    assert not seen["2"].gates.requires_grad


def test_a_pass_that_breaks_off_inside_the_block_leaves_nothing_to_read() -> None:
    class Broken(nn.Module):
        def attention(self, x: torch.Tensor, positions: object = None) -> dict[str, torch.Tensor]:
            return {"spatial_mask": x[:, :1]}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

    with watch(net := small_net(Broken())) as seen, pytest.raises(RuntimeError):
        net(IMAGES)
    with pytest.raises(ValueError, match="its forward pass did not come to its end"):
        seen["2"].mask  # noqa: B018


def test_a_network_built_in_inference_mode_is_watched() -> None:
    """Its parameters have no version counter that could be asked."""
    with torch.inference_mode():
        net = small_net(random_block("se"))
        with watch(net) as seen:
            net(IMAGES)
        assert seen["2"].gates.shape == (2, 16)
