"""The command line, ``foveal VERB ...``: one function a verb, whose signature and docstring are its options.

Nothing here imports torch before a verb runs, so help appears at once. A mistake of the user's ends in one line
on the standard error output and exit status 2; Ctrl-C in 130; a mistake of ours in a traceback and 1.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, set_parsing_settings

from foveal.errors import FovealError
from foveal.train.config import TrainConfig

# ------------------------------------------------------------------------------------------------------- verbs


def show_plan(
    model: str,
    insert: list[str],
    start: Literal["identity", "paper"] = "identity",
    image_size: int | None = None,
    num_classes: int = 1000,
) -> int:
    """Show what an insertion would add at each site, in parameters, operations and bytes, without doing it.

    Args:
        model: A name from `foveal list`.
        insert: A block and where it goes, as for train. Repeatable.
        start: As for train.
        image_size: Side of the square images, in pixels. Default: the model's own.
        num_classes: Outputs of the network.
    """
    import torch

    import foveal

    net = foveal.create_model(model, num_classes=num_classes)
    example = None if image_size is None else torch.zeros(1, 3, image_size, image_size)
    for text in insert:
        wanted = {"start": start, "example": example, **foveal.parse_insertion(text)}
        print(foveal.plan(net, **wanted))
    return 0


def list_names(pattern: str = "*") -> int:
    """Print the names of networks that --model takes.

    Args:
        pattern: Names to show, such as "*cbam*"; quote it.
    """
    import foveal

    names = foveal.list_models(pattern)
    if not names:
        raise FovealError(f"pattern must match a model name, got {pattern}")
    print("\n".join(names))
    return 0


def bench(
    what: Literal["ops"],
    only: str | None = None,
    out: str | None = None,
    repeats: int = 9,
    threads: int | None = None,
) -> int:
    """Time every attention op against what it replaces, and print which bars are met.

    Args:
        what: ops.
        only: Run the cases whose name contains this.
        out: Also write the figures, with machine and versions, to this JSON file.
        repeats: Interleaved rounds, of the gates four times as many; figures are medians.
        threads: PyTorch's threads. Default: as it starts.
    """
    from foveal.bench import bench_ops

    return 0 if bench_ops(only, out, repeats, threads) else 1


@dataclass(frozen=True)
class Verb:
    """A function, or where one is whose module imports no torch; and which parameters take words without a dash."""

    home: Callable[..., Any] | str
    words: str | None = None
    usage: str = ""

    @property
    def run(self) -> Callable[..., Any]:
        if not isinstance(self.home, str):
            return self.home
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


VERBS = {
    "compare": Verb("foveal.compare:compare", usage="foveal compare --data photos/ --seeds 8"),
    "train": Verb(
        "foveal.train.verbs:train",
        usage="foveal train --model resnet18 --data photos/ --insert cbam@residual:3,4",
    ),
    "eval": Verb(
        "foveal.train.verbs:evaluate", usage="foveal eval --weights runs/train/x/weights/best.safetensors"
    ),
    "predict": Verb(
        "foveal.train.verbs:predict", words="paths", usage="foveal predict photo.jpg folder/ --weights FILE"
    ),
    "look": Verb("foveal.look.verbs:look", words="source", usage="foveal look photo.jpg --weights FILE"),
    "serve": Verb("foveal.look.verbs:serve", usage="foveal serve --weights FILE"),
    "convert": Verb(
        "foveal.published.verb:convert", words="source target", usage="foveal convert in.pth out.safetensors"
    ),
    "plan": Verb(show_plan, words="model", usage="foveal plan resnet50 --insert cbam@residual:3,4"),
    "list": Verb(list_names, words="pattern", usage='foveal list "*cbam*"'),
    "bench": Verb(bench, words="what", usage="foveal bench ops"),
}


# ------------------------------------------------------------------------------------------------------ parsing


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what `foveal` on the command line calls. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from foveal import __version__

        print(f"foveal {__version__}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        return complain("foveal", f"verb must be one of {', '.join(VERBS)}, got {name}" + _perhaps(close))
    try:
        return _run(name, arguments[1:])
    except SystemExit as request:  # --help and --print_config
        return int(request.code or 0)
    except KeyboardInterrupt as stop:
        complain(name, str(stop) or "stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return complain(name, f"{error.strerror}{where}" if error.strerror else str(error))
    except ValueError as error:
        return complain(name, str(error))


def _run(name: str, arguments: list[str]) -> int:
    verb = VERBS[name]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"foveal {name}",
        description=_first_line(verb.run),
        epilog=f"example: {verb.usage}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    if name == "train":
        parser.add_argument("--resume", type=str | None, help="Folder of a stopped run, to continue it.")
        parser.add_class_arguments(TrainConfig)
    else:
        _add_options(parser, verb)
    try:
        given = parser.parse_args(tidied(arguments, parser))
    except ArgumentError as error:
        raise FovealError(_one_line(error, parser)) from None
    options = given.as_dict()
    del options["config"]
    for word in (verb.words or "").split():
        if options[word] is None:
            del options[word]
    for free in ("data_options", "model_options"):
        if options.get(free):
            options[free] = {key: _read(value) for key, value in options[free].items()}
    if name == "train":
        options = {"resume": options.pop("resume"), "config": TrainConfig(**options)}
    result = verb.run(**options)
    return result if isinstance(result, int) else 0


def _read(value: Any) -> Any:
    """A number or word given after an option of no declared type."""
    import yaml

    return yaml.safe_load(value) if isinstance(value, str) else value


def _add_options(parser: ArgumentParser, verb: Verb) -> None:
    """One option a parameter. jsonargparse's own way would import what the function's file imports for its types."""
    from docstring_parser import parse

    described = {p.arg_name: p.description for p in parse(verb.run.__doc__ or "").params}
    for name, parameter in inspect.signature(verb.run).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, str):
            kind = eval(kind, verb.run.__globals__)  # as typing.get_type_hints does, for the parameters alone
        needed = parameter.default is inspect.Parameter.empty
        if name not in (verb.words or "").split():
            rest: dict[str, Any] = {"required": True} if needed else {"default": parameter.default}
            parser.add_argument(f"--{name}", type=kind, help=described[name], **rest)
        elif get_origin(kind) is list:
            parser.add_argument(name, type=get_args(kind)[0], help=described[name], nargs="+")
        else:
            count: dict[str, Any] = {} if needed else {"nargs": "?"}
            parser.add_argument(name, type=kind, help=described[name], **count)


def tidied(arguments: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Arguments as people write them, in the form jsonargparse takes.

    ``--batch-size 8`` becomes ``--batch_size=8``, a lone ``--pretrained`` gets ``=true``, and an option that
    takes a list may be repeated. A config file comes first, so that every other option overrides it.
    """
    types = {option: action for action in parser._actions for option in action.option_strings}
    tidy: list[str] = []
    lists: dict[str, list[str]] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*tidy, *_joined(lists), word, *left]
        if not word.startswith("--"):
            tidy.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        kind = str(getattr(types.get(name.partition(".")[0]), "_typehint", "")).replace(
            "collections.abc.Sequence", "list"
        )
        takes_value = name.partition(".")[0] in types and name not in ("--help", "--print_config")
        if takes_value and not equals:
            if "bool" in kind:
                value = left.pop(0) if left and left[0].lower() in ("true", "false") else "true"
            elif left and not (left[0].startswith("--") and len(left[0]) > 2):
                value = left.pop(0)
            else:
                raise FovealError(f"{name} needs a value")
            equals = "="
        if "list[str]" in kind and equals and not value.startswith("["):
            lists.setdefault(name, []).append(value)
        elif name == "--config":
            tidy.insert(0, name + equals + value)
        else:
            tidy.append(name + equals + value)
    return [*tidy, *_joined(lists)]


def _joined(lists: dict[str, list[str]]) -> list[str]:
    return [f"{name}={json.dumps(values)}" for name, values in lists.items()]


def _one_line(error: ArgumentError, parser: ArgumentParser) -> str:
    """jsonargparse's message without its nesting, and with the option that was probably meant."""
    message = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        name = unknown[1].partition("=")[0]
        options = [
            option
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        ]
        return f"unknown option {name}" + _perhaps(difflib.get_close_matches(name, options, n=1, cutoff=0.7))
    wrong = re.search(r'Parser key "([^"]+)": Expected an? (.*)\. Got value: (.*)$', message)
    wrong = wrong or re.search(
        r'Parser key "([^"]+)".*Expected an? (.*?) - Expected .*Given value: (.*)$', message
    )
    if wrong:
        name, kind, value = wrong.groups()
        kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.Literal", "one of ")
        dashes = "--" if f"--{name}" in parser._option_string_actions else ""
        return f"{dashes}{name} must be {kind}, got {value}"
    return re.sub(r'Parser key "([^"]+)":', r"--\1:", message)


def _perhaps(close: Sequence[str]) -> str:
    return f"; did you mean {close[0]}?" if close else ""


# ------------------------------------------------------------------------------------------------------ output


def overview() -> str:
    """What `foveal --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {_first_line(verb.run)}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: foveal VERB [options]",
            "",
            "Attention for convolutional networks, from paper to product.",
            "",
            *lines,
            "",
            "`foveal VERB --help` lists a verb's options; each also reads them from a file with --config FILE.yaml",
            "and shows them with --print_config.",
        ]
    )


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def complain(verb: str, text: str) -> int:
    """One line on the standard error output, begun by the verb once. Returns exit status 2."""
    line = " ".join(text.split())
    print(line if line.startswith(f"{verb}: ") else f"{verb}: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
