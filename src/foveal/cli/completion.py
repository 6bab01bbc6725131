"""``foveal completion``: a script with which a shell completes commands, options and the values that are words.

The script holds the words of the version that wrote it, so that a shell answers at once. What asks the program at each
key press (argcomplete) starts Python every time, and what writes scripts (shtab) reads one tree of parsers, where
foveal makes the one parser that is needed, so that help is quick.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from foveal.cli.options import add_fields, make_parser, skipped_fields
from foveal.tasks import TASKS
from foveal.train.config import TrainConfig


@dataclass(frozen=True)
class Words:
    """What may follow the name of a command.

    Attributes:
        summary: what the command does.
        options: option -> the words it takes; none where it takes anything, such as a file.
        positional: words that stand alone.
    """

    summary: str
    options: dict[str, list[str]]
    positional: list[str]


def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a script that completes commands, options and their values in a shell.

    Args:
        shell: For bash, put eval "$(foveal completion bash)" into ~/.bashrc; for zsh, the same with zsh into ~/.zshrc,
            after compinit; for fish, foveal completion fish > ~/.config/fish/completions/foveal.fish.
    """
    words = all_words()
    print({"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[shell](words))
    return 0


def all_words() -> dict[str, Words]:
    """What can be typed, by command; of commands whose options depend on the task those of every task."""
    from foveal.cli import COMMANDS, first_line

    found = {}
    for name, command in COMMANDS.items():
        parser = make_parser(name, command, [], given_only=True)
        if command.options:
            if command.options == "training":
                add_fields(parser, TrainConfig, skip=skipped_fields(name), given_only=True)
            for task in TASKS.values():
                kind = task.Options if command.options == "training" else task.InferenceOptions
                add_fields(parser, kind, skip=skipped_fields(name), given_only=True)
        options, positional = {}, []
        for action in parser._actions:
            values = _values(action.dest, getattr(action, "_typehint", None))
            for option in action.option_strings:
                # --insert+ is jsonargparse's way to repeat an option; here it may be repeated as it is
                if option.startswith("--") and not option.endswith("+"):
                    options[option] = values
            positional += [] if action.option_strings else values
        found[name] = Words(first_line(command.run), options, positional)
    return found


def _values(name: str, kind: Any) -> list[str]:
    """The words that an option of this type takes."""
    if name == "task":
        return list(TASKS)
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if kind is bool:
        return ["true", "false"]
    return [value for inner in get_args(kind) for value in _values(name, inner)]


BASH = """\
_foveal() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} offered=
    # --task=segment is three words here
    [[ $word == "=" ]] && word=
    [[ $before == "=" ]] && before=${COMP_WORDS[COMP_CWORD-2]}
    [[ ${COMP_WORDS[COMP_CWORD]} == "=" ]] && before=${COMP_WORDS[COMP_CWORD-1]}
    if [[ $COMP_CWORD == 1 ]]; then
        offered="@COMMANDS@"
    else
        case "$command $before" in
@VALUES@
            *) case $command in
@OPTIONS@
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$offered" -- "$word"))
}
complete -o default -F _foveal foveal"""


def bash_script(words: dict[str, Words]) -> str:
    """A function of bash; what is no word of ours is completed as a file."""
    values = [
        f'            "{name} {option}") offered="{" ".join(taken)}" ;;'
        for name, one in words.items()
        for option, taken in one.options.items()
        if taken
    ]
    options = [
        f'                {name}) [[ $word == -* ]] && offered="{" ".join(one.options)}"'
        f' || offered="{" ".join(one.positional)}" ;;'
        for name, one in words.items()
    ]
    script = BASH.replace("@COMMANDS@", " ".join([*words, "--help", "--version"]))
    return script.replace("@VALUES@", "\n".join(values)).replace("@OPTIONS@", "\n".join(options))


def zsh_script(words: dict[str, Words]) -> str:
    """The function of bash, which zsh can use."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash_script(words)}"


def fish_script(words: dict[str, Words]) -> str:
    """One line for each command and each option."""
    lines = ["complete -c foveal -n __fish_use_subcommand -f"]
    for name, one in words.items():
        lines.append(
            f"complete -c foveal -n __fish_use_subcommand -f -a {name} -d {shlex.quote(one.summary)}"
        )
        there = f'-n "__fish_seen_subcommand_from {name}"'
        if one.positional:
            lines.append(f'complete -c foveal {there} -f -a "{" ".join(one.positional)}"')
        for option, taken in one.options.items():
            value = f' -x -a "{" ".join(taken)}"' if taken else " -r" if option != "--help" else ""
            lines.append(f"complete -c foveal {there} -l {option.removeprefix('--')}{value}")
    return "\n".join(lines)
