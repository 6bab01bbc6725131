"""Every gradient that anyone can get hold of is right, and stays as it was when it was handed out."""

import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.ops import gate, reference
from foveal.ops.gradient_buffer import GradientBuffer

SHAPES = [(2, 6, 5, 4), (1, 70, 33, 37)]


class Gate:
    """CBAM's two gates by the fast functions or by the literal ones, with every tensor in between within reach."""

    def __init__(self, shape, fast: bool):
        generator = torch.Generator().manual_seed(0)
        self.leaf = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        self.mix = torch.randn(shape[1], generator=generator, dtype=torch.float64).requires_grad_()
        self.x = self.leaf * 2
        shared = gate.GateInput(self.x)
        self.squeezed = (
            shared.squeeze(["mean", "max"])
            if fast
            else torch.cat([reference.squeeze(self.x), reference.squeeze(self.x, "max")])
        )
        self.channel = torch.sigmoid(self.squeezed.view(2, *shape[:2]).sum(0) * self.mix)
        self.statistics = (
            shared.spatial_statistics(self.channel)[0]
            if fast
            else reference.spatial_statistics(self.x, self.channel)
        )
        self.spatial = torch.sigmoid(self.statistics.sum(1, keepdim=True))
        gates = self.channel, self.spatial
        self.y = shared.scale(*gates) if fast else reference.dual_scale(self.x, *gates)
        weights = torch.linspace(-1, 1, self.y.numel(), dtype=torch.float64).view(shape)
        self.loss = (self.y * weights).sum()

    def between(self) -> dict[str, Tensor]:
        names = ["x", "squeezed", "channel", "statistics", "spatial", "y"]
        return {name: getattr(self, name) for name in names}


def equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-12, msg=str(name))


def gradients(shape, fast: bool, leaf: bool) -> dict[str, Tensor]:
    run = Gate(shape, fast)
    asked = run.between() | ({"leaf": run.leaf, "mix": run.mix} if leaf else {})
    return dict(zip(asked, torch.autograd.grad(run.loss, list(asked.values())), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("leaf", [True, False])
def test_gradients_of_everything_between_can_be_asked_for(shape, leaf):
    equal(gradients(shape, True, leaf), gradients(shape, False, leaf))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_a_hook_keeps_is_right_and_not_changed_afterwards(shape):
    def seen(fast: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        run, kept, copies = Gate(shape, fast), {}, {}

        def watch(name: str, gradient: Tensor) -> None:
            kept[name], copies[name] = gradient, gradient.clone()

        for name, tensor in run.between().items():
            tensor.retain_grad()
            tensor.register_hook(lambda gradient, name=name: watch(name, gradient))
        run.loss.backward()
        assert sorted(kept) == sorted(run.between())
        assert all(torch.equal(kept[name], copies[name]) for name in kept)
        return kept, {name: tensor.grad for name, tensor in run.between().items()}

    for found, wanted in zip(seen(True), seen(False), strict=True):
        equal(found, wanted)


def test_what_a_hook_of_a_node_keeps_is_not_changed_afterwards():
    run = Gate(SHAPES[0], True)
    kept: list[tuple[Tensor, Tensor]] = []

    def watch(ins, outs) -> None:
        kept.extend((gradient, gradient.clone()) for gradient in (*ins, *outs) if gradient is not None)

    nodes, visited = [run.loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited or "AccumulateGrad" in node.name():
            continue
        visited.add(node)
        node.register_hook(watch)
        nodes += [successor for successor, _ in node.next_functions]
    run.loss.backward()
    assert len(kept) > 10
    assert all(torch.equal(gradient, copy) for gradient, copy in kept)


def test_a_hook_that_replaces_a_gradient_is_obeyed():
    def tripled(fast: bool) -> dict[str, Tensor]:
        run = Gate(SHAPES[0], fast)
        for tensor in run.between().values():
            tensor.register_hook(lambda gradient: gradient * 3)
        run.loss.backward()
        return {"leaf": run.leaf.grad, "mix": run.mix.grad}

    equal(tripled(True), tripled(False))


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
def test_anomaly_mode_gives_the_same_and_finds_what_is_not_a_number():
    with torch.autograd.detect_anomaly(check_nan=True):
        found = gradients(SHAPES[0], True, True)
        run = Gate(SHAPES[0], True)
        run.y.register_hook(lambda gradient: gradient * float("nan"))
        with pytest.raises(RuntimeError, match="returned nan values"):
            run.loss.backward()
    equal(found, gradients(SHAPES[0], False, True))


def test_a_pass_that_asks_for_a_gate_alone_leaves_nothing_to_the_next():
    def several(fast: bool) -> dict[int, Tensor]:
        run = Gate(SHAPES[0], fast)

        def ask(loss: Tensor, *asked: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss, asked, retain_graph=True)

        found = [*ask(run.loss, run.statistics), *ask(run.loss, run.mix, run.channel)]
        found += ask(run.statistics.square().sum(), run.leaf, run.mix)
        found += ask(run.squeezed.square().sum(), run.leaf)
        found += ask(run.loss, run.leaf, run.mix)
        return dict(enumerate(found))

    equal(several(True), several(False))


def test_a_pass_keeps_no_map_after_its_end(monkeypatch):
    maps = []
    keep = GradientBuffer._keep

    def watched(self, backward_pass, gradient):
        maps.append(weakref.ref(gradient))
        keep(self, backward_pass, gradient)

    monkeypatch.setattr(GradientBuffer, "_keep", watched)
    run = Gate(SHAPES[0], True)
    torch.autograd.grad(run.loss, [run.mix], retain_graph=True)
    torch.autograd.grad(run.loss, [run.leaf], retain_graph=True)
    gc.collect()
    assert len(maps) == 2
    assert [reference() for reference in maps] == [None, None]


ALLOCATES = {"empty_like", "new_empty_strided", "new_zeros", "zeros_like", "clone", "mul", "add", "scatter"}


def test_one_map_of_gradients_is_allocated_for_all_reads():
    run = Gate(SHAPES[1], True)
    dy = torch.ones_like(run.y)
    allocated = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            y = function(*args, **(kwargs or {}))
            allocates = function.overloadpacket.__name__ in ALLOCATES and "out" not in (kwargs or {})
            if allocates and y.numel() == run.x.numel():
                allocated.append(function)
            return y

    with Watch():
        torch.autograd.grad(run.y, run.x, dy)
    assert len(allocated) == 1, allocated


def test_many_gradients_at_once():
    """Vectorised passes, as ``torch.autograd.functional.jacobian`` makes them."""

    def jacobian(fast: bool) -> dict[str, Tensor]:
        run = Gate((1, 3, 2, 2), fast)
        basis = torch.eye(run.y.numel(), dtype=torch.float64).view(-1, *run.y.shape)
        return {"leaf": torch.autograd.grad(run.y, run.leaf, basis, is_grads_batched=True)[0]}

    equal(jacobian(True), jacobian(False))


def test_two_threads_may_go_through_one_graph_at_once():
    run = Gate(SHAPES[0], True)
    (wanted,) = torch.autograd.grad(run.loss, run.leaf, retain_graph=True)
    found: list[Tensor] = []
    # both have added the gradient of the product before either goes on
    barrier = threading.Barrier(2)

    def meet(gradient: Tensor) -> None:
        barrier.wait(timeout=60)

    run.statistics.register_hook(meet)

    def backward() -> None:
        found.extend(torch.autograd.grad(run.loss, run.leaf, retain_graph=True))

    threads = [threading.Thread(target=backward) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(gradient, wanted) for gradient in found)
