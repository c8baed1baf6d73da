"""The floor plan holds: arrows point down, without a circle, and Ray is met where it should be."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from floorplan import FLOORS, measured

PACKAGE = ROOT / "bend_ray"
PLAN = measured(PACKAGE)
WITH_RAY = {"stages", "workers", "cluster"}
WITHOUT_RAY = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in WITH_RAY and path.stem != "__init__"
)


def test_every_room_has_a_floor() -> None:
    assert {room for rooms in FLOORS for room in rooms} == PLAN.rooms and len(WITHOUT_RAY) > 70


def test_no_arrow_runs_back_up_and_there_is_no_circle() -> None:
    assert PLAN.back_up == [] and PLAN.circles == []


def test_only_the_driver_its_workers_and_the_cluster_import_ray() -> None:
    assert PLAN.ray == WITH_RAY


def test_files_and_functions_keep_their_size() -> None:
    assert PLAN.long_files == {} and PLAN.long_functions == {}


def test_an_arrow_up_a_circle_and_ray_in_the_wrong_room_are_seen(tmp_path: Path) -> None:
    for name, text in {
        "store/low.py": "def late():\n    from bend_ray.stages import high\n",
        "stages/high.py": "import bend_ray.store.low",
        "data/rows.py": "from ray import data",
    }.items():
        path = tmp_path / "bend_ray" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    plan = measured(tmp_path / "bend_ray")
    assert plan.back_up == [("store", "stages")] and plan.circles == [{"stages", "store"}] and plan.ray == {"data"}


@pytest.mark.parametrize("room", sorted({path.relative_to(PACKAGE).parts[0] for path in WITHOUT_RAY}))
def test_rooms_without_ray_load_none_at_run_time(room: str) -> None:
    """Nor through what they import."""
    paths = [path for path in WITHOUT_RAY if path.relative_to(PACKAGE).parts[0] == room]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nsys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, bend_ray.cli\ntry: bend_ray.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
