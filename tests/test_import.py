"""What `import lowbit` must not bring with it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LATE = (
    "PIL",
    "datasets",
    "lightning_fabric",
    "matplotlib",
    "pyarrow",
    "sklearn",
    "tensorboard",
    "torchvision",
    "tyro",
)
"""Packages that cost a second each, and are imported where they are first needed."""


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after `code`."""
    report = "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def imported_packages(source: str) -> set[str]:
    """The top-level packages named in the import statements of `source`, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def test_import_is_lean() -> None:
    loaded = loaded_by("import lowbit; lowbit.convert")
    assert {"lowbit", "torch"} <= loaded
    assert loaded.isdisjoint(LATE), f"import lowbit also imports {sorted(loaded.intersection(LATE))}"


def test_the_check_sees_a_package_that_is_loaded() -> None:
    assert "PIL" in loaded_by("import lowbit, PIL.Image")


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_torchvision_is_never_imported(folder: str) -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "torchvision" in imported_packages(path.read_text(encoding="utf-8"))
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "source",
    ["import torchvision", "import torchvision.transforms as T", "def f():\n    from torchvision.io import read_image"],
)
def test_the_check_sees_every_form_of_import(source: str) -> None:
    assert "torchvision" in imported_packages(source)
