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

from bend_ray.cluster import failures
from bend_ray.cluster.heartbeat import Heartbeat
from bend_ray.store.artifacts import read_manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS, Kind
from bend_ray.workers.evaluate import Evaluator
from bend_ray.workers.fit import fit
from bend_ray.workers.sample import Sampler
from bend_ray.workers.train_rival import train_rival
from conftest import WHOLE, bits
from processes import Start, start, workers

__all__ = ["start"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAKES: dict[str, tuple[Kind, ...]] = {
    "collect": ("base", "snapshots"),
    "search": ("search",),
    "fit": ("generator",),
    "sample": ("ensemble",),
}
MAKES["evaluate"] = ("report",)
OURS = ("RayTrainWorker", "TrainController", "ImplicitFunc", fit, Sampler, Evaluator, train_rival, Heartbeat)
"""Of the processes that a run has, beside its driver."""
LIMIT_S = 300.0


START_S = 4.0
"""About what a command takes before its stage begins."""


def seconds(whole: Path, stage: str) -> float:
    """About how long ``stage`` takes as a command of its own; collect, with Ray Train's processes and the base."""
    ended = {name: (whole / kinds[-1] / ARTIFACTS[kinds[-1]].manifest).stat().st_mtime for name, kinds in MAKES.items()}
    if stage == "collect":
        return ended["collect"] - (whole / "base" / "README.md").stat().st_mtime + 3 * START_S
    before = [*MAKES][[*MAKES].index(stage) - 1]
    return ended[stage] - ended[before] + START_S


def without(whole: Path, run: Path, stage: str) -> None:
    """The undisturbed run as it was before ``stage``."""
    later = list(MAKES)[list(MAKES).index(stage) :]
    gone = {name for other in later for name in MAKES[other]}
    shutil.copytree(whole, run, ignore=lambda where, _: gone if where == str(whole) else ())


def victim(driver: subprocess.Popen[str], choose: random.Random) -> psutil.Process | None:
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


def test_a_kill_at_a_random_moment(kill: str, whole: Path, start: Start, tmp_path: Path) -> None:
    stage, seed = kill.split("-")
    choose = random.Random(int(seed))
    run, moment, killed = tmp_path / "run", choose.uniform(0.0, seconds(whole, stage)), None
    while killed is None:
        shutil.rmtree(run, ignore_errors=True)
        without(whole, run, stage)
        driver = start(stage, config=WHOLE)
        killed = killed_at(moment, driver, choose)
        moment *= 0.8  # it had ended before
    for _ in range(failures.RETRIES):
        said, _ = driver.communicate(timeout=LIMIT_S)
        if driver.returncode == 0:
            break
        driver = start(stage, config=WHOLE)
    assert driver.returncode == 0, said
    assert made(run, stage) == made(whole, stage)


def killed_at(moment: float, driver: subprocess.Popen[str], choose: random.Random) -> psutil.Process | None:
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
