"""Kills at random moments (seeded) over all stages; however often, the end is that of an undisturbed run.

`make test-slow` takes a few of them, `make faults` all: ``pytest tests/faults --kills 44``.
"""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from bend_ray import cluster
from bend_ray.artifacts import read_manifest
from bend_ray.folders import Folder
from conftest import TOY, bits
from processes import Start, start, workers

__all__ = ["start"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CONFIG = TOY | {
    "search": {"trials": 3, "concurrent": 1, "method": "random", "startup": 1, "early_stop": False},
    "evaluate": {"bagging_members": 2},
}
MAKES = {"collect": ("base", "snapshots"), "search": ("search",), "fit": ("generator",), "sample": ("ensemble",)}
MAKES["evaluate"] = ("report",)
OURS = ("RayTrainWorker", "TrainController", "ImplicitFunc", "_fit", "_Sampler", "_Evaluator", "_train_rival", "_Board")
"""Titles of the processes that a run has, beside its driver."""
LIMIT_S = 300.0


@pytest.fixture(scope="session")
def whole(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """An undisturbed run with a search and rivals, and how long each stage took as a command of its own."""
    run, seconds = tmp_path_factory.mktemp("whole") / "run", {}
    maker = start.__wrapped__(ray_cluster, run.parent)  # the fixture's own function
    begin = next(maker)
    for stage in MAKES:
        before = time.monotonic()
        said, _ = begin(stage, config=CONFIG).communicate(timeout=LIMIT_S)
        assert read_manifest(Folder(run) / MAKES[stage][-1], MAKES[stage][-1]) is not None, said
        seconds[stage] = time.monotonic() - before
    maker.close()
    return run, seconds


def without(whole: Path, run: Path, stage: str) -> None:
    """The undisturbed run as it was before ``stage``."""
    later = list(MAKES)[list(MAKES).index(stage) :]
    gone = {name for other in later for name in MAKES[other]}
    shutil.copytree(whole, run, ignore=lambda where, _: gone if where == str(whole) else ())


def victim(driver: subprocess.Popen, choose: random.Random) -> psutil.Process | None:
    """One of the run's processes that live now, the driver among them."""
    found = sorted((process for title in OURS for process in workers(title)), key=lambda process: process.pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        return choose.choice([psutil.Process(driver.pid), *found])
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill" in metafunc.fixturenames:
        stages = list(MAKES)
        kills = [f"{stages[number % len(stages)]}-{number}" for number in range(metafunc.config.getoption("kills"))]
        metafunc.parametrize("kill", kills)


def test_a_kill_at_a_random_moment(
    kill: str, whole: tuple[Path, dict[str, float]], start: Start, tmp_path: Path
) -> None:
    stage, seed = kill.split("-")
    choose = random.Random(int(seed))
    undisturbed, seconds = whole
    run, moment, killed = tmp_path / "run", choose.uniform(0.0, seconds[stage]), None
    while killed is None:
        shutil.rmtree(run, ignore_errors=True)
        without(undisturbed, run, stage)
        driver = start(stage, config=CONFIG)
        killed = killed_at(moment, driver, choose)
        moment *= 0.8  # it had ended before
    for _ in range(cluster.RETRIES):
        said, _ = driver.communicate(timeout=LIMIT_S)
        if driver.returncode == 0:
            break
        driver = start(stage, config=CONFIG)
    assert driver.returncode == 0, said
    assert made(run, stage) == made(undisturbed, stage)


def killed_at(moment: float, driver: subprocess.Popen, choose: random.Random) -> psutil.Process | None:
    """Kill one of the run's processes so many seconds after its start; None where it had ended by then."""
    when = time.monotonic() + moment
    while driver.poll() is None:
        if time.monotonic() > when and (found := victim(driver, choose)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.send_signal(signal.SIGKILL)
                return found
        time.sleep(0.005)
    return None


def made(run: Path, stage: str) -> object:
    """What a stage has left, but for seconds: manifests have the checksums of all other files."""
    if stage == "evaluate":
        return bits(run)
    if stage == "search":
        rows = pq.read_table(run / "search" / "trials.parquet").to_pylist()
        return [row | {"seconds": None} for row in rows], (run / "search" / "best.yaml").read_text()
    return [read_manifest(Folder(run) / kind, kind) for kind in MAKES[stage]]
