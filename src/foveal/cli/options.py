"""From words on the command line to the arguments of a function.

A command's options are the parameters of its function, and where it says so the fields of `TrainConfig` and of a task's
dataclasses. jsonargparse checks types, reads ``--config`` files and prints help.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import textwrap
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from jsonargparse import ArgumentParser

from foveal.errors import FovealError
from foveal.hub import is_repository
from foveal.tasks import TASKS, task_named
from foveal.train.config import NOT_OF_COMPARISONS, TrainConfig

if TYPE_CHECKING:
    from foveal.cli import Command

FREE_OPTIONS = ("data_options", "engine_options", "model_options")
"""Options that take names of their own after a dot."""
HELP = ("-h", "--help")


def parse(name: str, command: Command, words: list[str]) -> dict[str, Any]:
    """The arguments for the function of a command.

    Raises:
        FovealError: an option is unknown, lacks its value, or has one of the wrong kind.
        SystemExit: help or the config was asked for, and has been printed.
    """
    kinds = option_classes(name, command, words)
    # what a comparison trains with is settled by its recipe where the person says nothing
    given_only = name != "train"
    parser = make_parser(name, command, kinds, given_only=given_only)
    try:
        given = parser.parse_args(normalize_args(words, parser))
    except ArgumentError as error:
        raise FovealError(error_line(error, parser)) from None
    options = given.as_dict()
    del options["config"]
    for positional in command.positional.split():
        if options[positional] is None:
            del options[positional]
    for free in FREE_OPTIONS:
        if options.get(free):
            options[free] = {key: _read(value) for key, value in options[free].items()}
    if not kinds:
        return options
    of_classes = {f.name for kind, _ in kinds for f in fields(kind)} - skipped_fields(name)
    own = {key: value for key, value in options.items() if key not in of_classes}
    rest = {key: value for key, value in options.items() if key in of_classes}
    if given_only:
        rest = {key: value for key, value in rest.items() if value is not None}
    if command.options == "inference":
        return {**own, "inference": rest}
    return {**own, **rest} if name == "compare" else {**own, "config": TrainConfig.from_dict(rest)}


def make_parser(
    name: str, command: Command, kinds: Iterable[tuple[type, str]], *, given_only: bool
) -> ArgumentParser:
    """The parser of a command with these dataclasses of options.

    Args:
        kinds, given_only: as `option_classes` gives them and `add_fields` takes them.
    """
    function = command.run
    parser = ArgumentParser(
        prog=f"foveal {name}",
        description=(function.__doc__ or "").strip().splitlines()[0],
        epilog=f"example: {command.example}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    add_parameters(parser, function, command.positional.split())
    for kind, task in kinds:
        add_fields(parser, kind, skip=skipped_fields(name), given_only=given_only, label=task)
    return parser


def option_classes(name: str, command: Command, words: Sequence[str]) -> list[tuple[type, str]]:
    """The dataclasses whose fields are options of this call, and the task that each belongs to ("" for all)."""
    if command.options == "training":
        task = quick_option(words, "task") or "classify"
        return [(TrainConfig, ""), (task_named(task).Options, task)]
    if command.options == "inference":
        weights = quick_option(words, "weights")
        if weights is None or any(word in HELP for word in words):
            return [(task.InferenceOptions, name) for name, task in TASKS.items()]
        task = _task_of(weights)
        return [(task_named(task).InferenceOptions, task)]
    return []


def _task_of(weights: str) -> str:
    """The task of a weights file; models by name classify."""
    from foveal.checkpoint import read_info

    named = Path(weights).exists() or is_repository(weights)
    return read_info(weights)["info"].get("task", "classify") if named else "classify"


def skipped_fields(name: str) -> set[str]:
    """Fields of `TrainConfig` that are no options of a command."""
    if name != "compare":
        return {"task_options"}
    return {"task_options", *NOT_OF_COMPARISONS}


def quick_option(words: Sequence[str], option: str) -> str | None:
    """The value of one option, from the words or from a config file among them, before anything is parsed.

    Example:
        >>> quick_option(["--epochs", "3", "--task=segment"], "task"), quick_option(["--epochs", "3"], "task")
        ('segment', None)
    """
    found = None
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = value if equals else words[number + 1] if number + 1 < len(words) else ""
        if name == "--config" and found is None:
            found = _from_config(following, option)
        elif name == f"--{option}":
            found = following
    return found


def _from_config(path: str, option: str) -> str | None:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        # the parser says what is wrong with it
        return None
    except yaml.YAMLError as error:
        reason = re.sub(r' in "<[a-z ]*string>"', "", " ".join(str(error).split()))
        raise FovealError(f"config must be a YAML file, got {path}: {reason}") from None
    value = content.get(option) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None


def _read(value: Any) -> Any:
    """A number or word given after an option of no declared type."""
    import yaml

    return yaml.safe_load(value) if isinstance(value, str) else value


# ----------------------------------------------------------------------------------------------------- what is offered


def add_parameters(parser: ArgumentParser, function: Callable[..., Any], positional: Sequence[str]) -> None:
    """One option for each parameter. jsonargparse's own way would import what the function's file imports for types."""
    from docstring_parser import parse as parse_docstring

    described = {p.arg_name: p.description for p in parse_docstring(function.__doc__ or "").params}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "config" or name == "inference" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        kind = parameter.annotation
        if isinstance(kind, str):
            # as typing.get_type_hints does, for the parameters alone
            kind = eval(kind, function.__globals__)
        needed = parameter.default is inspect.Parameter.empty
        if name not in positional:
            rest: dict[str, Any] = {"required": True} if needed else {"default": parameter.default}
            parser.add_argument(f"--{name}", type=kind, help=described[name], **rest)
        elif listed := [one for one in (kind, *get_args(kind)) if get_origin(one) is list]:
            several = "+" if needed else "*"
            parser.add_argument(name, type=get_args(listed[0])[0], help=described[name], nargs=several)
        else:
            count: dict[str, Any] = {} if needed else {"nargs": "?"}
            parser.add_argument(name, type=kind, help=described[name], **count)


def add_fields(
    parser: ArgumentParser, kind: type, *, skip: Iterable[str] = (), given_only: bool, label: str = ""
) -> None:
    """One option for each field of a dataclass.

    Args:
        given_only: leave out defaults, so that only what a person gives is there afterwards.
        label: a task, said before the description of its options.
    """
    hints, described = typing.get_type_hints(kind), field_docs(kind)
    for field in fields(kind):
        if field.name in skip or f"--{field.name}" in parser._option_string_actions:
            continue
        text = f"{label}: {described[field.name]}" if label else described[field.name]
        hint = hints[field.name]
        # a word of Python is no name of a field
        names = [f"--{name}" for name in (field.name, field.metadata.get("alias")) if name]
        if given_only:
            default = _default(field)
            shown = f" Default: {json.dumps(default)}." if label and default not in (None, [], False) else ""
            parser.add_argument(*names, type=hint | None, default=None, help=text + shown)
        else:
            parser.add_argument(*names, type=hint, default=_default(field), help=text)


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass.

    Example:
        >>> field_docs(TrainConfig)["accelerator"]
        'cpu, cuda, mps or auto.'
    """
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    found = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())  # pyright: ignore[reportAttributeAccessIssue]
    return found


# ----------------------------------------------------------------------------------------------- words as people write


def normalize_args(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Words as people write them, in the form jsonargparse takes.

    ``--batch-size 8`` becomes ``--batch_size=8``, a lone ``--pretrained`` gets ``=true``, and an option that
    takes a list may be repeated. A config file comes first, so that every other option overrides it.
    """
    types = {option: action for action in parser._actions for option in action.option_strings}
    normal: list[str] = []
    lists: dict[str, list[str]] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*normal, *_joined(lists), word, *left]
        if not word.startswith("--"):
            normal.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        kind = str(getattr(types.get(name.partition(".")[0]), "_typehint", ""))
        kind = kind.replace("collections.abc.Sequence", "list")
        takes_value = name.partition(".")[0] in types and name not in ("--help", "--print_config")
        if takes_value and not equals:
            if "bool" in kind and "Literal" not in kind:
                value = left.pop(0) if left and left[0].lower() in ("true", "false") else "true"
            elif left and not (left[0].startswith("--") and len(left[0]) > 2):
                value = left.pop(0)
            else:
                raise FovealError(f"{name} needs a value")
            equals = "="
        if "list[str]" in kind and equals and not value.startswith("["):
            lists.setdefault(name, []).append(value)
        elif name == "--config":
            normal.insert(0, name + equals + value)
        else:
            normal.append(name + equals + value)
    return [*normal, *_joined(lists)]


def _joined(lists: dict[str, list[str]]) -> list[str]:
    return [f"{name}={json.dumps(values)}" for name, values in lists.items()]


# -------------------------------------------------------------------------------------------------------------- errors


OTHER_NAMES = {
    "--model": ("--weights", "takes the name of a model with published weights, too"),
    "--weights": ("--from", "begins with the weights of a file"),
}
"""Options that one command has by the name that another has for something near."""


def error_line(error: ArgumentError, parser: ArgumentParser) -> str:
    """jsonargparse's message without its nesting, and with the option that was probably meant."""
    message = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        return _unknown_option(unknown[1].partition("=")[0], parser)
    key = re.search(r'Parser key "([^"]+)".*(?:not accepted|is not expected)', message) or re.search(
        r"(?:Key|Option) '([^']+)' is not (?:expected|accepted)", message
    )
    if key:
        return _unknown_option(f"--{key[1]}", parser)
    wrong = re.search(r'Parser key "([^"]+)".*Expected an? .*(?:Got|Given) value: (.*)$', message)
    if wrong:
        name, value = wrong.groups()
        # of a union all that it takes
        kinds = re.findall(r"Expected an? (.*?)(?=\. Got | - Expected | Given )", message)
        kinds = [re.sub(r"<class '(\w+)'>", r"\1", kind) for kind in kinds if "NoneType" not in kind]
        kind = " or ".join(kinds).replace("typing.Literal", "one of ")
        dashes = "--" if f"--{name}" in parser._option_string_actions else ""
        return f"{dashes}{name} must be {kind}, got {value}"
    missing = re.search(r"(?:required|arguments are required): (.+)$", message)
    if missing:
        positional = {action.dest for action in parser._actions if not action.option_strings}
        names = [n if n in positional else f"--{n.strip('-')}" for n in re.split(r"[, ]+", missing[1])]
        return f"{', '.join(names)} must be given"
    return re.sub(r'Parser key "([^"]+)":', r"--\1:", message)


def _unknown_option(name: str, parser: ArgumentParser) -> str:
    plain = name.removeprefix("--").partition(".")[0]
    for task, one in TASKS.items():
        for kind in (one.Options, one.InferenceOptions):
            if plain in {f.name for f in fields(kind)}:
                return f"{name} is an option of task {task} only"
    if plain in {action.dest for action in parser._actions if not action.option_strings}:
        return f"unknown option {name}; its value stands alone: {parser.prog} {plain.upper()}"
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    if not name.startswith("-"):
        meant = f"did you mean --data {name}?" if "--data" in known and Path(name).exists() else ""
        return f"unknown option {name}; {meant or 'options are written --name value'}"
    other, what = OTHER_NAMES.get(name, ("", ""))
    meant = f"; {other} {what}" if other in known else did_you_mean(name, known, cutoff=0.7)
    return f"unknown option {name}{meant}"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint at the known word that is nearest, or nothing.

    Example:
        >>> did_you_mean("trian", ["train", "eval"])
        '; did you mean train?'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
