import time

import pytest
import torch
from torch import nn

from foveal.measure import count_macs, count_parameters, measure_time, peak_bytes


def test_times_follow_the_work_and_keep_the_given_order():
    calls = {"long": lambda: time.sleep(0.006), "short": lambda: time.sleep(0.002)}
    times = measure_time(calls, repeats=7, warmup=1)
    assert list(times) == ["long", "short"]
    assert 5.5 < times["long"].time_ms < 40
    assert times["short"].time_ms < times["long"].time_ms
    assert times["long"].low_ms <= times["long"].time_ms <= times["long"].high_ms


def test_rounds_are_interleaved():
    calls: list[str] = []
    names = ["a", "b", "c"]
    functions = {name: (lambda name=name: calls.append(name) or time.sleep(0.003)) for name in names}
    measure_time(functions, repeats=4, warmup=1)
    rounds = calls[-12:]
    assert all(sorted(rounds[i : i + 3]) == names for i in range(0, 12, 3))


def test_short_calls_are_repeated_until_the_clock_can_see_them():
    count = 0

    def function():
        nonlocal count
        count += 1

    measure_time({"f": function}, repeats=2, minimum_ms=1.0, warmup=1)
    assert count > 200


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
