"""The public names as they are: parameters of functions and classes, options of commands. Run it to write the list."""

import inspect
import json
from importlib import import_module
from pathlib import Path

import foveal

LIST = Path(__file__).with_name("public_api.json")
WHOLE = ("nn", "train", "look", "measure", "published", "export", "push")
SINGLE = (
    "data.open_dataset", "compare.compare", "evaluate.evaluate", "inference.Predictor", "model_info.ModelInfo",
    "models.data_config",
)  # fmt: skip


def parameters(value) -> list[str]:
    """Names in their order: a star before those by keyword alone, a question mark after those with a default."""
    if isinstance(value, type) and issubclass(value, BaseException):
        return []
    found = []
    for one in inspect.signature(value).parameters.values():
        star = {one.KEYWORD_ONLY: "*", one.VAR_POSITIONAL: "*...", one.VAR_KEYWORD: "**..."}.get(one.kind, "")
        found.append(f"{star}{one.name}{'' if one.default is one.empty else '?'}")
    return found


def current() -> dict[str, list[str]]:
    """Name -> parameters; command -> options."""
    from foveal.cli import COMMANDS
    from foveal.cli.completion import all_words

    places = [("foveal", name) for name in foveal.__all__]
    places += [(f"foveal.{room}", name) for room in WHOLE for name in import_module(f"foveal.{room}").__all__]
    places += [(f"foveal.{text.rpartition('.')[0]}", text.rpartition(".")[2]) for text in SINGLE]
    names = {f"{room}.{name}": getattr(import_module(room), name) for room, name in places}
    listed = {name: parameters(value) if callable(value) else [] for name, value in names.items()}
    commands = {
        f"$ foveal {name}": [*COMMANDS[name].positional.split(), *sorted(one.options)]
        for name, one in all_words().items()
    }
    return dict(sorted((listed | commands).items()))


if __name__ == "__main__":
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in current().items())
    LIST.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
