"""The command line, ``foveal COMMAND ...``: one function a command, whose signature and docstring are its options.

Nothing here imports torch before a command runs, so help appears at once. A mistake of the user's ends in one line
on the standard error output and exit status 2; Ctrl-C in 130; a bug in a traceback and 1.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from foveal.cli.options import did_you_mean, parse, quick_option
from foveal.errors import FovealError
from foveal.signals import stop_signals
from foveal.terminal import write_error


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        home: "module:function"; the module imports no torch.
        positional: parameters that take words without a dash.
        example: a call that makes sense.
        options: which dataclasses of options it takes beside its parameters: those of "training", or those of
            "inference" of the weights' task.
    """

    home: str
    positional: str = ""
    example: str = ""
    options: str = ""

    @property
    def run(self) -> Callable[..., Any]:
        """The function."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


HERE = "foveal.cli.commands"
COMMANDS = {
    "compare": Command(
        "foveal.compare:compare", example="foveal compare --data photos/ --seeds 8", options="training"
    ),
    "train": Command(
        f"{HERE}:train",
        example="foveal train --model resnet18 --data photos/ --insert cbam@residual:3,4",
        options="training",
    ),
    "eval": Command(
        f"{HERE}:evaluate",
        example="foveal eval --weights runs/train/x/weights/best.safetensors",
        options="inference",
    ),
    "predict": Command(
        "foveal.cli.predict:predict",
        positional="paths",
        example="foveal predict photo.jpg folder/ --weights FILE",
        options="inference",
    ),
    "check": Command(f"{HERE}:check", positional="data", example="foveal check photos/ --task detect"),
    "pack": Command("foveal.cli.pack:pack", positional="data out", example="foveal pack photos/ packed/"),
    "look": Command(
        "foveal.cli.look:look", positional="source", example="foveal look photo.jpg --weights FILE"
    ),
    "serve": Command("foveal.cli.serve:serve", example="foveal serve --weights FILE"),
    "export": Command(f"{HERE}:export", positional="weights", example="foveal export FILE --to onnx"),
    "convert": Command(
        "foveal.published.verb:convert",
        positional="source target",
        example="foveal convert in.pth out.safetensors",
    ),
    "push": Command(
        "foveal.cli.push:push",
        positional="weights name",
        example="foveal push runs/train/x/weights/best.safetensors ann/leaves --license apache-2.0",
    ),
    "plan": Command(
        f"{HERE}:show_plan", positional="model", example="foveal plan resnet50 --insert cbam@residual:3,4"
    ),
    "list": Command(f"{HERE}:list_names", positional="pattern", example='foveal list "*cbam*"'),
    "doctor": Command("foveal.cli.doctor:doctor", example="foveal doctor"),
    "completion": Command(
        "foveal.cli.completion:completion", positional="shell", example='eval "$(foveal completion bash)"'
    ),
    "bench": Command(f"{HERE}:bench", positional="what", example="foveal bench ops"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what `foveal` on the command line calls. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        # a file's name that the terminal cannot write ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    name = arguments[0] if arguments else "foveal"
    try:
        if not arguments or name in ("-h", "--help", "help"):
            print(overview(), flush=True)
            return 0 if arguments else 2
        if name == "--version":
            from foveal import __version__

            print(f"foveal {__version__}")
            return 0
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS)
            return print_error(
                "foveal", f"the command must be one of {', '.join(COMMANDS)}, got {name}{hint}"
            )
        command = COMMANDS[name]
        with stop_signals(interrupt), warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, name, set(), warnings.showwarning)
            status = command.run(**parse(name, command, arguments[1:]))
        return status if isinstance(status, int) else 0
    except SystemExit as request:
        # --help and --print_config
        return int(request.code or 0)
    except KeyboardInterrupt as stop:
        print_error(name, str(stop) or "stopped")
        return 130
    except BrokenPipeError:
        # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return print_error(name, f"{error.strerror}{where}" if error.strerror else str(error))
    except FovealError as error:
        return print_error(name, without_worker(str(error)))


def _show_warning(
    command: str,
    said: set[str],
    usual: Callable[..., None],
    message: Warning | str,
    category: type,
    filename: str,
    *rest: Any,
) -> None:
    """What foveal itself warns of is one line, once a command, without a place in its code."""
    if category is not UserWarning or not Path(filename).is_relative_to(Path(__file__).parents[1]):
        usual(message, category, filename, *rest)
    elif str(message) not in said:
        said.add(str(message))
        write_error(f"{command}: {message}")


def interrupt() -> None:
    """What Ctrl-C and SIGTERM do: the command ends with one line, and nothing is left half-written."""
    raise KeyboardInterrupt


def without_worker(text: str) -> str:
    """What went wrong in a reading process, without the traceback that a DataLoader puts into the error's text.

    Example:
        >>> without_worker("Caught FovealError in DataLoader worker process 0.\\nTraceback ...\\na.FovealError: b")
        'b'
    """
    if not text.startswith("Caught "):
        return text
    # the last one: what was caught on the way to it has a traceback of its own
    found = re.search(r".*\n[\w.]+: (.*)\Z", text, re.DOTALL)
    return text if found is None else found[1]


def overview() -> str:
    """What `foveal --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {first_line(command.run)}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: foveal COMMAND [options]",
            "",
            "Attention for convolutional networks, from paper to product.",
            "",
            *lines,
            "",
            "`foveal COMMAND --help` lists a command's options (with --task NAME, those of that task); each also reads",
            "them from a file with --config FILE.yaml and shows them with --print_config.",
        ]
    )


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]


def print_error(command: str, text: str) -> int:
    """One line on the standard error output. Returns exit status 2."""
    write_error(f"{command}: {text}")
    return 2


__all__ = ["COMMANDS", "Command", "main", "overview", "quick_option"]

if __name__ == "__main__":
    sys.exit(main())
