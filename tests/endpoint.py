"""A `bend-ray serve` as a user would start it, in a cluster of its own."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.serving.proxy import free_port
from conftest import BEND_RAY


@dataclass
class Endpoint:
    """A `bend-ray serve` in a cluster of its own."""

    url: str
    process: subprocess.Popen[bytes]
    command: list[str]
    environment: dict[str, str]
    runs: dict[str, Path]
    log: Path
    spare: dict[str, Ensemble] = field(default_factory=dict)

    def serve(self, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
        """A second command for the same port, which leaves nothing of its own behind."""
        words = [*self.command[:2], str(run), *self.command[3:], *more]
        out = subprocess.PIPE
        with subprocess.Popen(words, env=self.environment, text=True, stdout=out, stderr=out) as process:
            printed, errors = process.communicate(timeout=240)
        assert list(Path("/tmp").glob(f"bend-{process.pid}-*")) == []
        return subprocess.CompletedProcess(words, process.returncode, printed, errors)

    def replicas(self) -> list[psutil.Process]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if "ServeReplica" in " ".join(_words(process))]

    def expected(self, version: str) -> Ensemble:
        if not self.spare:
            for run in self.runs.values():
                ensemble = Ensemble.load(run)
                self.spare[ensemble.manifest.digest[:12]] = ensemble
        return self.spare[version]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@contextlib.contextmanager
def served(run: Path, scratch: Path, *more: str) -> Iterator[Endpoint]:
    """It answers when this begins, and when it ends nothing of it is left; ``more``: further words of the command."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "BEND_SERVE_TOKEN")}
    environment["XDG_CACHE_HOME"] = str(scratch)
    command = [BEND_RAY, "serve", str(run), "--port", str(port), *more]
    log = scratch / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        while "new one:" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Endpoint(f"http://127.0.0.1:{port}", process, command, environment, {"first": run}, log)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        _, alive = psutil.wait_procs(family, 20)
        for orphan in alive:
            orphan.kill()
    said = log.read_text()
    assert (code, [" ".join(_words(orphan)) for orphan in alive]) == (0, []), said
    assert "serve: stopped\n" in said, said
