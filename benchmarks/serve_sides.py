"""The sides of benchmarks/serve.py, each a command with processes of its own."""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from common import BEND_RAY

from bend_ray.serving import proxy

HERE = Path(__file__).parent
START_S, STOP_S, LINGER_S = 300.0, 60.0, 5.0
PORTS = itertools.cycle(range(8100, 8400))  # below those that Linux gives away by itself


@dataclass(frozen=True)
class Side:
    """A server of all members (``loop``) or of the first one alone (``one``)."""

    words: Callable[[Path, int], list[Any]]
    models: str = "loop"
    haproxy: bool = False
    ongoing: int = 5
    """Of a replica of Ray Serve, whose default this is."""
    label: Callable[[Any], int] = lambda body: int(body["label"])

    def environment(self, folder: Path, scratch: Path) -> dict[str, str]:
        extra = {"RIVAL_FOLDER": str(folder), "RIVAL_MODELS": self.models, "RIVAL_ONGOING": str(self.ongoing)}
        extra |= {"XDG_CACHE_HOME": str(scratch / "cache")}
        extra |= {"BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
        if self.haproxy:  # where its files and ports are, and nothing else of our own settings
            ends = ("_ENABLE_HA_PROXY", "_LOC", "_SOCKET_PATH", "_BASE", "_FILE", "_PORT")
            files = scratch / "h"  # short, for sockets' paths
            shutil.rmtree(files, ignore_errors=True)
            files.mkdir()
            settings = proxy.settings(files)
            extra |= {name: value for name, value in settings.items() if name.endswith(ends)}
        return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | extra


def ours(*more: Any) -> Side:
    def words(folder: Path, port: int) -> list[Any]:
        return [BEND_RAY, "serve", folder, "--port", port, *more]

    return Side(words, label=lambda body: int(body["predictions"][0]["label"]))


def rival(name: str, python: str, models: str = "loop", haproxy: bool = False, ongoing: int = 5) -> Side:
    def words(folder: Path, port: int) -> list[Any]:
        if name == "bentoml":
            at = ["--working-dir", HERE, "--host", "127.0.0.1", "--port", port]
            return [python, "-m", "bentoml", "serve", "serve_rivals:Bento", *at]
        return [python, HERE / "serve_rivals.py", name, port]

    return Side(words, models, haproxy, ongoing)


def sides_here(scratch: Path, rivals_python: str | None) -> dict[str, Side]:
    sides = {
        "ours": ours(),
        "Ray Serve, loop": rival("ray", sys.executable),
        "Ray Serve, one model": rival("ray", sys.executable, "one"),
        "Ray Serve, 256 at once, loop": rival("ray", sys.executable, ongoing=256),
        "Ray Serve, 256 at once, one model": rival("ray", sys.executable, "one", ongoing=256),
        "Ray Serve + HAProxy, loop": rival("ray", sys.executable, haproxy=True),
        "Ray Serve + HAProxy, one model": rival("ray", sys.executable, "one", haproxy=True),
    }
    python = rivals_python or make_rivals(scratch / "rivals")
    for module, name in (("litserve", "LitServe, loop"), ("bentoml", "BentoML, loop")):
        if python and subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
            sides[name] = rival(module, python)
        else:
            print(f"{name}: left out, for {module} is not installed")
    return sides


def make_rivals(where: Path) -> str | None:
    """A virtual environment with LitServe and BentoML on top of what this Python has."""
    subprocess.run([sys.executable, "-m", "venv", where], check=True)
    site = next(where.glob("lib/python*/site-packages"))
    (site / "ours.pth").write_text(f"import site; site.addsitedir({str(Path(torch.__file__).parents[1])!r})\n")
    pip = subprocess.run([where / "bin" / "pip", "install", "--quiet", "litserve", "bentoml"], capture_output=True)
    if pip.returncode:
        print(f"pip cannot install litserve and bentoml ({pip.stderr.decode().strip().splitlines()[-1]})")
        return None
    return str(where / "bin" / "python")


def adopt_orphans() -> None:
    """Whatever a server starts stays our descendant (Linux's PR_SET_CHILD_SUBREAPER), so that none of it is missed."""
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):
        sys.exit("prctl: this benchmark needs Linux")


@contextlib.contextmanager
def serving(
    side: Side, folder: Path, request: bytes, scratch: Path, left: list[str] | None = None
) -> Iterator[tuple[int, int]]:
    """Port and process of a server that answers ``request``; on leaving, it and all of its family have ended.

    What the server itself would have left behind is added to ``left``.
    """
    port, log = free_port(), scratch / "server.log"
    environment = side.environment(folder, scratch)
    with log.open("wb") as out:
        words = list(map(str, side.words(folder, port)))
        process = subprocess.Popen(
            words, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=scratch, start_new_session=True
        )
    try:
        wait_answered(process, port, request)
        yield port, process.pid
    except BaseException:
        print(f"{' '.join(words)}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        gone = end(process)
        if left is not None:
            left += gone


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def wait_answered(process: subprocess.Popen[bytes], port: int, request: bytes) -> None:
    body = request.partition(b"\r\n\r\n")[2]
    question = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/x-npy"})
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(question, timeout=60).read()
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server does not answer (exit status {process.poll()})")


def end(process: subprocess.Popen[bytes]) -> list[str]:
    """SIGTERM for the server, and SIGKILL for what is still there some seconds after it is gone, which is told."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    family = psutil.Process().children(recursive=True)
    _, left = psutil.wait_procs(family, LINGER_S)
    names = []
    for one in left:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(word.rsplit("/", 1)[-1] for word in one.cmdline())[:100] or one.name())
            one.kill()
    psutil.wait_procs(left, STOP_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.1)
    return names
