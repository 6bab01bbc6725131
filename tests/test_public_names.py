"""The public surface is one explicit list, and importing it costs torch alone."""

import subprocess
import sys

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


def test_the_list_is_what_the_package_offers():
    ours = {
        name for name in dir(foveal) if getattr(getattr(foveal, name), "__module__", "").startswith("foveal")
    }
    assert {name for name in ours if not name.startswith("_")} == set(foveal.__all__)
    assert foveal.__all__ == sorted(foveal.__all__)


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


def test_the_function_stays_in_its_place_whatever_is_imported_later():
    for early in ("", "foveal.insert; "):
        code = f"import foveal; {early}import foveal.insert.cost; from foveal.insert import sites, insert; "
        code += "assert foveal.insert is insert; assert foveal.sites is sites"
        subprocess.run([sys.executable, "-c", code], check=True)
