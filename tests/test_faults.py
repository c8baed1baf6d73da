"""SIGKILL of any process at several moments; the same command ends with the bits of an undisturbed run."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from conftest import BEND_RAY, TOY, bits

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LIMIT_S = 90.0


@pytest.fixture
def command(ray_cluster: str, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts the whole pipeline as a process of its own, on the cluster of the session."""
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    words = [BEND_RAY, "run", str(tmp_path / "toy.yaml"), "--run-dir", str(tmp_path / "run")]
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Poll until ``condition``; the moment must come while ``process`` lives."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, f"ended before the moment to kill came:\n{process.communicate()[0]}"
        assert time.monotonic() < end, "the moment to kill never came"
        time.sleep(0.005)


def workers(title: str) -> list[psutil.Process]:
    """Ray's processes that run the actor or task ``title``; Ray writes it into the command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words and words[0].startswith("ray::") and title in words[0]:
            found.append(process)
    return found


def first_worker(title: str, moment: Callable[[], object], process: subprocess.Popen) -> psutil.Process:
    """One of the processes ``title`` that are there when ``moment`` comes."""
    found: list[psutil.Process] = []
    wait_for(lambda: moment() and (found.extend(workers(title)) or found), process)
    return found[0]


def kill(victim: psutil.Process, process: subprocess.Popen) -> None:
    victim.send_signal(signal.SIGKILL)
    wait_for(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE, process)


def ended_well(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    return said


def count(run: Path, pattern: str) -> int:
    return len(list(run.glob(pattern)))


def test_killed_workers_of_collect(command: Callable, reference: Path, tmp_path: Path) -> None:
    run, process = tmp_path / "run", command()
    kept: dict[Path, int] = {}
    moments: list[Callable[[], object]] = [
        lambda: workers("RayTrainWorker"),
        lambda: count(run, "snapshots/chain-*.parquet") >= 1 and workers("RayTrainWorker"),
        lambda: count(run, "snapshots/chain-*.parquet") >= 3 and workers("RayTrainWorker"),
    ]
    for number, moment in enumerate(moments):
        wait_for(moment, process)
        victims = workers("RayTrainWorker")
        kill(victims[number % len(victims)], process)
        kept |= {path: path.stat().st_mtime_ns for path in run.glob("snapshots/chain-*.parquet")}
    ended_well(process)
    assert bits(run) == bits(reference)
    assert kept and all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_killed_fit_samplers_and_evaluators(command: Callable, reference: Path, tmp_path: Path) -> None:
    run, process = tmp_path / "run", command()
    moments: list[tuple[str, Callable[[], object]]] = [
        ("_fit", lambda: True),
        ("_Sampler", lambda: True),
        ("_Sampler", lambda: count(run, "ensemble/block-*") >= 1),
        ("_Evaluator", lambda: True),
    ]
    for title, moment in moments:
        kill(first_worker(title, moment, process), process)
    ended_well(process)
    assert bits(run) == bits(reference)


def test_killed_driver_in_every_stage(command: Callable, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kept: dict[Path, int] = {}
    moments: list[Callable[[], object]] = [
        lambda: workers("RayTrainWorker"),  # training the base, or about to
        lambda: (run / "base" / "config.json").exists(),
        lambda: count(run, "snapshots/chain-*.parquet") >= 2,
        lambda: (run / "snapshots" / "_config.json").exists() and workers("_fit"),
        lambda: (run / "generator" / "config.json").exists() and workers("_Sampler"),
        lambda: count(run, "ensemble/block-*") >= 1,
        lambda: (run / "ensemble" / "config.json").exists() and workers("_Evaluator"),
        lambda: (run / "report" / "metrics.json").exists(),
    ]
    for moment in moments:
        process = command()
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept |= {path: path.stat().st_mtime_ns for path in run.glob("snapshots/chain-*.parquet")}
    said = ended_well(command())
    assert bits(run) == bits(reference)
    assert len(kept) == TOY["collect"]["chains"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert "chains" not in said  # collected long ago: skipped without a word
    assert count(run, "**/.tmp-*") == 0 and not (run / ".ray").exists()
