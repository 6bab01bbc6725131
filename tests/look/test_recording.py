"""Reading a recording: exact weights, of the block as it was, and a reason where there is nothing to read."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from foveal.insertion import insert
from foveal.look.watching import watch
from foveal.nn import BLOCKS
from foveal.ops import reference

from .conftest import IMAGES, random_block, small_net


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


def test_reading_what_a_block_does_not_have_names_what_it_has() -> None:
    with watch(net := small_net(random_block("se"))) as seen:
        net(IMAGES)
    with pytest.raises(ValueError, match=r"'2' \(SqueezeExcite\) has no mask; it has gates"):
        seen["2"].mask  # noqa: B018


def step(net: nn.Module) -> None:
    net(IMAGES).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


def permute_data(net: nn.Module) -> None:
    """Leaves the version counter, the sum and the bits of all values together as they are."""
    net[2].theta.weight.data = net[2].theta.weight.data.flip(0)


def write_data(net: nn.Module) -> None:
    net[2].theta.weight.data.mul_(2)


def assign(net: nn.Module) -> None:
    net.load_state_dict({name: value * 2 for name, value in net.state_dict().items()}, assign=True)


def new_parameter(net: nn.Module) -> None:
    net[2].phi.weight = nn.Parameter(net[2].phi.weight * 2)


def other_layer(net: nn.Module) -> None:
    net[2].phi = nn.Identity()


def statistics(net: nn.Module) -> None:
    net.train()
    net(IMAGES * 3)
    net.eval()


CHANGES: list[tuple[Callable[[nn.Module], object], str]] = [
    (step, "the values of its .* changed"),
    (write_data, "the values of its theta.weight changed"),
    (permute_data, "the values of its theta.weight changed"),
    (assign, "the values of its .* changed"),
    (new_parameter, "the values of its phi.weight changed"),
    (other_layer, "the modules inside it changed"),
    (statistics, "the values of its norm.running_mean changed"),
    (lambda net: net.half(), "the shape, type or device of its theta.weight changed"),
    (lambda net: net.to("meta"), "the shape, type or device of its theta.weight changed"),
    (lambda net: setattr(net[2], "scale", 0.5), "its attribute scale changed"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_what_was_recorded_is_not_read_from_a_block_that_changed(
    change: Callable[[nn.Module], object], reason: str
) -> None:
    net = small_net(random_block("nonlocal")).eval()
    with watch(net) as seen:
        net(IMAGES)
    seen["2"].rows((1, 1))
    change(net)
    for read in (lambda: seen["2"].rows((1, 1)), seen["2"].contribution, seen["2"].shows):
        with pytest.raises(
            ValueError, match=f"'2' .NonLocal. must be as it was recorded, but {reason} since"
        ):
            read()


@pytest.mark.parametrize(
    "harmless",
    [
        lambda net: net(IMAGES * 2),
        lambda net: net.train(),
        lambda net: net[0].weight.data.zero_(),
        lambda net: net[2].register_forward_hook(lambda *_: None),
        lambda net: net.requires_grad_(False),
        lambda net: net.__delitem__(2),
    ],
    ids=["pass", "mode", "other-layer", "hook", "frozen", "taken-out"],
)
def test_what_does_not_touch_the_block_does_not_keep_from_reading(
    harmless: Callable[[nn.Module], object],
) -> None:
    net = small_net(random_block("nonlocal")).eval()
    with watch(net) as seen:
        net(IMAGES)
    before = seen["2"].rows((1, 1))
    harmless(net)
    assert torch.equal(seen["2"].rows((1, 1)), before)


def test_a_block_in_training_mode_may_run_again_before_it_is_read() -> None:
    """Its BatchNorm used the batch's statistics, not the running ones, which every pass changes."""
    net = small_net(random_block("cbam", variant="official").train())
    with watch(net) as seen:
        net(IMAGES)
    mask = seen["2"].mask
    net(IMAGES * 3)
    assert torch.equal(seen["2"].mask, mask)
    net.eval()
    assert torch.equal(seen["2"].mask, mask)


def test_attention_that_is_not_finite_is_refused() -> None:
    net = small_net(random_block("nonlocal")).eval()
    net[2].theta.weight.data.fill_(float("nan"))
    with watch(net, weights="best.safetensors") as seen:
        net(IMAGES)
    for read in (lambda: seen["2"].rows((1, 1)), seen["2"].most_distinct_query, seen["2"].plot):
        with pytest.raises(ValueError, match=r"rows of '2' \(NonLocal\) must be finite.*best.safetensors"):
            read()


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


def test_positions_outside_the_map_are_refused() -> None:
    with watch(net := small_net(random_block("nonlocal"))) as seen:
        net(IMAGES)
    with pytest.raises(ValueError, match=r"must lie inside the map of '2', \(7, 9\), got \(13, 2\)"):
        seen["2"].rows((13, 2))
    assert seen["2"].cell((13, 17)) == (6, 8)
    with pytest.raises(ValueError, match=r"inside the image, \(14, 18\), got \(14, 0\)"):
        seen["2"].cell((14, 0))


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


# -------------------------------------------------------------------------------------------- in a session and notebook


def test_a_recording_says_what_it_holds() -> None:
    with watch(net := small_net(random_block("nonlocal"), random_block("cbam")), weights="w") as seen:
        before = repr(seen["2"])
        net(IMAGES)
    assert "nothing recorded: it never ran" in before
    assert repr(seen["2"]).startswith("<SiteRecording 2: NonLocal(pairwise='embedded_gaussian'")
    assert repr(seen["2"]).endswith("map 7 x 9, 2 images, has rows>")
    assert repr(seen["3"]).endswith("map 7 x 9, 2 images, has gates, mask>")
    assert repr(seen).splitlines()[0] == "<Recordings of 2 sites, 0.0 MiB>"
    assert [line.strip() for line in repr(seen).splitlines()[1:]] == [repr(seen["2"]), repr(seen["3"])]


def test_saying_what_a_recording_holds_never_fails() -> None:
    net = small_net(random_block("nonlocal"))
    with watch(net) as seen:
        net(IMAGES)
    write_data(net)
    assert "has nothing: '2' (NonLocal) must be as it was recorded" in repr(seen["2"])


def test_copies_of_blocks_that_reading_made_are_counted() -> None:
    net = small_net(random_block("nonlocal")).to(torch.bfloat16)
    with watch(net) as seen:
        net(IMAGES.to(torch.bfloat16))
    before = seen.held_bytes
    assert before == seen.recorded_bytes
    seen["2"].rows((0, 0))
    values = [*net[2].parameters(), *net[2].buffers()]
    floats = sum(v.numel() for v in values if v.is_floating_point())
    others = sum(v.numel() * v.element_size() for v in values if not v.is_floating_point())
    assert seen.held_bytes == before + 4 * floats + others
