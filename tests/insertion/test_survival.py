"""Insertion survives what people do with networks: compiling, exporting, several processes, symbolic tracing."""

import copy
import pickle

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from tests.marks import slow
from torch import nn

import foveal
from foveal.nn import BLOCKS

OPTIONS = {"se": {"reduction": 4}, "cbam": {"reduction": 4}}
AT_ONCE = {"se": "residual", "cbam": "residual"}
NETWORKS = {
    "timm regnety_002": ("residual", lambda: timm.create_model("regnety_002", num_classes=4)),
    "timm densenet121": ("stage", lambda: timm.create_model("densenet121", num_classes=4)),
    "torchvision resnet18": ("residual", lambda: torchvision.models.resnet18(num_classes=4)),
    "torchvision mobilenet_v3_small": (
        "block",
        lambda: torchvision.models.mobilenet_v3_small(num_classes=4),
    ),
}


@pytest.fixture(autouse=True)
def without_type_checks(request):
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("run-time type checks break the graph; this test runs without them")


def woken(name: str, at: str = "residual", *, net: nn.Module | None = None, seed: int = 0) -> nn.Module:
    """A small network with blocks that are not identities."""
    torch.manual_seed(seed)
    net = net if net is not None else foveal.create_model("cifar_resnet8", num_classes=4)
    example = torch.zeros(1, 3, 32, 32, dtype=next(net.parameters()).dtype)
    foveal.insert(net, name, at=at, example=example, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for one in foveal.inserted(net):
            for parameter in one.module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


def settled(net: nn.Module) -> nn.Module:
    """As after some training: branches whose norm starts at zero count, and activations keep their size.

    In float64, for rounding grows with depth.
    """
    net = net.double()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.momentum = None  # the mean of all batches
        net.train()
        for _ in range(3):
            net(torch.randn(8, 3, 64, 64, dtype=torch.float64))
    return net.eval()


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("cbam", "residual"),
        ("nonlocal", "residual"),
        ("cbam", "layer3"),
        *slow(
            [("cbam", "block"), *((name, "residual") for name in BLOCKS if name not in ("cbam", "nonlocal"))]
        ),
    ],
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
    ("name", "strict"), [*((name, False) for name in BLOCKS), ("cbam", True), *slow([("dual", True)])]
)
def test_exports_with_any_batch(name, strict):
    net = woken(name).eval()
    x = torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=strict)
    other = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(other), net(other))


@pytest.mark.parametrize(
    "which",
    [
        "torchvision resnet18",
        *slow(["timm regnety_002", "timm densenet121", "torchvision mobilenet_v3_small"]),
    ],
)
def test_every_promise_holds_on_networks_of_others(which):
    """Copied, pickled, compiled to one graph, exported: always the same answer; removed: the answer before."""
    torch.compiler.reset()
    at, build = NETWORKS[which]
    torch.manual_seed(0)
    net = settled(build())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        net = woken("cbam", at, net=net).double()
        expected = net.eval()(x)
        assert not torch.allclose(expected, before)
        assert torch.equal(copy.deepcopy(net)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
        assert torch.equal(foveal.remove(net)(x), before)


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
        for name in BLOCKS:
            foveal.insert(net, name, at=AT_ONCE.get(name, "stage"), **OPTIONS.get(name, {}))
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


def test_two_processes_train_without_unused_parameters(tmp_path, zygote):
    result = tmp_path / "result"
    code = "from tests.insertion import test_survival\ntest_survival._train_as_one_of_two(*{}, *{})"
    files = (str(tmp_path / "store"), str(result))
    both = [zygote.start(tmp_path, code=code.format((rank,), files)) for rank in range(2)]
    for trial in both:
        assert trial.wait() == 0, trial.err
    outcome = torch.load(result)
    assert outcome["same"]
    assert len(outcome["paths"]) == 3 * len(BLOCKS)
    assert all(path.startswith("module.layer") for path in outcome["paths"])
