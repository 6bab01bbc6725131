"""What a network costs is counted as by hand; times are taken from a clock that the tests move."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DeformConv2d

from foveal.measure import count_macs, count_parameters, measure_time, peak_bytes, uncounted_operators
from foveal.nn import BLOCKS, CBAM


class Clock:
    """A clock that only its calls move, in place of the machine's."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr("foveal.measure.timing.perf_counter", lambda: self.seconds)

    def lasting(self, name: str, *milliseconds: float):
        """A call that lasts so long, one value after the other and then the last again."""
        durations = list(milliseconds)

        def call() -> None:
            self.calls.append(name)
            self.seconds += (durations.pop(0) if len(durations) > 1 else durations[0]) / 1000

        return call


def test_times_are_the_medians_and_quartiles_in_the_given_order(monkeypatch):
    clock = Clock(monkeypatch)
    # warm-up, then the sample that decides how often to repeat a call, then one each round
    calls = {"long": clock.lasting("long", 50, 6, 6, 8, 7, 5, 9), "short": clock.lasting("short", 2)}
    times = measure_time(calls, repeats=5, warmup=1)
    assert list(times) == ["long", "short"]
    assert times["long"].samples_ms == pytest.approx((6, 8, 7, 5, 9))
    assert times["long"].time_ms == pytest.approx(7)
    assert (times["long"].low_ms, times["long"].high_ms) == pytest.approx((5.5, 8.5))
    assert times["short"].time_ms == pytest.approx(2)
    assert times["long"].minus(times["short"]) == pytest.approx(5)
    assert times["long"].over(times["short"]) == pytest.approx(3.5)


def test_rounds_are_interleaved_in_changing_order(monkeypatch):
    clock = Clock(monkeypatch)
    names = ["a", "b", "c"]
    measure_time({name: clock.lasting(name, 3) for name in names}, repeats=8, warmup=1)
    rounds = [clock.calls[-24:][i : i + 3] for i in range(0, 24, 3)]
    assert all(sorted(order) == names for order in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_short_calls_are_repeated_until_a_sample_is_long_enough(monkeypatch):
    clock = Clock(monkeypatch)
    times = measure_time({"f": clock.lasting("f", 0.01)}, repeats=2, minimum_ms=1.0, warmup=1)
    # one to warm up; 1, 2, 4, ... 128 to find that 128 last 1.28 ms; two rounds of these
    assert len(clock.calls) == 1 + (2**8 - 1) + 2 * 128
    assert times["f"].time_ms == pytest.approx(0.01)


def test_a_rest_comes_before_each_sample_and_is_not_timed(monkeypatch):
    clock = Clock(monkeypatch)
    rests: list[tuple[float, int]] = []

    def sleep(seconds: float) -> None:
        rests.append((seconds, len(clock.calls)))
        clock.seconds += seconds

    monkeypatch.setattr("foveal.measure.timing.sleep", sleep)
    times = measure_time({name: clock.lasting(name, 3) for name in "ab"}, repeats=2, warmup=1, rest_s=0.2)
    assert [times[name].time_ms for name in "ab"] == pytest.approx([3, 3])
    # two calls each before the first round
    assert rests == [(0.2, calls) for calls in (4, 5, 6, 7)]
    with pytest.raises(ValueError, match="rest_s must be at least 0, got -1"):
        measure_time({"f": lambda: None}, rest_s=-1)


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": 0}])
def test_refuses_no_rounds(options):
    with pytest.raises(ValueError, match="repeats and warmup must be at least 1"):
        measure_time({"f": lambda: None}, **options)


def test_refuses_nothing_to_time():
    with pytest.raises(ValueError, match="at least one call"):
        measure_time({})


def test_peak_counts_what_is_alive_together():
    one = 4 * 10_000

    def chain():  # three tensors made, two alive at a time
        return torch.ones(10_000).add(1).add(1)

    def keep():  # three alive
        first = torch.ones(10_000)
        second = first + first
        return second + first

    scalars = 64  # the 1 of add(1) is a tensor for a moment
    assert 2 * one <= peak_bytes(chain) <= 2 * one + scalars
    assert peak_bytes(keep) == 3 * one


def test_peak_leaves_out_what_was_there_before():
    x = torch.ones(100_000)
    assert peak_bytes(lambda: x.sum().item()) < 100


def test_peak_of_a_training_step_holds_the_activations():
    net = nn.Sequential(nn.Linear(100, 100), nn.Sigmoid(), nn.Linear(100, 100), nn.Sigmoid())
    x = torch.randn(1000, 100)
    with torch.no_grad():
        inference = peak_bytes(lambda: net(x))
    training = peak_bytes(lambda: net(x).sum().backward())
    activation = 4 * 1000 * 100
    assert 2 * activation <= inference < 3 * activation
    assert 3 * activation < training < 4 * activation  # two kept sigmoids and a gradient


def test_peak_says_nothing_on_stderr(capfd):
    peak_bytes(lambda: torch.ones(10))
    assert capfd.readouterr().err == ""


def test_peak_refuses_a_device_it_cannot_read():
    with pytest.raises(ValueError, match="device must be cpu or cuda, got meta"):
        peak_bytes(lambda: None, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_cuda():
    assert peak_bytes(lambda: torch.ones(1 << 20, device="cuda"), device="cuda") == 4 << 20


def test_macs_of_known_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    assert count_macs(net, torch.zeros(2, 3, 8, 8)) == 2 * 3 * 8 * 9 * 4 * 4
    assert count_macs(nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 5, 5)) == 8 * 9 * 3 * 3
    assert count_macs(nn.Linear(10, 7), torch.zeros(5, 10)) == 5 * 10 * 7


def test_macs_of_a_gate_count_its_products():
    class Gate(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    assert count_macs(Gate(), torch.zeros(1, 4, 6, 6)) == 4 * 6 * 6


def test_macs_of_a_product_in_place_count_too():
    class Gate(nn.Module):
        def forward(self, x):
            y = torch.addcmul(x, x, x.mean((2, 3), keepdim=True))
            return y.mul_(x[:, :1])

    assert count_macs(Gate(), torch.zeros(1, 4, 6, 6)) == 2 * 4 * 6 * 6
    # both products of CBAM, one of them in place, beside its layers (mean and maximum go through both) and its
    # convolution, which on a CPU is a product with as many rows more as the kernel reaches over the border
    products, layers, convolution = 2 * 4 * 6 * 6, 2 * 2 * 4 * 2, 2 * 7 * 7 * (6 + 6) * 6
    assert count_macs(CBAM(4, hidden=2), torch.zeros(1, 4, 6, 6)) == products + layers + convolution


class Apply(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.layers)


STEPS, WIDTH, HIDDEN = 9, 4, 6
RECURRENT = {
    "lstm": (nn.LSTM(WIDTH, HIDDEN, batch_first=True), 4 * HIDDEN * (WIDTH + HIDDEN)),
    "lstm both ways": (
        nn.LSTM(WIDTH, HIDDEN, batch_first=True, bidirectional=True),
        8 * HIDDEN * (WIDTH + HIDDEN),
    ),
    "two lstm layers": (nn.LSTM(WIDTH, HIDDEN, 2, batch_first=True), 4 * HIDDEN * (WIDTH + 3 * HIDDEN)),
    "rnn": (nn.RNN(WIDTH, HIDDEN, batch_first=True), HIDDEN * (WIDTH + HIDDEN)),
    # no kernel of a CPU computes these whole: their gates show as products of their own
    "gru": (nn.GRU(WIDTH, HIDDEN, batch_first=True), 3 * HIDDEN * (WIDTH + HIDDEN)),
    "lstm in float64": (nn.LSTM(WIDTH, HIDDEN, batch_first=True).double(), 4 * HIDDEN * (WIDTH + HIDDEN)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_macs_of_recurrent_layers(name):
    layer, a_step = RECURRENT[name]
    x = torch.zeros(2, STEPS, WIDTH, dtype=next(layer.parameters()).dtype)
    for net in (layer, Apply(lambda x, layer: layer(x)[0], layer)):
        assert count_macs(net, x) == 2 * STEPS * a_step
        assert uncounted_operators(net, x) == {}


def test_macs_of_a_layer_that_runs_twice_and_of_a_cell():
    twice = Apply(lambda x, layer, _: layer(layer(x)[0])[0], *[nn.GRU(WIDTH, WIDTH)] * 2)
    assert count_macs(twice, torch.zeros(STEPS, 2, WIDTH)) == 2 * 2 * STEPS * 3 * WIDTH * 2 * WIDTH
    cell = Apply(lambda x, cell: cell(x) * x, nn.GRUCell(WIDTH, WIDTH))
    assert count_macs(cell, torch.zeros(2, WIDTH)) == 2 * 3 * WIDTH * 2 * WIDTH + 2 * WIDTH


def test_macs_of_attention_leave_its_constant_scale_out():
    x = torch.zeros(5, 7, 6)
    for scale in (None, 0.5):
        net = Apply(lambda x, scale=scale: F.scaled_dot_product_attention(x, x, x, scale=scale))
        assert count_macs(net, x) == 2 * 5 * 7 * 7 * 6
    masked = Apply(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(7, 7)))
    assert count_macs(masked, x) == 2 * 5 * 7 * 7 * 6
    gain = torch.tensor(2.0)
    assert count_macs(Apply(lambda x: 3 * x), x) == 0
    assert count_macs(Apply(lambda x: gain * x), x) == x.numel()


def test_macs_of_a_deformable_convolution():
    offset = torch.zeros(2, 18, 5, 7)
    for groups in (1, 2):
        layer = DeformConv2d(4, 6, 3, padding=1, groups=groups)
        net = Apply(lambda x, layer: layer(x, offset), layer)
        assert count_macs(net, torch.zeros(2, 4, 5, 7)) == 2 * 4 * 6 * 9 * 5 * 7 // groups
        assert uncounted_operators(net, torch.zeros(2, 4, 5, 7)) == {}


PRODUCTS = {
    "dot": (lambda x: torch.dot(x[0], x[1]), 6),
    "vdot": (lambda x: torch.vdot(x[0], x[1]), 6),
    "matrix times vector": (lambda x: torch.mv(x, x[0]), 30),
    "vector of a matrix product": (lambda x: x @ x[0], 30),
    "added matrix times vector": (lambda x: torch.addmv(x[:, 0], x, x[0]), 30),
    "outer": (lambda x: torch.outer(x[:, 0], x[0]), 30),
    "added outer": (lambda x: torch.addr(x, x[:, 0], x[0]), 30),
    "einsum": (lambda x: torch.einsum("ij,kj->ik", x, x), 5 * 5 * 6),
    "bilinear": (lambda x: F.bilinear(x, x, torch.zeros(3, 6, 6)), 5 * (3 * 6 * 6 + 3 * 6)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_macs_of_vectors_and_matrices(name):
    function, macs = PRODUCTS[name]
    assert count_macs(Apply(function), torch.zeros(5, 6)) == macs
    assert uncounted_operators(Apply(function), torch.zeros(5, 6)) == {}


@torch.library.custom_op("foveal_tests::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def test_what_is_not_counted_is_named_with_its_calls():
    net = Apply(lambda x: square(square(x)) + torch.fft.rfft(x).abs().sum() + torch.cdist(x, x).sum())
    names = uncounted_operators(net, torch.zeros(5, 6))
    assert names == {"aten::_cdist_forward": 1, "aten::_fft_r2c": 1, "foveal_tests::square": 2}


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_nothing_of_ordinary_networks_is_left_uncounted(name):
    net = timm.create_model(name)
    assert uncounted_operators(net, torch.zeros(1, 3, 224, 224)) == {}


@pytest.mark.parametrize("block", BLOCKS)
def test_nothing_of_our_blocks_is_left_uncounted(block):
    assert uncounted_operators(BLOCKS[block](16), torch.zeros(1, 16, 9, 7)) == {}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_frozen_script_counts_as_its_network_does():
    net = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    x = torch.zeros(1, 3, 8, 8)
    assert count_macs(torch.jit.freeze(torch.jit.script(net)), x) == count_macs(net, x)


def test_macs_see_the_products_of_attention():
    n, d = 49, 16
    expected = 4 * n * d * d + 2 * n * n * d
    attention = nn.MultiheadAttention(d, 2, batch_first=True).eval()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)[0]

    counted = count_macs(Net(), torch.zeros(1, n, d))
    assert expected <= counted <= 1.1 * expected  # the query's scaling is an elementwise product


def test_counting_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).eval())
    net[0].train()
    running = net[1].running_mean.clone()
    count_macs(net, torch.randn(2, 3, 4, 4))
    assert net[0].training
    assert not net[1].training
    assert torch.equal(net[1].running_mean, running)


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(layer, layer)) == 20
