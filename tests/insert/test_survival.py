"""Insertion survives what people do with networks: compiling, exporting, several processes, symbolic tracing."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from torch import nn

import foveal
from foveal.nn import BLOCKS

OPTIONS = {"se": {"reduction": 4}, "cbam": {"reduction": 4}}


@pytest.fixture(autouse=True)
def without_type_checks(request):
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("run-time type checks break the graph; this test runs without them")


def woken(name: str, at: str = "residual", *, net: nn.Module | None = None, seed: int = 0) -> nn.Module:
    """A small network with blocks that are not identities."""
    torch.manual_seed(seed)
    net = net if net is not None else foveal.create_model("cifar_resnet8", num_classes=4)
    example = torch.zeros(1, 3, 32, 32)
    foveal.insert(net, name, at=at, example=example, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for one in foveal.inserted(net):
            for parameter in one.module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


@pytest.mark.parametrize(
    ("name", "at"), [*((name, "residual") for name in BLOCKS), ("cbam", "block"), ("cbam", "layer3")]
)
def test_compiles_to_one_graph(name, at):
    torch.compiler.reset()
    net = woken(name, at)
    x = torch.randn(2, 3, 32, 32)
    expected = copy.deepcopy(net)(x)  # in train mode
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)


def test_compiles_where_the_block_comes_before_a_module():
    torch.compiler.reset()
    net = woken("se", net=timm.create_model("convnext_atto", num_classes=4, depths=(1, 1, 1, 1))).eval()
    assert all(one.before for one in foveal.inserted(net))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))


@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in BLOCKS), ("cbam", True), ("dual", True)]
)
def test_exports_with_any_batch(name, strict):
    net = woken(name).eval()
    x = torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=strict)
    other = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(other), net(other))


def test_symbolic_tracing_keeps_the_blocks():
    net = woken("nonlocal", net=torchvision.models.resnet18(num_classes=4)).eval()
    x = torch.randn(1, 3, 32, 32)
    traced = torch.fx.symbolic_trace(net)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x))


def _train_as_one_of_two(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        net = foveal.create_model("cifar_resnet8", num_classes=4)
        foveal.insert(net, "cbam", reduction=4)
        foveal.insert(net, "dual", at="stage")
        # unused parameters are an error here, in the second step
        wrapped = nn.parallel.DistributedDataParallel(net)
        optimiser = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(3):
            optimiser.zero_grad()
            x = torch.randn(2, 3, 32, 32, generator=generator)
            wrapped(x).square().mean().backward()
            optimiser.step()
        mine = torch.cat([p.detach().flatten() for p in net.parameters()])
        theirs = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(theirs, mine)
        if rank == 0:
            paths = [one.path for one in foveal.inserted(wrapped)]
            torch.save({"same": torch.equal(*theirs), "paths": paths}, result)
    finally:
        dist.destroy_process_group()


def test_two_processes_train_without_unused_parameters(tmp_path):
    result = tmp_path / "result"
    mp.spawn(_train_as_one_of_two, (str(tmp_path / "store"), str(result)), nprocs=2)  # type: ignore[attr-defined]
    outcome = torch.load(result)
    assert outcome["same"]
    expected = [f"module.layer{i}.0.{name}" for i in (1, 2, 3) for name in ("bn2.cbam", "dual")]
    assert outcome["paths"] == expected
