"""Peers with random weights and statistics, and what it means that a converted network is the same function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal.published import convert, export


class Named(nn.Module):
    """A module whose only purpose is the names of its children."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def random_peer() -> Callable[..., nn.Module]:
    """``random_peer(make)``: the network without its slow initialisation, every weight and statistic random."""

    def made(make: Callable[[], nn.Module]) -> nn.Module:
        with torch.device("meta"):
            net = make()
        net = net.to_empty(device="cpu")
        for name, value in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(int(torch.randint(1, 99, ())))
            elif name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.normal_(std=0.2)
        return net

    return made


@pytest.fixture
def agrees(tmp_path: Path) -> Callable[..., nn.Module]:
    """``agrees(peer, x, ours, theirs)`` converts, loads and compares; returns the network of ours.

    Outputs in eval and in train mode, the gradient of the parameter named ``ours`` here and ``theirs`` there (in
    train mode), every bit of the way back, and that a saved file alone rebuilds the same network. In float64, so
    that nothing but a wrong place can differ.
    """

    def compared(
        peer: nn.Module,
        x: Tensor,
        ours: str,
        theirs: str,
        format: str | None = None,
        pick: Callable[[Any], Tensor] = lambda y: y,
        pick_ours: Callable[[Any], Tensor] = lambda y: y,
        dtype: torch.dtype = torch.float64,
        tolerance: float = 1e-9,
        **options: Any,
    ) -> nn.Module:
        before = {name: value.clone() for name, value in peer.state_dict().items()}
        net = convert(before, format, **options)
        back = export(net, net.foveal_info["converted_from"])
        assert back.keys() == before.keys()
        for name, value in back.items():
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name]), name
        if hasattr(net, "foveal_model"):
            foveal.save(net, tmp_path / "net.safetensors")
            assert str(foveal.load(tmp_path / "net.safetensors")) == str(net)
        net, peer, x = net.to(dtype), peer.to(dtype), x.to(dtype)
        for training in (False, True):
            net.train(training)
            peer.train(training)
            for module in (*net.modules(), *peer.modules()):
                if isinstance(module, nn.Dropout | nn.Dropout2d):
                    module.p = 0.0
            with torch.set_grad_enabled(training):
                y, expected = pick_ours(net(x)), pick(peer(x))
            torch.testing.assert_close(
                y, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max())
            )
        weights = torch.randn_like(y)
        (mine,) = torch.autograd.grad((y * weights).sum(), [net.get_parameter(ours)])
        (other,) = torch.autograd.grad((expected * weights).sum(), [peer.get_parameter(theirs)])
        scale = float(other.abs().max())
        assert scale > 0
        torch.testing.assert_close(mine.reshape(other.shape), other, rtol=0, atol=100 * tolerance * scale)
        return net

    return compared
