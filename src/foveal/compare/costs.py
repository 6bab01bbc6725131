"""Time, memory and size of every variant, measured side by side once no training runs any more."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from foveal.compare.summary import Costs
from foveal.compare.variants import Variant, build
from foveal.compare.worker import Job
from foveal.files import write_json
from foveal.measure import count_macs, count_parameters, measure_time, peak_bytes
from foveal.train.files import environment


def measure_costs(variants: Sequence[Variant], job: Job, folder: Path) -> dict[str, Costs]:
    """Costs by variant name. Kept in ``folder/costs.json`` and not measured again on the same machine.

    Times are of the network in eval mode, in float32, with PyTorch's own number of threads: one image, and one
    training batch. Memory is that of a training step of one batch; weights, gradients and the optimiser's state
    are not in it.
    """
    machine = {name: value for name, value in environment(0).items() if name not in ("command", "seed")}
    settings = json.loads(
        json.dumps(
            {**job.settings, "variants": [asdict(v) for v in variants], "machine": machine}, default=str
        )
    )
    path = folder / "costs.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return {name: Costs(**costs) for name, costs in kept["costs"].items()}

    nets = {v.name: build(v, job.config, len(job.classes), job.image_size).to(job.device) for v in variants}
    image, batch = _images(job, 1), _images(job, job.config.batch_size)
    labels = torch.zeros(len(batch), dtype=torch.long, device=job.device)
    peaks = {}
    for name, net in nets.items():
        step = _training_step(net, batch, labels)
        step()  # gradients exist from here on, and first-time workspaces are there
        peaks[name] = peak_bytes(step, device=job.device)
        net.zero_grad()
        net.eval()
    with torch.no_grad():
        one = measure_time({name: _forward(net, image) for name, net in nets.items()}, repeats=40)
        many = measure_time({name: _forward(net, batch) for name, net in nets.items()}, repeats=10)
    costs = {
        name: Costs(
            parameters=count_parameters(net),
            macs=count_macs(net, image),
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


def _images(job: Job, number: int) -> Tensor:
    x = torch.randn(number, 3, job.image_size, job.image_size, generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if job.config.channels_last else torch.contiguous_format
    return x.to(job.device).contiguous(memory_format=layout)


def _forward(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: net(x)


def _training_step(net: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    net.train()

    def step() -> None:
        net.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(net(x), labels).backward()

    return step
