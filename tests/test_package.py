"""What a built wheel holds besides Python."""

import os
import tomllib

from bend_ray.serving.proxy import HERE
from conftest import ROOT


def test_every_file_that_is_no_python_is_package_data() -> None:
    package = ROOT / "bend_ray"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    packed = {path for pattern in tools["setuptools"]["package-data"]["bend_ray"] for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == {path for path in packed if path.is_file()}


def test_the_script_that_ray_starts_can_be_executed() -> None:
    assert os.access(HERE / "haproxy", os.X_OK)
