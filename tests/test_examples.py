"""Examples run as they stand."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bend_ray.config import load
from bend_ray.data.datasets import load_dataset
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import choose
from bend_ray.store.artifacts import read_manifest
from bend_ray.store.folders import Folder
from conftest import ROOT

CONFIGURATIONS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if "\ndata:" in "\n" + path.read_text())
SHARED = ROOT.parent / "shared" / "data"


def test_configurations_are_found() -> None:
    assert {
        "digits",
        "digits_base",
        "fashion_mnist",
        "fashion_mnist_base",
        "fashion_mnist_gpu",
        "cifar10",
        "cifar10_base",
    } <= {path.stem for path in CONFIGURATIONS}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_configurations_fit_their_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in jobs/ loads, and its subset lies in its classifier; a graph of them is what runs of them take."""
    monkeypatch.chdir(ROOT)
    config = load(path, {"data.train_limit": "200", "data.test_limit": "50"} if "shared" in path.read_text() else {})
    if config.data.path and not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    dataset = load_dataset(config.data, config.seed)
    module = ModelSpec.of(config.classifier, dataset).build(config.seed)
    assert 0 < choose(module, config.collect.subset).D <= sum(value.numel() for value in module.parameters())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_real_data_from_end_to_end(ray_cluster: str, tmp_path: Path) -> None:
    """A ResNet's last block on real images, initialised anew, on kept features: the shipped configuration, small."""
    small: dict[str, dict[str, Any]] = {"data": {"train_limit": 300, "test_limit": 60}, "base": {"epochs": 1}}
    small |= {"collect": {"chains": 4, "held_out": 1, "epochs": 1, "accuracy_filter": None}}
    small |= {"diffusion": {"iterations": 20, "steps": 20}, "autoencoder": {"iterations": 20}}
    small |= {"sample": {"members": 4, "steps": 5}}
    keys = [f"--{section}.{key}={json.dumps(value)}" for section, of in small.items() for key, value in of.items()]
    command = [sys.executable, "-m", "bend_ray.cli", "run", "jobs/cifar10_base.yaml", "--run-dir", str(tmp_path), *keys]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["dataset"] == "cifar10" and report["classes"] == 10 and report["test_size"] == 60


@pytest.mark.ray
@pytest.mark.slow
def test_own_model_and_arrays(ray_cluster: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / "own_model.py"
    words = [sys.executable, str(script)]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    labels, answers = (ast.literal_eval(line[len("answers ") :]) for line in ran.stdout.splitlines()[-2:])
    assert sum(a == b for a, b in zip(labels, answers, strict=True)) >= 7
    assert read_manifest(Folder(tmp_path / "runs" / "own_model" / "report"), "report") is not None
