"""Processes of a run, real ones: started as a user would, found by what they do, and killed at a chosen moment."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from conftest import BEND_RAY, TOY

LIMIT_S = 300.0

Start = Callable[..., subprocess.Popen]
"""(stage and options, configuration, address of the cluster, further environment) to a driver's process."""


@pytest.fixture
def start(ray_cluster: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `bend-ray` on ``tmp_path/run`` as a process of its own, on the tests' common cluster or another."""
    started: list[subprocess.Popen] = []

    def start(*words: str, config: dict[str, Any] = TOY, address: str = ray_cluster, **more: str) -> subprocess.Popen:
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
        stage, *options = words or ("run",)
        command = [BEND_RAY, stage, str(tmp_path / "toy.yaml"), "--run-dir", str(tmp_path / "run"), *options]
        environment = os.environ | {"RAY_ADDRESS": address} | more
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:  # its pipe is closed, also where it has ended by itself
            process.kill()


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Poll until ``condition``; the moment must come while ``process`` lives."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, f"ended before the moment to kill came:\n{process.communicate()[0]}"
        assert time.monotonic() < end, "the moment to kill never came"
        time.sleep(0.005)


def workers(title: str, among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """Ray's processes that run the actor or task ``title``; Ray writes it into the command line."""
    found = []
    for process in psutil.process_iter() if among is None else among:
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
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
