"""Arrows point one way: nouns never import Ray, and no stage imports another but the pipeline."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "bend_ray"
ROOMS = ("weights", "generator", "ensemble", "data", "report", "serving")
NOUNS = sorted(path for room in ROOMS for path in (PACKAGE / room).glob("*.py"))
STAGES = sorted(path for path in (PACKAGE / "stages").glob("*.py") if path.stem not in ("__init__", "pipeline"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_there_is_something_to_check() -> None:
    assert len(NOUNS) > 12 and len(STAGES) >= 6


@pytest.mark.parametrize("path", NOUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nouns_import_neither_ray_nor_stages(path: Path) -> None:
    bad = [name for name in imported(path) if name.split(".")[0] == "ray" or name.startswith("bend_ray.stages")]
    assert bad == [] and "bend_ray.cluster" not in imported(path)


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.name)
def test_no_stage_imports_another(path: Path) -> None:
    assert [name for name in imported(path) if name.startswith("bend_ray.stages")] == []


def test_nouns_load_no_ray_at_run_time() -> None:
    modules = [f"bend_ray.{path.parent.name}.{path.stem}" for path in NOUNS if path.stem != "__init__"]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nsys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, bend_ray.cli\ntry: bend_ray.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
