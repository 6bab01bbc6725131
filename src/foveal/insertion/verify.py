"""What `insert` holds new blocks to: one pass in which each must be called, be where it says, and keep its promises."""

import functools
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion.example import preserve_state
from foveal.insertion.hooks import Insertion
from foveal.insertion.locate import sites_in
from foveal.insertion.trace import Trace, trace_inside


def verify(
    net: nn.Module,
    attached: list[Insertion],
    at: str,
    stages: Iterable[int] | None,
    example: tuple[tuple, dict],
) -> None:
    """Run once with the new blocks and refuse those that break a promise.

    Raises:
        FovealError: a block is not called once, changes shape, dtype or (with ``start="identity"``) a value, or
            something else than what it returns flows on from its site.
    """
    broken: list[str] = []

    def check(module: nn.Module, given: tuple, output: Any, one: Insertion) -> None:
        (x,) = given
        if not isinstance(output, Tensor) or output.shape != x.shape or output.dtype != x.dtype:
            got = type(output).__name__
            got = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else got
            broken.append(
                f"the block {one.block} must return the shape and dtype it is given at {one.site} "
                f"({tuple(x.shape)} {x.dtype}), got {got}"
            )
        elif one.start == "identity" and not x.is_meta:
            change = _change(x, output) or _change(seen := without_zeros(x), module.forward(seen))
            if change is not None:
                broken.append(
                    f"the block {one.block} must change no value at {one.site} with start='identity', got a "
                    f"change of {change:.3g}; pass start='paper' to insert it as it is"
                )

    with ExitStack() as stack:
        stack.enter_context(preserve_state(net))
        for one in attached:
            stack.callback(one.module.register_forward_hook(functools.partial(check, one=one)).remove)
        try:
            trace = trace_inside(net, *example)
        except FovealError as error:
            # what a block did wrong may show only in the module after it
            raise FovealError(
                broken[0] if broken else f"with {attached[0].block} inserted, {error}"
            ) from error
    broken += _not_called_once(trace, attached)
    if not broken:
        broken += _elsewhere(trace, net, attached, at, stages)
    if broken:
        raise FovealError(broken[0])


def without_zeros(x: Tensor) -> Tensor:
    """``x`` with random values where it is 0, of no sign that it has not.

    A branch whose last norm starts at zero returns zeros, which a block of any kind leaves as they are.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
    if (x >= 0).all() and (x > 0).any():
        values = values.abs()
    return torch.where(x == 0, values, x)


def _change(before: Tensor, after: Tensor) -> float | None:
    """The largest difference, or None where all values are the same."""
    if torch.allclose(before, after, rtol=0, atol=0, equal_nan=True):
        return None
    return (after - before).abs().max().item()


def _not_called_once(trace: Trace, attached: list[Insertion]) -> list[str]:
    return [
        f"forward must call the block at {one.site} once, got {len(trace.block_outputs.get(one.module, ()))} calls: "
        f"{one.site} does not run as an ordinary module"
        for one in attached
        if len(trace.block_outputs.get(one.module, ())) != 1
    ]


def _elsewhere(
    trace: Trace, net: nn.Module, attached: list[Insertion], at: str, stages: Iterable[int] | None
) -> list[str]:
    """Blocks whose output is not what the same rules find at their site, now that the blocks are there."""
    flows = {call.name: call.inputs[:1] if at == "pre" else (call.output,) for call in trace.calls}
    if at == "shortcut":
        # with a block in it, it may be the longer of the two paths that are added
        added = {
            operand.tensor for merge in trace.merges if merge.kind == "add" for operand in merge.operands
        }
        sites = {one.site for one in attached if trace.block_outputs[one.module][0] in added}
        return _said([one for one in attached if one.site not in sites], at)
    try:
        sites = {site.name for site in sites_in(trace, net, at, stages) if site.reason is None}
    except FovealError:
        sites = set()
    wrong = [
        one
        for one in attached
        if one.site not in sites or flows.get(one.site) != (trace.block_outputs[one.module][0],)
    ]
    return _said(wrong, at)


def _said(wrong: list[Insertion], at: str) -> list[str]:
    return [
        f"what the block at {one.site} returns must flow on as at={at!r} says, got another tensor in its place: "
        f"forward does not use what {one.site} returns, or replaces it"
        for one in wrong
    ]
