"""The layers of the house, read from the imports: nothing knows what is above it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import foveal

ROOT = Path(foveal.__file__).parent

# from the ground up: what each room may import of the others
GROUND = {
    "deprecation",
    "errors",
    "figure",
    "files",
    "folders",
    "image_files",
    "machine",
    "measure",
    "ops",
    "palette",
    "signals",
    "statistics",
    "terminal",
}
ROOMS = {
    "deprecation": set(),
    "errors": set(),
    "figure": set(),
    "files": set(),
    "folders": {"errors", "files"},
    "image_files": {"errors"},
    "machine": {"errors"},
    "statistics": {"errors"},
    "palette": {"errors"},
    "signals": set(),
    "terminal": set(),
    "model_info": {"errors"},
    "ops": {"errors"},
    "nn": {"errors", "ops"},
    "measure": {"errors", "ops", "nn"},
    "insertion": {"errors", "figure", "ops", "nn", "measure", "terminal"},
    "data": {"errors", "files", "image_files", "machine"},
}
ROOMS["fusion"] = GROUND | {"nn", "insertion"}
ROOMS["models"] = GROUND | {"nn", "insertion"}
ROOMS["hub"] = {"errors", "models"}
ROOMS["checkpoint"] = ROOMS["models"] | {"hub", "models"}
ROOMS["published"] = ROOMS["checkpoint"] | {"checkpoint"}
ROOMS["bench"] = ROOMS["checkpoint"] | {"fusion"}
ROOMS["tasks"] = GROUND | {"checkpoint", "data", "model_info", "models", "nn"}
ROOMS["sources"] = {"data", "errors"}
ROOMS["inference"] = GROUND | {
    "checkpoint",
    "data",
    "hub",
    "insertion",
    "model_info",
    "models",
    "sources",
    "tasks",
}
ROOMS["train"] = ROOMS["inference"] | {"nn"}
ROOMS["evaluate"] = ROOMS["train"] | {"inference", "train"}
ROOMS["evaluation_page"] = ROOMS["evaluate"] | {"evaluate"}
ROOMS["push"] = GROUND | {"checkpoint", "data", "hub", "insertion", "model_info", "models", "nn", "tasks"}
ROOMS["check"] = GROUND | {"data", "tasks"}
ROOMS["packing"] = GROUND | {"data", "tasks"}
ROOMS["predict"] = {"errors", "folders", "image_files", "inference", "signals", "sources"}
ROOMS["look"] = GROUND | {"data", "inference", "insertion", "nn", "tasks"}
ROOMS["compare"] = ROOMS["train"] | {"look", "train"}
ROOMS["export"] = ROOMS["evaluate"] | {"bench", "evaluate", "fusion", "look"}
ROOMS["cli"] = set(ROOMS)
TORCH_ALONE = {"ops", "nn"}
ALLOWED_THERE = {"torch", "jaxtyping", "triton", "numba", "llvmlite"}
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


def test_most_files_are_short():
    lengths = sorted(len(file.read_text(encoding="utf-8").splitlines()) for file in FILES)
    assert lengths[-1] <= 600, "one file, one idea"
    assert sum(length > 300 for length in lengths) <= len(lengths) // 10


# tests of what lies in no file of its own: the house as a whole, what is beside the source, journeys through a room
JOURNEYS = {
    "test_architecture.py", "test_contract.py", "test_docs.py", "test_docstrings.py", "test_notebooks.py",
    "test_public_names.py",
    "test_readme.py", "test_release.py", "test_site.py", "test_stability.py",
    "checkpoint/test_init.py",
    "cli/test_look.py", "cli/test_main.py", "cli/test_serve.py",
    "compare/test_compare.py", "insertion/test_survival.py", "look/test_default.py", "models/test_article.py",
    "models/test_sizes.py", "ops/kernels/test_interpreter.py", "look/page/test_page.py", "look/page/test_clips.py",
    "tasks/test_toy_task.py",
    "train/test_nodes.py",
}  # fmt: skip


def test_every_test_is_where_one_looks_for_it():
    """Beside its source in the same place, or named for its room or for a journey (run, families) through it."""
    tests, lost = Path(__file__).parent, []
    for test in sorted(tests.rglob("test_*.py")):
        place, name = test.relative_to(tests).parent, test.stem.removeprefix("test_")
        of_room = name in (place.name, "run", "families")
        there = (ROOT / place / f"{name}.py").exists() or (ROOT / place / name / "__init__.py").exists()
        named = str(test.relative_to(tests)) in JOURNEYS or place.name == "faults"
        lost += [] if there or of_room or named else [str(test.relative_to(tests))]
    assert lost == []


def test_no_room_is_without_tests():
    tests = Path(__file__).parent
    rooms = {room_of(file) for file in FILES} - {"__init__", "__main__"}
    tested = {path.name for path in tests.iterdir()} | {
        path.stem.removeprefix("test_") for path in tests.iterdir()
    }
    assert rooms - tested == SEEN_THROUGH_OTHERS


# small rooms, which the tests of the rooms that use them see
SEEN_THROUGH_OTHERS = {"deprecation", "errors", "figure", "model_info", "palette", "signals"}


def test_no_room_of_the_list_is_missing():
    """A room that does not exist any more must leave the list."""
    assert set(ROOMS) <= {room_of(file) for file in FILES}


def test_recording_attention_needs_no_task():
    """`foveal.watch` is for any network: what records, draws and scores knows neither weights files nor data sets."""
    files = ("recording", "watching", "changes", "geometry", "readers", "measures", "canvas", "draw", "plot")
    files += ("cam", "curves", "profile")
    wrong = {
        f"look/{name}.py imports foveal.{room}"
        for name in files
        for room in rooms_imported(ROOT / "look" / f"{name}.py")
        & {"inference", "tasks", "train", "checkpoint"}
    }
    assert wrong == set()


# what a distribution is called where it is not called as what one imports
DISTRIBUTIONS = {
    "PIL": "pillow",
    "docstring_parser": "docstring-parser",
    "faster_coco_eval": "faster-coco-eval",
    "huggingface_hub": "huggingface-hub",
    "lightning_fabric": "lightning-fabric",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# comes with torch for CUDA; where it is absent its kernels are
OPTIONAL = {"av", "pillow_heif", "ray", "submitit", "torch_fidelity", "triton", "wandb"}


def test_every_imported_package_is_declared_and_no_other():
    """What only an extra brings may be imported by the room of that name alone."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]

    def named(requirements):
        return {re.split(r"[\[<>=~! ]", text)[0] for text in requirements}

    extra = named(project["optional-dependencies"]["export"])
    tops = {"": set(), "export": set()}
    for file in FILES:
        tops["export" if room_of(file) == "export" else ""] |= {name.split(".")[0] for name in imported(file)}
    for room, found in tops.items():
        found -= set(sys.stdlib_module_names) | {"foveal", "__future__"} | OPTIONAL
        tops[room] = {DISTRIBUTIONS.get(top, top) for top in found}
    declared = named(project["dependencies"])
    assert tops[""] | tops["export"] - extra == declared
    # the exporter of torch.onnx wants onnxscript without being told
    assert extra - tops["export"] <= {"onnxscript"}
