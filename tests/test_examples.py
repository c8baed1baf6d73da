"""Examples run as they stand."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bend_ray.artifacts import read_manifest
from bend_ray.folders import Folder
from conftest import ROOT


@pytest.mark.ray
@pytest.mark.slow
def test_own_model_and_arrays(ray_cluster: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / "own_model.py"
    words = [sys.executable, str(script), str(tmp_path / "run")]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    labels, answers = (ast.literal_eval(line[len("answers ") :]) for line in ran.stdout.splitlines()[-2:])
    assert sum(a == b for a, b in zip(labels, answers, strict=True)) >= 7
    assert read_manifest(Folder(tmp_path / "run" / "report"), "report") is not None
