"""A cluster of several nodes on this machine, each with a raylet of its own, which die as machines do."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from processes import has_ended, when, workers

FAST = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""How soon the head notices that a node is gone."""


class Nodes:
    """A head with ``head`` CPUs and further nodes with one CPU each."""

    def __init__(self, head: int, others: int) -> None:
        self.scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        # Ray's own place for the address of a `Cluster`, which it expects there.
        Path(os.environ["RAY_TMPDIR"], "ray").mkdir(exist_ok=True)
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": head,
                "include_dashboard": False,
                "temp_dir": self.scratch,
                "_system_config": FAST,
            },
        )
        self.address = str(self.cluster.address)
        self.others: list[Any] = []
        for _ in range(others):
            self.add()

    def add(self, **more: Any) -> Any:
        """A node more, with one CPU unless told otherwise; it has joined when this returns."""
        self.others.append(self.cluster.add_node(**more))
        return self.others[-1]

    def with_worker(self, title: Any) -> Any:
        """A node but the head on which a process runs the actor or task ``title``; None where there is none."""
        return next((node for node in self.others if self.workers(node, title)), None)

    def first_with_worker(self, title: Any, moment: Callable[[], object], process: subprocess.Popen[str]) -> Any:
        """`with_worker` when ``moment`` comes, while ``process`` lives."""
        return when(moment, lambda: self.with_worker(title), lambda node: self.workers(node, title), process)

    @staticmethod
    def workers(node: Any, title: Any) -> list[psutil.Process]:
        """Processes of the node that run the actor or task ``title``."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return workers(title, _raylet(node).children(recursive=True))
        return []

    def kill(self, node: Any) -> None:
        """All its processes at once, without a word: a machine that has lost its power."""
        raylet = _raylet(node)
        for process in [*raylet.children(recursive=True), raylet]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.others.remove(node)
        end = time.monotonic() + 30
        while not has_ended(raylet):
            assert time.monotonic() < end
            time.sleep(0.01)
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # whatever state a test has left them in
            self.cluster.shutdown()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


@contextlib.contextmanager
def nodes(head: int, others: int) -> Iterator[Nodes]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    made = Nodes(head, others)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def three_nodes() -> Iterator[Nodes]:
    """A head and two more, with one CPU each."""
    with nodes(1, 2) as made:
        yield made
