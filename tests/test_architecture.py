"""The layers of the house, read from the imports: nothing knows what is above it."""

import ast
import sys
from pathlib import Path

import foveal

ROOT = Path(foveal.__file__).parent

# from the ground up: a room may import the rooms of the lines below its own, and those beside it where named
GROUND = {"errors", "files", "statistics", "palette", "measure", "ops"}
ROOMS = {
    "errors": set(),
    "files": {"errors"},
    "statistics": {"errors"},
    "palette": {"errors"},
    "ops": {"errors"},
    "nn": {"errors", "ops"},
    "measure": {"errors", "ops", "nn"},
    "insertion": {"errors", "ops", "nn", "measure"},
}
ROOMS["fusion"] = GROUND | {"nn", "insertion"}
ROOMS["models"] = GROUND | {"nn", "insertion"}
ROOMS["checkpoint"] = ROOMS["models"] | {"models"}
ROOMS["published"] = ROOMS["checkpoint"] | {"checkpoint"}
ROOMS["bench"] = ROOMS["checkpoint"] | {"fusion"}
ROOMS["data"] = {"errors", "files"}
ROOMS["look"] = GROUND | {"nn", "insertion"}
ROOMS["train"] = set(ROOMS) - {"bench", "look"}
ROOMS["compare"] = set(ROOMS) - {"bench"}
ROOMS["cli"] = set(ROOMS)
# the verb `look` opens weights and images; what records, draws and scores does not
VERBS = {"look/images.py", "look/network.py", "look/serve.py"}
TORCH_ALONE = {"ops", "nn"}
ALLOWED_THERE = {"torch", "jaxtyping", "triton"}
FORBIDDEN_NAMES = {"utils", "misc", "helpers", "common", "core", "base"}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Full names of the modules a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively; say foveal...."
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "foveal" else {module}
    return names


def rooms_imported(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(file) if name.startswith("foveal.")}


def test_every_room_has_its_place():
    assert {room_of(file) for file in FILES} - {"__init__", "__main__", "py.typed"} <= set(ROOMS)


def test_no_room_knows_what_is_above_it():
    wrong = []
    for file in FILES:
        room = room_of(file)
        if room in ROOMS:
            allowed = ROOMS[room] | {room, "__version__"}
            if file.relative_to(ROOT).as_posix() in VERBS:
                allowed |= {"checkpoint", "data"}
            above = rooms_imported(file) - allowed
            wrong += [f"{file.relative_to(ROOT)} imports foveal.{name}" for name in sorted(above)]
    assert wrong == []


def test_ops_and_nn_import_torch_alone():
    wrong = []
    for file in FILES:
        if room_of(file) in TORCH_ALONE:
            tops = {name.split(".")[0] for name in imported(file)} - ALLOWED_THERE - {"foveal"}
            wrong += [
                f"{file.relative_to(ROOT)} imports {top}"
                for top in tops
                if top not in sys.stdlib_module_names
            ]
    assert wrong == []


def test_no_file_has_a_name_that_says_nothing():
    assert [
        str(file) for file in FILES if file.stem in FORBIDDEN_NAMES or file.parent.name in FORBIDDEN_NAMES
    ] == []
