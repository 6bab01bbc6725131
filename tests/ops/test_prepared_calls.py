"""Calls that were prepared once give what a first call gives, whatever has changed since."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from foveal.nn import CBAM, SqueezeExcite
from foveal.ops import prepared_calls, whole_gate

CHANNELS, SIZE = 16, 48


@pytest.fixture(autouse=True)
def without_type_checks(request):
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("numba compiles no function with run-time type checks; this test runs without them")


def feature_map(
    seed: int = 0, batch: int = 1, size: int = SIZE, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS, size, size, generator=generator).to(dtype)


def build(variant: str = "timm") -> CBAM:
    torch.manual_seed(0)
    block = CBAM(CHANNELS, reduction=4, variant=variant).eval()
    for parameter in block.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return block


def calls_of(block: CBAM) -> prepared_calls.PreparedCalls:
    assert block.spatial is not None
    return block.spatial.calls


def in_steps(block: nn.Module, x: Tensor) -> Tensor:
    """The same without a native kernel."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(whole_gate, "why_not_native", lambda *_: "not asked for")
        return copy.deepcopy(block)(x)


@pytest.fixture
def prepared() -> CBAM:
    """A block whose call for one image is prepared."""
    pytest.importorskip("numba")
    block = build()
    with torch.no_grad():
        block(feature_map(1))
    assert calls_of(block)._kept[1]
    return block


def test_a_prepared_call_is_run_for_the_next_map_of_the_size_and_gives_the_bits_of_a_first(
    prepared, monkeypatch
):
    monkeypatch.setattr(whole_gate, "prepared", None)  # nothing is collected again
    x = feature_map(2)
    with torch.no_grad():
        y = prepared(x)
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(y, copy.deepcopy(prepared)(x))
    torch.testing.assert_close(y, in_steps(prepared, x))


def half_as_strong(block: CBAM) -> None:
    block.channel.gate_gain = 0.5  # type: ignore[union-attr]


def other_weight(block: CBAM) -> None:
    weight = block.channel.fc1.weight  # type: ignore[union-attr]
    block.channel.fc1.weight = nn.Parameter(-weight)  # type: ignore[union-attr]


def weight_in_place(block: CBAM) -> None:
    with torch.no_grad():
        block.spatial.conv.weight.mul_(-2)  # type: ignore[union-attr]


def other_statistics(block: CBAM) -> None:
    block.spatial.norm.running_mean.add_(3)  # type: ignore[union-attr]


def max_first(block: CBAM) -> None:
    block.spatial.max_first = True  # type: ignore[union-attr]


def watched(block: CBAM) -> None:
    block.spatial.conv.register_forward_hook(lambda *found: 0 * found[2])  # type: ignore[union-attr]


CHANGES = [half_as_strong, other_weight, weight_in_place, other_statistics, max_first, watched]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_in_the_block_is_seen(prepared, change: Callable[[CBAM], None]):
    x = feature_map(3)
    with torch.no_grad():
        before = prepared(x)
        change(prepared)
        after = prepared(x)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, in_steps(prepared, x))


def test_converted_weights_are_not_kept_and_follow_their_origin(prepared):
    prepared.bfloat16()
    x = feature_map(3, dtype=torch.bfloat16)
    with torch.no_grad():
        prepared(x)
        assert torch.bfloat16 not in calls_of(prepared)._kept[0]
        prepared.channel.fc2.weight.neg_()
        torch.testing.assert_close(prepared(x), in_steps(prepared, x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "x",
    [
        feature_map(4, batch=3),
        feature_map(4, size=SIZE + 1),
        feature_map(4).to(memory_format=torch.channels_last),
        feature_map(4, batch=2).to(memory_format=torch.channels_last),
        feature_map(4).transpose(2, 3),
    ],
    ids=["batch", "size", "layout", "batch and layout", "strides"],
)
def test_other_maps_get_a_call_of_their_own(prepared, x):
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), in_steps(prepared, x))
        torch.testing.assert_close(prepared(feature_map(1)), in_steps(prepared, feature_map(1)))


def test_another_number_of_threads_is_another_call(prepared):
    threads, x = torch.get_num_threads(), feature_map(5)
    try:
        torch.set_num_threads(threads + 1)
        with torch.no_grad():
            assert torch.equal(prepared(x), copy.deepcopy(prepared)(x))
    finally:
        torch.set_num_threads(threads)


def test_threads_at_once_have_calls_of_their_own(prepared):
    maps = [feature_map(seed) for seed in range(8)]
    wanted = [in_steps(prepared, x) for x in maps]

    def run(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [prepared(x) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for found, y in zip(pool.map(run, maps), wanted, strict=True):
            for one in found:
                torch.testing.assert_close(one, y)
    assert len(calls_of(prepared)._kept[1]) <= 4


def test_a_training_block_normalises_by_its_batch_all_the_same(prepared):
    x = feature_map(6, batch=2)
    other = copy.deepcopy(prepared)
    prepared.train()
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), in_steps(other.train(), x))


def test_gradients_never_take_a_prepared_call(prepared):
    x = feature_map(7).requires_grad_()
    prepared(x).sum().backward()
    assert x.grad is not None


def test_a_copy_begins_without_any_and_large_calls_are_not_kept(prepared, monkeypatch):
    assert calls_of(copy.deepcopy(prepared))._kept == ([], [])
    monkeypatch.setattr(prepared_calls, "KEPT_BYTES", 0)
    block = build()
    with torch.no_grad():
        block(feature_map(1))
    assert calls_of(block)._kept[1] == []


def test_the_channel_gate_alone_is_prepared_too():
    pytest.importorskip("numba")
    torch.manual_seed(0)
    block = SqueezeExcite(CHANNELS, reduction=4, squeeze="max").eval()
    with torch.no_grad():
        for seed in range(3):
            x = feature_map(seed)
            torch.testing.assert_close(block(x), in_steps(block, x))
    assert block.calls._kept[1]
