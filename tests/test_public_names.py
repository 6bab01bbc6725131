"""The public surface is one explicit list, and importing it costs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import foveal

HEAVY = {
    "timm",
    "torchvision",
    "lightning",
    "torchmetrics",
    "matplotlib",
    "scipy",
    "sklearn",
    "safetensors",
    "PIL",
}
HEAVY |= {"pandas", "pyarrow", "fastapi", "uvicorn", "rich", "jsonargparse", "onnx", "transformers"}


def test_the_list_is_what_the_type_checker_sees():
    """The names imported for the type checker, those in `__all__` and those that are there are the same."""
    tree = ast.parse(Path(foveal.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == set(foveal.__all__)
    assert list(foveal.__all__) == sorted(foveal.__all__)
    assert all(hasattr(foveal, name) for name in foveal.__all__)


def test_every_sub_package_is_reachable():
    """`import foveal; foveal.nn.CBAM` works, and no function hides a package of its name."""
    folder = Path(foveal.__file__).parent
    rooms = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    rooms -= {"__init__", "__main__", "__pycache__", "cli"}
    code = f"import foveal, types; assert all(isinstance(getattr(foveal, r), types.ModuleType) for r in {rooms!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert rooms & set(foveal.__all__) == set()


def test_every_public_name_explains_itself():
    assert [name for name in foveal.__all__ if not (getattr(foveal, name).__doc__ or "").strip()] == []


def test_a_public_name_imports_torch_and_nothing_heavier():
    code = (
        "import sys, torch; before = set(sys.modules); import foveal; foveal.insert, foveal.watch, foveal.save; "
        f"print(*sorted({HEAVY!r} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_the_package_does_not_wait_for_torch():
    code = "import sys, foveal; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
