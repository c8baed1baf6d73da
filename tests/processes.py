"""Processes of a run, real ones: started as a user would, found by what they do, and killed at a chosen moment."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from conftest import BEND_RAY, TWO

LIMIT_S = 300.0
RECHECK_S = 0.1
"""How often it is looked whether a process is still there."""

Start = Callable[..., subprocess.Popen[str]]
"""(stage and options, configuration, address of the cluster, further environment) to a driver's process."""


@pytest.fixture
def start(ray_cluster: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `bend-ray` on ``tmp_path/run`` as a process of its own, on the tests' common cluster or another."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *words: str, config: dict[str, Any] = TWO, address: str = ray_cluster, **more: str
    ) -> subprocess.Popen[str]:
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


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Poll until ``condition``; the moment must come while ``process`` lives."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, f"ended before the moment to kill came:\n{process.communicate()[0]}"
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f"the moment to kill never came:\n{process.communicate()[0]}")
        time.sleep(0.005)


def title(kind: Any) -> str:
    """What Ray calls processes that run ``kind``: a remote function of ours, or the class of an actor."""
    return str(getattr(kind, "_function", kind).__name__)


def workers(kind: Any, among: Iterable[psutil.Process] | None = None, address: str = "") -> list[psutil.Process]:
    """Ray's processes that run ``kind``, one of ours (see `title`), or one of Ray's own by its name; Ray writes it into
    the command line. Those of the cluster at ``address`` (empty: at RAY_ADDRESS), or ``among`` these."""
    named = re.compile(rf"^ray::.*(?<![A-Za-z]){kind if isinstance(kind, str) else title(kind)}(?![a-z])")
    found = []
    for process in psutil.process_iter() if among is None else among:
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words and named.match(words[0]) and (among is not None or _is_of(process, address)):
                found.append(process)
    return found


def _is_of(process: psutil.Process, address: str) -> bool:
    """Whether it is of that cluster: others may run tests beside us."""
    raylet = process.parent()
    return raylet is not None and f"--gcs-address={address or os.environ['RAY_ADDRESS']}" in raylet.cmdline()


def when(
    moment: Callable[[], object],
    look: Callable[[], Any],
    still: Callable[[Any], object],
    process: subprocess.Popen[str],
) -> Any:
    """What ``look`` finds, when ``moment`` comes. It is looked for before, as that takes longer than a moment may last,
    and again where it is not ``still`` there."""
    found: list[Any] = []
    checked = 0.0

    def came() -> bool:
        nonlocal checked
        if time.monotonic() - checked > RECHECK_S:
            found[:] = found if found and still(found[0]) else [it for it in [look()] if it]
            checked = time.monotonic()
        return bool(found and moment())

    wait_for(came, process)
    return found[0]


def first_worker(kind: Any, moment: Callable[[], object], process: subprocess.Popen[str]) -> psutil.Process:
    """One of the processes of ``kind`` (see `workers`) that are there when ``moment`` comes."""
    return when(moment, lambda: next(iter(workers(kind)), None), lambda worker: workers(kind, [worker]), process)


def kill(victim: psutil.Process, process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # its work may have ended meanwhile
        victim.send_signal(signal.SIGKILL)
    wait_for(lambda: has_ended(victim), process)


def has_ended(victim: psutil.Process) -> bool:
    """Whether it is gone, also where it goes while it is asked."""
    try:
        return not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ended_well(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    return said


def count(run: Path, pattern: str) -> int:
    return len(list(run.glob(pattern)))
