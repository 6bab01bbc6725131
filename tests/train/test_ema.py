import pytest
import torch
from torch import nn

from foveal.nn.spectral_norm import SpectralNorm
from foveal.train.ema import ModelEma


def test_the_average_follows_weights_and_batch_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = ModelEma(net, decay=0.5)
    expected = {k: v.clone() for k, v in net.state_dict().items()}
    for t in range(12):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(torch.randn(8, 2))
        ema.update(net)
        decay = min(0.5, (1 + t) / (10 + t))
        for k, v in net.state_dict().items():
            expected[k] = decay * expected[k] + (1 - decay) * v if v.is_floating_point() else v.clone()
    for k, v in ema.net.state_dict().items():
        torch.testing.assert_close(v, expected[k])
    assert not ema.net.training


def test_averaged_layers_under_spectral_norm_keep_their_norm():
    torch.manual_seed(0)
    net = nn.Sequential(
        SpectralNorm(nn.Linear(16, 16, bias=False)), SpectralNorm(nn.Linear(16, 16, bias=False))
    )
    ema = ModelEma(net, decay=0.9)
    for _ in range(200):
        net(torch.randn(4, 16))
        with torch.no_grad():
            # weights whose leading direction turns, as in a generator that learns
            for layer in net:
                layer.layer.weight.add_(0.15 * torch.randn(16, 16))
        ema.update(net)
    for layer in ema.net:
        identity = torch.eye(16)
        assert float(torch.linalg.matrix_norm(layer(identity), 2)) < 1.05
        assert float(layer.u.norm()) == pytest.approx(1.0, abs=1e-5)


def test_tied_weights_and_modules_used_twice_move_once():
    torch.manual_seed(0)
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.Linear(3, 3), shared)
    net[1].weight = shared.weight
    ema = ModelEma(net, decay=0.5)
    expected = shared.weight.detach().clone()
    for t in range(6):
        with torch.no_grad():
            shared.weight.add_(torch.randn_like(shared.weight))
        ema.update(net)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * shared.weight.detach()
    torch.testing.assert_close(ema.net[0].weight, expected)
    assert ema.net[1].weight is ema.net[0].weight
