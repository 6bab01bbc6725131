"""From a file's description to a network, with no more work than the file's own tensors justify."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from foveal.checkpoint.header import PLAN_TYPES, Header, listed, state_dict_mismatch
from foveal.checkpoint.structure import state_of
from foveal.errors import FovealError
from foveal.insertion import Insertion, inserted, remove
from foveal.insertion.build import build, resolve
from foveal.insertion.hooks import attach
from foveal.models import READS_FILES, create_model
from foveal.nn import RECORDED_BLOCKS

LARGEST_SIZE = 2048
"""Of whole numbers among a file's model arguments, where none of its tensors is larger."""


def rebuild(header: Header, blocks: dict[str, Any], path: Any) -> nn.Module:
    """Build the named network with its blocks.

    Names are looked up in fixed tables, and all shapes are compared on the meta device before memory is taken.

    Raises:
        FovealError: the file does not name a model, or what it describes cannot be built, is larger than its
            tensors or has other shapes.
    """
    model, plan = header.description["model"], header.description["plan"]
    if model is None:
        blocks_there = listed(f"{e['block']} at {e['site']}" for e in plan) or "none"
        raise FovealError(
            f"{path} does not name its model, as it was not made by foveal.create_model; pass net=a network "
            f"with the same blocks inserted ({blocks_there})"
        )
    refused = [key for key in model["kwargs"] if key.startswith(READS_FILES)]
    if refused:
        raise FovealError(
            f"a file may not make the library open other files, got {listed(refused)} in {path}"
        )
    if changed := header.description["changed"]:
        shown = listed((f"{one['module']} was {one['saved']} and not {one['built']}" for one in changed), 3)
        raise FovealError(
            f"{path} must be loaded into a network that was changed as its own was after create_model; pass "
            f"net=such a network, got a file in which {shown}"
        )
    _refuse_large(model["kwargs"], header, path)
    with torch.device("meta"), bounded(header, path):
        refuse_other_weights(_assemble(model, plan, blocks, path), header, path)
    return _assemble(model, plan, blocks, path)


def rebuild_for(header: Header, num_classes: int, blocks: dict[str, Any], path: Any) -> nn.Module:
    """The network of a file that was loaded before, with its blocks, newly initialised and for other classes.

    Args:
        num_classes: outputs of the network.
    """
    model, plan = header.description["model"], header.description["plan"]
    kwargs = {**model["kwargs"], "num_classes": num_classes}
    return _assemble({**model, "kwargs": kwargs}, plan, blocks, path)


def refuse_other_weights(net: nn.Module, header: Header, path: Any) -> None:
    """Raise where names or shapes of the file's tensors are not the network's."""
    own = {name: tuple(tensor.shape) for name, tensor in state_of(net).items()}
    if wrong := state_dict_mismatch(header.shapes, own):
        raise FovealError(f"{path} must hold exactly the weights of {type(net).__name__}, got {wrong}")


def refuse_other_plan(net: nn.Module, plan: list[dict[str, Any]], path: Any) -> None:
    """Raise where the network's inserted blocks are not those of the file."""
    present = [as_json(one) for one in inserted(net)]
    lost = [e for e in plan if e not in present]
    extra = [e for e in present if e not in plan]
    if lost or extra:
        parts = []
        if lost:
            parts.append(f"the network lacks {listed(map(_in_words, lost))}, which would be lost")
        if extra:
            parts.append(f"the file lacks {listed(map(_in_words, extra))}, which would stay untrained")
        raise FovealError(
            f"{path} and the network must have the same inserted blocks, but {'; '.join(parts)}. "
            "Insert the same blocks first, or call foveal.load(path) without a network to rebuild it"
        )


def entry(one: Insertion) -> dict[str, Any]:
    """What the plan says of a block."""
    return {key: getattr(one, key) for key in PLAN_TYPES}


def as_json(one: Insertion) -> dict[str, Any]:
    """`entry` as it comes back from a file, where a tuple among the options has become a list."""
    return json.loads(json.dumps(entry(one)))


@contextmanager
def bounded(header: Header, path: Any) -> Iterator[None]:
    """Within this, no more modules and tensors are made than a network with the file's tensors could need.

    Builders make some tensors twice (a classifier, an inflated convolution) and modules without any.
    """
    most = {"tensors": 3 * len(header.shapes) + 1000, "modules": 10 * len(header.shapes) + 5000}
    made = dict.fromkeys(most, 0)

    def count(kind: str) -> None:
        made[kind] += 1
        if made[kind] > most[kind]:
            raise FovealError(
                f"the model that {path} describes must have about as many tensors as the file, which has "
                f"{len(header.shapes)}, got more than {most[kind]} {kind}"
            )

    with ExitStack() as stack:
        for handle in (
            registration.register_module_parameter_registration_hook(lambda *_: count("tensors")),
            registration.register_module_buffer_registration_hook(lambda *_: count("tensors")),
            registration.register_module_module_registration_hook(lambda *_: count("modules")),
        ):
            stack.callback(handle.remove)
        yield


def _refuse_large(kwargs: Mapping[str, Any], header: Header, path: Any) -> None:
    """Builders make lists and tables of these sizes before they make any tensor that could be counted."""
    largest = max(
        [LARGEST_SIZE, *(max(shape) for shape in header.shapes.values() if shape and 0 not in shape)]
    )
    for key, value in kwargs.items():
        # these two size weights alone, whose shapes are compared
        if key in ("num_classes", "in_chans"):
            continue
        most = LARGEST_SIZE if "size" in key else largest
        for number in _numbers_in(value):
            if abs(number) > most:
                raise FovealError(
                    f"whole numbers among the model's arguments must be at most {most} in {path}, got "
                    f"{key[:80]} with {number:.6g}"
                )


def _numbers_in(value: Any) -> Iterator[float]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, (int, float)):
            yield one


def _assemble(
    model: dict[str, Any], plan: list[dict[str, Any]], blocks: dict[str, Any], path: Any
) -> nn.Module:
    try:
        net = create_model(model["name"], **model["kwargs"])
    except (FovealError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # builders of timm raise anything on arguments of another kind
        reason = (str(error).splitlines() or [""])[0][:300]
        raise FovealError(
            f"{path} must describe a model that can be built, got {type(error).__name__} from "
            f"{model['name'][:80]}: {reason}"
        ) from error
    missing = list(plan)
    for one in inserted(net):  # blocks that are part of the named network
        described = as_json(one)
        if described in missing:
            missing.remove(described)
        else:
            remove(net, one.path)
    modules = dict(net.named_modules())
    for described in missing:
        if described["site"] not in modules:
            raise FovealError(
                f"{model['name']} must have the site {described['site'][:160]} of the plan in {path}, got none"
            )
        _attach_described(net, described, blocks, path)
    return net


def _attach_described(net: nn.Module, described: dict[str, Any], blocks: dict[str, Any], path: Any) -> None:
    record = {key: described[key] for key in ("block", "options", "start", "channels", "dims")}
    block = described["block"]
    if block not in RECORDED_BLOCKS and block not in blocks:
        raise FovealError(
            f"{path} holds a block that is not foveal's, {block[:80]!r} at {described['site'][:160]}; give the Python "
            "file that defines it, which is run: --blocks FILE.py, in Python blocks='FILE.py'"
            + (f"; got one that defines {listed(blocks)}" if blocks else "")
        )
    try:
        name, make, _ = resolve(described["block"], {**RECORDED_BLOCKS, **blocks})
        module = build(
            name, make, described["channels"], described["dims"], described["start"], record["options"]
        )
        attach(net, described["site"], module, record, before=described["before"], path=described["path"])
    except Exception as error:  # a block of the user's own may raise anything on a file's options
        reason = (str(error).splitlines() or [""])[0][:300]
        raise FovealError(
            f"the plan in {path} must say how to rebuild {described['block'][:80]!r} at "
            f"{described['site'][:160]}, got: {reason}"
        ) from error


def _in_words(described: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in described["options"].items())
    return f"{described['block']}({options}) at {described['site']}"
