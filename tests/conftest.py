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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock

from bend_ray.config import Config, Section, parse
from bend_ray.data.datasets import Dataset
from bend_ray.run import Run
from bend_ray.store.artifacts import read_manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS

ROOT = Path(__file__).parents[1]
BEND_RAY = str(Path(sys.executable).with_name("bend-ray"))

TOY: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 400, "test_limit": 120},
    "classifier": {"name": "convnet", "kwargs": {"width": 8}},
    "base": {"epochs": 2, "batch_size": 32, "cycles": 0},
    "collect": {
        "workers": 1,
        "chains": 5,
        "held_out": 1,
        "snapshots_per_chain": 2,
        "epochs": 6,
        "lr": 0.003,
        "trunk": "base",
        "subset": "norm+head",
    },
    "autoencoder": {"latent": 4, "iterations": 30},
    "diffusion": {"steps": 50, "iterations": 60, "hidden": 32},
    "sample": {"actors": 1, "members": 7, "block": 2, "steps": 5, "doubt": "none", "distance": "none"},
}
TWO: dict[str, Any] = TOY | {"collect": TOY["collect"] | {"workers": 2}, "sample": TOY["sample"] | {"actors": 2}}
"""The same on two workers and two actors: another process to start costs seconds, so it is for tests of spreading."""
WHOLE: dict[str, Any] = TWO | {
    "search": {"trials": 3, "concurrent": 1, "method": "random", "early_stop": False},
    "evaluate": {"bagging_members": 2},
}
"""That with a search and rivals."""

MINUTES = {
    "test_kills": 5.0,
    "test_walkthroughs": 5.0,
    "test_nodes": 4.0,
    "test_processes": 4.0,
    "test_pipeline": 3.0,
    "test_modes": 3.0,
    "test_serve": 2.5,
    "test_jobs": 2.0,
    "test_search": 2.0,
    "test_trunk": 1.3,
    "test_chains": 1.0,
    "test_transformers": 1.0,
}
"""About how long these take; others take less."""

pytest.register_assert_rewrite("endpoint", "nodes", "processes", "serving_bodies", "serving_requests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="how many random kills tests/faults/test_kills.py makes")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports Ray: tests that run side by side have a token and a place for Ray of their own, whatever
    is in ~/.ray and /tmp/ray. Ray's processes are as nice as others, which would else leave them no time."""
    scratch = tempfile.mkdtemp(prefix="rt-", dir="/tmp")  # sockets want a short path
    config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    os.environ |= {"RAY_TMPDIR": scratch, "RAY_worker_niceness": "0"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that none is left for the end when files are run side by side."""
    items.sort(key=lambda item: -MINUTES.get(item.path.stem, 0.0))


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


def run_of(dataset: Dataset, seed: int = 0, **sections: Section) -> Run:
    """The toy configuration with other ``sections``, on ``dataset``, in no folder."""
    return Run(changed().model_copy(update={"seed": seed, **sections}), loaded=dataset)


@pytest.fixture(scope="session")
def reference(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed run of the toy configuration, for others to be compared with. Copy it before you change it."""
    from bend_ray.stages import pipeline

    return once(tmp_path_factory, "reference", lambda run: pipeline.execute(Run(changed(), Folder(run))))


@pytest.fixture(scope="session")
def whole(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed run of `WHOLE`. Copy it before you change it."""
    from bend_ray.stages import pipeline

    def make(run: Path) -> None:
        for kind in ("base", "snapshots", "timings"):
            shutil.copytree(reference / kind, run / kind)
        pipeline.execute(Run(parse(Config, WHOLE, "whole"), Folder(run)))

    return once(tmp_path_factory, "whole", make)


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What ``make`` writes into a folder of this ``name``, once for all processes that run tests side by side."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.made").exists():
            make(root / name)
            (root / f"{name}.made").touch()
    return root / name


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A real cluster of one node with 2 CPUs in processes of its own, joined by RAY_ADDRESS; drivers may die on it."""
    # Nobody reads what its workers print, and no machine is to join: two processes less that are never idle.
    with ray_head("--num-cpus=2", "--port=0", "--include-log-monitor=false", "--no-monitor") as address:
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
        children = psutil.Process(head.pid).children(recursive=True)
        processes: list[psutil.Process | subprocess.Popen[str]] = [*children, head]  # no other cluster's
        for process in processes:
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
    for kind in ARTIFACTS:
        if kind != "report":
            manifest = read_manifest(folder / kind, kind)
            found[kind] = manifest and manifest.model_dump()
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    metrics.pop("cost")
    for baseline in metrics["baselines"].values():
        if baseline is not None:
            baseline.pop("seconds")
    return found | {"metrics": metrics}
