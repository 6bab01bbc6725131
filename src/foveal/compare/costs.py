"""Time, memory and size of every variant, measured side by side once no training runs any more."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.compare.job import Job
from foveal.compare.summary import Costs
from foveal.files import write_json
from foveal.machine import environment
from foveal.measure import count_macs, count_parameters, measure_time, peak_bytes
from foveal.tasks import collate_training
from foveal.train.memory_format import channels_last

if TYPE_CHECKING:
    from foveal.compare.experiment import Plan


def measure_costs(plan: Plan, folder: Path, advance: Callable[[], None] = lambda: None) -> dict[str, Costs]:
    """Costs by variant name. Kept in ``folder/costs.json`` and not measured again on the same machine.

    Times are of the network in eval mode, in float32, with PyTorch's own number of threads: one image, and one
    training batch; of a task that has a ``report_pass`` they are of that. Memory is that of a training step of one
    batch; weights, gradients and the optimiser's state are not in it. ``advance`` is called after each variant, and
    after each of the two rounds of times.
    """
    job = plan.job
    machine = {name: value for name, value in environment().items() if name != "command"}
    variants = [asdict(v) for v in plan.variants]
    settings = json.loads(json.dumps({**job.settings, "variants": variants, "machine": machine}, default=str))
    path = folder / "costs.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return {name: Costs(**costs) for name, costs in kept["costs"].items()}

    nets = {v.name: replace(job, variant=v).build().to(job.device) for v in plan.variants}
    train_batch = _training_batch(plan)
    image, batch = train_batch["image"][:1], train_batch["image"]
    peaks = {}
    for name, net in nets.items():
        step = _training_step(net, train_batch, job)
        # gradients exist from here on, and first-time workspaces are there
        step()
        peaks[name] = peak_bytes(step, device=job.device)
        net.zero_grad()
        net.eval()
        advance()
    with torch.no_grad():
        passes = {name: _Pass(net, job.config.the_task) for name, net in nets.items()}
        one = measure_time({name: _forward(net, image) for name, net in passes.items()}, repeats=40)
        advance()
        many = measure_time({name: _forward(net, batch) for name, net in passes.items()}, repeats=10)
        advance()
    costs = {
        name: Costs(
            parameters=count_parameters(net),
            macs=count_macs(passes[name], image),
            time_ms=one[name].time_ms,
            time_low_ms=one[name].low_ms,
            time_high_ms=one[name].high_ms,
            batch_ms=many[name].time_ms,
            peak_bytes=peaks[name],
        )
        for name, net in nets.items()
    }
    write_json(path, {"costs": {name: asdict(c) for name, c in costs.items()}, "settings": settings})
    return costs


def _training_batch(plan: Plan) -> dict[str, Any]:
    """The first images of the training data, as many as a batch, as the networks take them in training."""
    job, data = plan.job, plan.data["train"]
    task = job.config.the_task
    transform = task.train_transform(data, job.info, job.config.options, job.config.augment)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        samples = [transform(data[i % len(data)]) for i in range(job.config.batch_size)]
    (batch,) = collate_training(task)(samples)
    moved = {name: v.to(job.device) if isinstance(v, Tensor) else v for name, v in batch.items()}
    if job.config.channels_last:
        moved["image"] = moved["image"].contiguous(memory_format=channels_last(moved["image"]))
    return moved


class _Pass(nn.Module):
    """A network whose pass runs all of it: where a task makes images, both that and the judging of them."""

    def __init__(self, net: nn.Module, task: Any) -> None:
        super().__init__()
        self.net, self.whole = net, getattr(task, "report_pass", None)

    def forward(self, x: Tensor) -> Any:
        return self.net(x) if self.whole is None else self.whole(self.net, x)


def _forward(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    return lambda: net(x)


def _training_step(net: nn.Module, batch: dict[str, Any], job: Job) -> Callable[[], None]:
    task, options = job.config.the_task, job.config.options
    net.train()

    def step() -> None:
        net.zero_grad(set_to_none=False)
        losses = task.losses(net, batch, job.info, options, torch.Generator().manual_seed(0))
        torch.stack(list(losses.values())).sum().backward()

    return step
