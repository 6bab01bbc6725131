"""A whole gate in one operator: the oracle's output and gradients, by the native kernel and by PyTorch's operators."""

import copy
import math
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.nn import CBAM, SqueezeExcite
from foveal.nn.cbam import ChannelGate, SpatialGate
from foveal.ops import whole_gate
from foveal.ops.kernels.native import call

pytest.importorskip("numba", reason="numba, which compiles the kernels, is not installed")

# one value, odd sizes, more rows than a tile, columns than a block, and values than a stretch; 1 to 3 spatial sizes
SHAPES = [(1, 4, 1, 1), (2, 6, 1100), (3, 19, 33, 37), (2, 5, 3, 4, 21), (1, 600, 5, 3), (2, 37, 60, 67)]
BLOCKS = {
    "se": lambda c, dims: SqueezeExcite(c, reduction=2),
    "se max hard": lambda c, dims: SqueezeExcite(c, reduction=2, squeeze="max", activation="hard_sigmoid"),
    "channel gate": lambda c, dims: ChannelGate(c, reduction=2, variant="official"),
    "spatial gate": lambda c, dims: SpatialGate(c, dims=dims),
    "cbam paper": lambda c, dims: CBAM(c, reduction=2, dims=dims, kernel_size=3),
    "cbam timm": lambda c, dims: CBAM(c, reduction=2, dims=dims, variant="timm"),
    "cbam identity": lambda c, dims: CBAM(c, reduction=2, dims=dims, kernel_size=3, start="identity"),
    "cbam official, running": lambda c, dims: CBAM(c, reduction=2, dims=dims, variant="official").eval(),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def without_type_checks(request):
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("numba compiles no function with run-time type checks; this test runs without them")


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(whole_gate, "NATIVE_FROM", 0)


def build(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    block = BLOCKS[name](shape[1], len(shape) - 2).to(dtype)
    for parameter in block.parameters():
        if parameter.dim() == 1 or not parameter.any():
            nn.init.normal_(parameter)
    return block


def feature_map(shape: tuple[int, ...], last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def step(block: nn.Module, x: Tensor, native: bool, dy: Tensor | None = None) -> list[Tensor]:
    """Output, gradients of map and parameters, and what BatchNorm has learned of the batch."""
    block = copy.deepcopy(block)
    given = x.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(whole_gate, "why_not_native", lambda *_: "not asked for")
        y = block(given)
    assert ("_WholeGateBackward" in str(y.grad_fn)) == native
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) if dy is None else dy
    gradients = torch.autograd.grad(y, [given, *block.parameters()], dy)
    return [y.detach(), *gradients, *block.buffers()]


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_pytorchs_operators(shape, last, name):
    block, x = build(name, shape), feature_map(shape, last)
    close(step(block, x, native=True), step(block, x, native=False), TOLERANCE[torch.float32])
    with torch.no_grad():
        y = block.eval()(x)
    assert y.stride() == x.stride()
    close([y], step(block, x, native=False)[:1], TOLERANCE[torch.float32])


# the layers of the second are large enough to be shared
@pytest.mark.parametrize("shape", [(3, 19, 33, 37), (3, 600, 5, 4)], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["an image a thread", "an image two threads"])
@pytest.mark.parametrize("name", ["se", "cbam timm", "cbam official, running"])
def test_bits_depend_neither_on_threads_nor_on_the_run(name, shared, shape, monkeypatch):
    image = 4 * math.prod(shape[1:])
    monkeypatch.setattr(call, "CACHED_BYTES", image // 2 if shared else image)
    block, before = build(name, shape), torch.get_num_threads()
    # PyTorch's matrix products give these: their bits depend on threads on some processors
    products = {
        2 + i for i, (name, _) in enumerate(block.named_parameters()) if "fc" in name and "weight" in name
    }
    assert len(products) == 2
    for last in (False, True):
        x = feature_map(shape, last)
        try:
            runs = []
            for threads in (1, 2, 3, 4, 2):
                torch.set_num_threads(threads)
                step(
                    block, -x, native=True
                )  # what is forgotten must not be found in memory that was given back
                runs.append(step(block, x, native=True))
        finally:
            torch.set_num_threads(before)
        for run in runs[1:]:
            for i, (found, first) in enumerate(zip(run, runs[0], strict=True)):
                if i in products:
                    torch.testing.assert_close(found, first)
                else:
                    assert torch.equal(found, first)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", ["se", "channel gate", "cbam timm"])
def test_bfloat16_is_nearer_to_double_than_pytorchs_operators(name, last):
    shape = (2, 19, 12, 13)
    block, x = build(name, shape, torch.bfloat16), feature_map(shape, last, torch.bfloat16)
    # clear maxima: ties are common among so few digits, and break elsewhere
    flat = x.detach().clamp(-0.5, 0.5).flatten(2)
    position = torch.arange(flat.shape[2])
    flat[:, position % 19, position] = 5.0
    flat[:, torch.arange(19), torch.arange(19)] = 9.0
    x = flat.view(shape)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    exact = step(copy.deepcopy(block).double(), x.double(), native=False)
    for found, plain, wanted in zip(
        step(block, x, native=True), step(block, x, native=False), exact, strict=True
    ):
        assert found.dtype == plain.dtype
        scale = wanted.abs().max().clamp_min(1e-30)
        error, allowed = (found - wanted).abs().max() / scale, (plain - wanted).abs().max() / scale
        assert error <= max(allowed, 0.02)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_bfloat16_is_rounded_as_pytorch_rounds(last, monkeypatch):
    monkeypatch.setattr(whole_gate, "SE_CONVERTS_FROM", 0)
    values = torch.arange(2**16).to(torch.int16).view(torch.bfloat16)
    values = values[values.abs() < 1e30]
    x = values[: len(values) // 64 * 64].view(1, 8, -1, 8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    block = SqueezeExcite(8, reduction=2, activation="hard_sigmoid").bfloat16()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        block.fc2.bias.copy_(torch.linspace(-2, 2, 8))
        gate = (block.fc2.bias.float() + 3) / 6
        assert torch.equal(block(x), (x.float() * gate[:, None, None]).bfloat16())


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", ["channel gate", "cbam timm", "spatial gate"])
@pytest.mark.parametrize("shape", [(2, 19, 9, 11), (2, 19, 27, 41), (1, 1100, 3, 4)], ids=str)
def test_a_tie_sends_its_gradient_to_the_first(shape, name, last):
    block, x = build(name, shape), feature_map(shape, last).round()
    close(step(block, x, native=True), step(block, x, native=False), 1e-4)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", ["channel gate", "cbam timm", "spatial gate"])
def test_maxima_of_negative_values_are_negative(name, last):
    shape = (2, 19, 33, 37)
    block, x = build(name, shape), -feature_map(shape, last).abs() - 1
    close(step(block, x, native=True), step(block, x, native=False), TOLERANCE[torch.float32])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", ["channel gate", "cbam paper", "spatial gate"])
def test_nan_goes_where_the_equations_send_it(name, last):
    shape = (2, 19, 17, 18)
    x = feature_map(shape, last)
    x[1, 3, 4, 5] = float("nan")
    block = build(name, shape)
    with torch.no_grad():
        y = block(x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(whole_gate, "why_not_native", lambda *_: "not asked for")
            wanted = block(x)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert not y[0].isnan().any()


def arguments(x, channel, spatial):
    """What the operators take beside the map, but for the last."""
    weights, options = whole_gate.weights_of(channel, spatial), whole_gate.options_of(channel, spatial)
    return whole_gate.arguments_of(x, weights, options)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_the_place_of_a_maximum_is_that_of_the_first_nan(last):
    x, block = feature_map((2, 19, 17, 60), last), build("cbam paper", (2, 19, 17, 60))
    for channel, row, column in ((3, 12, 5), (3, 14, 7), (8, 12, 5)):
        x[1, channel, row, column] = float("nan")
    for halves, output, dim in (
        ((block.channel.channel_half(), None), 4, 2),
        ((None, block.spatial.spatial_half(1)), 6, 1),
    ):
        found = torch.ops.foveal.gate(x, *arguments(x, *halves), True)[output]
        flat = x.flatten(2)
        assert torch.equal(found.long(), flat.nan_to_num(torch.inf).max(dim).indices)
        assert (found[1, 3] if dim == 2 else found[1, 12 * 60 + 5]) == (12 * 60 + 5 if dim == 2 else 3)


def test_negative_zero_and_the_bits_of_an_identity_stay():
    for shape in ((2, 19, 9, 11), (2, 6, 100), (1, 5, 3, 4, 6)):
        dims = len(shape) - 2
        for last in (False, True):
            x = feature_map(shape, last)
            x.flatten()[::3] = -0.0
            x[:, 0] = -0.0
            for block in (
                SqueezeExcite(shape[1], reduction=2, start="identity"),
                CBAM(shape[1], reduction=2, dims=dims, start="identity"),
                CBAM(shape[1], reduction=2, dims=dims, start="identity", variant="official"),
            ):
                given = x.clone().requires_grad_()
                y = block(given)
                assert "_WholeGateBackward" in str(y.grad_fn)
                assert torch.equal(y.view(torch.int32), x.view(torch.int32))


def test_there_is_room_for_the_tiles_of_a_map_of_any_size():
    from foveal.ops.kernels.native.axes import tile_rows
    from foveal.ops.kernels.native.slots import TILES

    for rows in (1, 64, 4096, 4097, 5000, 10**6 + 1):
        assert 1 <= -(-rows // tile_rows(rows)) <= TILES
    shape = (2, 3, 65, 67)
    block, x = build("cbam paper", shape), feature_map(shape, True)
    close(step(block, x, native=True), step(block, x, native=False), TOLERANCE[torch.float32])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_map_gradient_and_weights_stay_as_they_are(last):
    shape = (2, 19, 9, 11)
    block, x = build("cbam timm", shape), feature_map(shape, last)
    dy = feature_map(shape, last).cos()
    kept = [one.clone() for one in (x, dy, *block.parameters())]
    step(block, x, native=True, dy=dy)
    for one, before in zip((x, dy, *block.parameters()), kept, strict=True):
        assert torch.equal(one, before)


@pytest.mark.parametrize("name", ["se", "cbam paper"])
def test_weights_that_are_not_contiguous_are_read_as_their_values(name):
    block, x = build(name, (2, 19, 9, 11)), feature_map((2, 19, 9, 11), False)
    for module in block.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().T.contiguous().T)
            assert not module.weight.is_contiguous()
    close(step(block, x, native=True), step(block, x, native=False), TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", ["se", "cbam paper", "cbam official, running"])
def test_the_gradients_of_an_empty_batch_are_zero(name):
    block, x = build(name, (2, 19, 9, 11)), feature_map((2, 19, 9, 11), False)[:0].requires_grad_()
    y = block(x)
    assert "_WholeGateBackward" in str(y.grad_fn)
    # memory as it is left by others holds anything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", torch.ones_like)
        dx, *dweights = torch.autograd.grad(y.sum(), [x, *block.parameters()])
    assert dx.shape == x.shape
    assert all(dweight.count_nonzero() == 0 for dweight in dweights)


def test_weights_of_a_bfloat16_map_keep_their_digits():
    block = build("cbam timm", (2, 19, 9, 11)).eval()
    x = feature_map((2, 19, 9, 11), False, torch.bfloat16)
    given = arguments(x, block.channel.channel_half(), block.spatial.spatial_half(1))
    assert torch.equal(given[0], block.channel.fc1.weight.flatten(1))
    assert torch.equal(given[4], block.spatial.conv.weight)


@pytest.mark.slow  # another dtype to compile for
def test_first_and_second_derivatives_are_right(monkeypatch):
    monkeypatch.setattr(whole_gate, "NATIVE_DTYPES", {torch.float64})
    shape = (2, 3, 4, 3)
    for name in ("se", "cbam timm", "cbam official, running"):
        block = build(name, shape, torch.float64)
        parameters = dict(block.named_parameters())

        def function(x, *weights, block=block, names=tuple(parameters)):
            return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), x)

        for last in (False, True):
            x = feature_map(shape, last, torch.float64).requires_grad_()
            assert torch.autograd.gradcheck(function, (x, *parameters.values()))
        assert torch.autograd.gradgradcheck(function, (x, *parameters.values()))


@pytest.mark.parametrize("name", ["se", "cbam timm", "cbam official, running"])
def test_second_derivatives_are_those_of_pytorchs_operators(name):
    shape = (2, 3, 4, 3)
    block, x = build(name, shape), feature_map(shape, False).requires_grad_()
    found = []
    for reason in (None, "not asked for"):
        block_here = copy.deepcopy(block)
        with pytest.MonkeyPatch.context() as patch:
            if reason is not None:
                patch.setattr(whole_gate, "why_not_native", lambda *_, reason=reason: reason)
            y = block_here(x)
        assert ("_WholeGateBackward" in str(y.grad_fn)) == (reason is None)
        wanted = [x, *block_here.parameters()]
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), wanted))
    close(found[0], found[1], TOLERANCE[torch.float32])


def test_what_cannot_be_taken_whole_is_taken_step_by_step():
    x = feature_map((2, 19, 9, 11), False)
    block = build("cbam paper", (2, 19, 9, 11))
    for given, reason in [
        (x.mT, "neither contiguous nor channels-last"),
        (x[:, :, ::2], "neither contiguous nor channels-last"),
        (x.half(), "it takes float32"),
        (x.to("meta"), "on the CPU, got one on meta"),
    ]:
        why = whole_gate.why_not_native(given)
        assert why is not None
        assert reason in why
    for given in (x.mT.contiguous().mT, x[:, :, ::2], x[:0]):
        torch.testing.assert_close(block(given), block(given.contiguous()))
    seen = []
    block.channel.fc1.register_forward_hook(lambda *_: seen.append(1))
    block(x)
    assert seen


def test_se_without_gradients_is_whole_where_that_is_quicker():
    few, many = build("se", (2, 16, 9, 11)), build("se", (2, 600, 5, 3))
    for block, shape, dtype, reason in [
        (few, (2, 16, 9, 11), torch.float32, None),
        (few, (2, 16, 9, 11), torch.bfloat16, "to convert SE's weights"),
        (few, (2, 16, 64, 64), torch.bfloat16, None),
        (many, (2, 600, 5, 3), torch.float32, "more weights than an image has values"),
        (many, (1, 600, 5, 3), torch.float32, None),
    ]:
        x, half = feature_map(shape, False, dtype), block.channel_half()
        assert whole_gate.why_not_native(x, half) is None  # with gradients
        with torch.no_grad():
            why = whole_gate.why_not_native(x, half)
            assert why is None if reason is None else reason in str(why)
            calls = copy.deepcopy(block).to(dtype)
            wanted = calls.channel_gate(x)[..., None, None] * x
            torch.testing.assert_close(
                calls(x), wanted, atol=0, rtol=1e-5 if dtype == torch.float32 else 0.02
            )


def test_se_without_gradients_is_left_to_a_compiler():
    block, x = build("se", (2, 16, 9, 11)), feature_map((2, 16, 9, 11), False)
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph.code)
        return graph

    with torch.no_grad():
        compiled = torch.compile(copy.deepcopy(block), backend=compiler, fullgraph=True)
        torch.testing.assert_close(compiled(x), block(x))
    (code,) = graphs
    assert "foveal" not in code


@pytest.mark.parametrize(
    ("mebibytes", "threads", "team"),
    [
        (0, 1, 1),
        (1, 8, 1),
        (1 + 2**-18, 8, 2),
        (3, 8, 4),
        (3, 6, 3),
        (3, 7, 7),
        (1000, 6, 6),
    ],
)
def test_as_many_threads_share_an_image_as_keep_it_in_their_caches(mebibytes, threads, team):
    x = torch.empty(5, int(mebibytes * 2**18), 1, 1, device="meta")
    assert call.team_for(x, threads) == team


def test_shapes_of_huge_maps_are_right():
    x = torch.empty(2**11, 256, 64, 128, device="meta")
    weight = torch.empty(16, 256, device="meta")
    y, gate, *_ = torch.ops.foveal.gate(
        x, weight, None, weight.T, None, *[None] * 5, 1, False, 1.0, False, 1.0, 0.0, True
    )
    assert y.shape == x.shape
    assert gate.shape == (2**11, 256)


def test_weights_that_do_not_fit_are_refused_before_memory_is_read():
    x = feature_map((2, 19, 9, 11), False)
    block = build("se", (2, 19, 9, 11))
    block.fc1 = nn.Linear(7, 9)
    with pytest.raises(FovealError, match=r"w1 must have shape \(9, 19\).*got shape \(9, 7\)"):
        block(x.requires_grad_())


def test_compiled_networks_hold_one_operator():
    block, x = build("cbam timm", (2, 19, 9, 11)), feature_map((2, 19, 9, 11), False)
    compiled = torch.compile(copy.deepcopy(block), backend="aot_eager", fullgraph=True)
    given, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = compiled(given), block(other)
    y.square().sum().backward()
    z.square().sum().backward()
    # not to the bit: PyTorch 2.11 rounds otherwise where it compiles
    for one, two in (
        (y, z),
        (given.grad, other.grad),
        *zip(compiled.buffers(), block.buffers(), strict=True),
    ):
        torch.testing.assert_close(one, two)


def test_exported_networks_hold_pytorchs_operators():
    block = build("cbam timm", (2, 19, 9, 11)).eval()
    program = torch.export.export(block, (feature_map((2, 19, 9, 11), False),))
    assert "foveal" not in program.graph_module.code


def test_several_threads_at_once():
    block, x = build("cbam timm", (4, 19, 33, 37)).eval(), feature_map((4, 19, 33, 37), True)
    wanted, before, found = block(x), torch.get_num_threads(), []

    def work():
        torch.set_num_threads(2)
        for _ in range(5):
            with torch.no_grad():
                found.append(torch.equal(block(x), wanted))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    assert found == [True] * 15


FORK = """
import multiprocessing, torch
from foveal.nn import CBAM
torch.set_num_threads(2)
block = CBAM(16, variant="timm").eval()
x = torch.randn(2, 16, 50, 50)
with torch.no_grad():
    wanted = block(x)
def child(queue):
    with torch.no_grad():
        # torch.equal would itself wait for PyTorch's threads
        queue.put(bool((block(x).numpy() == wanted.numpy()).all()))
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(queue.get())
    process.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_does_not_wait_for_threads_that_are_not_there():
    run = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.stdout.strip() == "True", run.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    code = (
        "import torch; from foveal.nn import CBAM\nprint(CBAM(16).eval()(torch.randn(2, 16, 50, 50)).shape)"
    )
    (tmp_path / "file").write_text("")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "below")}
    import os

    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "torch.Size([2, 16, 50, 50])" in run.stdout, run.stderr
