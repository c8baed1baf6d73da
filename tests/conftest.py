"""A Ray cluster for the whole session, and toy configurations that go through every real part in seconds."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bend_ray.artifacts import DEPENDS, read_manifest
from bend_ray.config import Config, parse
from bend_ray.folders import Folder

ROOT = Path(__file__).parents[1]
BEND_RAY = str(Path(sys.executable).with_name("bend-ray"))

TOY: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 400, "test_limit": 120},
    "classifier": {"name": "convnet", "kwargs": {"width": 8}},
    "base": {"epochs": 2, "batch_size": 32},
    "collect": {"chains": 5, "held_out": 1, "snapshots_per_chain": 2, "epochs": 1, "lr": 0.01},
    "autoencoder": {"latent": 4, "iterations": 30},
    "diffusion": {"steps": 50, "iterations": 60, "hidden": 32},
    "sample": {"members": 7, "block": 2, "steps": 5},
}


pytest.register_assert_rewrite("endpoint", "nodes", "processes", "serving_bodies", "serving_requests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="how many random kills tests/faults/test_kills.py makes")


def pytest_configure() -> None:
    """Before anything imports Ray: the tests' cluster has a token of its own, whatever is in ~/.ray."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share the machine with Ray's processes, and threads that wait for each other are many times slower."""
    torch.set_num_threads(1)


@pytest.fixture
def toy() -> Config:
    return changed()


def changed(**sections: Any) -> Config:
    """The toy configuration with some keys of some sections changed."""
    raw = {name: dict(section) for name, section in TOY.items()}
    for name, section in sections.items():
        raw[name] = raw.get(name, {}) | section if isinstance(section, dict) else section
    return parse(Config, raw, "toy")


@pytest.fixture(scope="session")
def reference(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed run of the toy configuration, for others to be compared with. Copy it before you change it."""
    from bend_ray.stages import pipeline

    run = tmp_path_factory.mktemp("reference") / "run"
    pipeline.run(changed(), Folder(run))
    return run


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A real cluster of one node with 2 CPUs in processes of its own, joined by RAY_ADDRESS; drivers may die on it."""
    with ray_head("--num-cpus=2", "--port=0") as address:
        os.environ["RAY_ADDRESS"] = address
        yield address
        import ray as ray_module

        ray_module.shutdown()
        del os.environ["RAY_ADDRESS"]


@contextlib.contextmanager
def ray_head(
    *more: str, environment: Mapping[str, str] = os.environ, python: str | Path = sys.executable
) -> Iterator[str]:
    """The address of a cluster's head in processes of its own, with further words for `ray start`."""
    # A folder of its own: what looks for a cluster of this machine must not find this one. Sockets want a short path.
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    quiet = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    words = ["--head", "--block", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={scratch}", *more]
    head = subprocess.Popen(
        [python, "-m", "ray.scripts.scripts", "start", *words],
        cwd=scratch,
        env={**environment, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert head.stdout is not None
    said = next(line for line in head.stdout if "--address='" in line)
    drain = threading.Thread(target=head.stdout.read, daemon=True)  # a full pipe would stop it
    drain.start()
    try:
        yield said.split("--address='")[1].split("'")[0]
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:  # no other cluster's
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        drain.join()
        head.stdout.close()
        shutil.rmtree(scratch, ignore_errors=True)


def bits(run: Path) -> dict[str, Any]:
    """Everything in a run that must be the same bits whenever and wherever it is made."""
    folder = Folder(run)
    found: dict[str, Any] = {}
    for kind in DEPENDS:
        if kind != "report":
            manifest = read_manifest(folder / kind, kind)
            found[kind] = manifest and manifest.model_dump()
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    metrics.pop("cost")
    for baseline in metrics["baselines"].values():
        if baseline is not None:
            baseline.pop("seconds")
    return found | {"metrics": metrics}
