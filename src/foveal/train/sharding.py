"""One network in shards over all processes (FSDP2), whole again where it is validated, saved and continued.

Each process keeps its part of the weights, gradients and optimiser states. Weights are gathered for a step and for a
copy that is whole, in each process: what validates and saves knows nothing of shards, and a checkpoint is the same
under any strategy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from foveal.train.fabric import Fabric, ModelParallelStrategy


def shard(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a network in place, as one group: whatever its forward pass reads is whole meanwhile."""
    # fully_shard keeps to the network's own class, but for a name in front
    fully_shard(net, mesh=mesh["data_parallel"])
    return net


def is_sharded(fabric: Fabric) -> bool:
    """Whether networks are in shards."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def whole(values: Any) -> Any:
    """Nested dictionaries and lists with every shard gathered to a whole tensor; all processes must call it.

    Example:
        >>> whole({"state": {0: [torch.ones(2)]}, "lr": 0.1})
        {'state': {0: [tensor([1., 1.])]}, 'lr': 0.1}
    """
    if isinstance(values, DTensor):
        return values.full_tensor()
    if isinstance(values, dict):
        return {name: whole(value) for name, value in values.items()}
    return [whole(value) for value in values] if isinstance(values, list) else values


def sharded_like(value: Tensor, like: Any) -> Tensor:
    """A whole tensor in the shards of another one of its shape; as it is where that has none."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a whole state dict into a network, whether it is in shards or not."""
    own = net.state_dict()
    net.load_state_dict({name: sharded_like(value, own.get(name)) for name, value in state.items()})


def load_whole_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a whole state dict into an optimiser, whether its parameters are in shards or not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = {
        number: {
            name: sharded_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in kept.items()
        }
        for number, kept in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})
