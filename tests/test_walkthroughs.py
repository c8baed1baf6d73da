"""README.md and docs/tutorial.md as their readers would follow them: every bash block, in order, in one folder."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bend_ray.config import dump
from bend_ray.serving.proxy import free_port
from conftest import BEND_RAY, ROOT, changed
from test_docs import blocks

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
LIMIT_S = 3600.0

# What is not as written. For the sake of others on the machine servers listen at free ports, and `ray stop`, which
# would end every Ray there is, is left to `reader` below. For the sake of time `bend-ray run` has further keys, which
# make its runs smaller.
SMALLER = {
    "base.epochs": 8,
    "base.cycle_epochs": 1,
    "collect.chains": 12,
    "collect.held_out": 2,
    "autoencoder.iterations": 100,
    "diffusion.iterations": 300,
    "sample.members": 16,
}
BEND_RAY_RUN = """#!/bin/sh
case "$1" in
    run) shift; exec %(command)s run "$@" %(smaller)s ;;
    *) exec %(command)s "$@" ;;
esac
"""
RAY = """
ray() {
    case "$1" in
        start) command ray "$@" --port=0 --dashboard-port=%(dashboard)d --dashboard-agent-listen-port=0 \\
            --ray-client-server-port=%(client)d --min-worker-port=0 --max-worker-port=0 --disable-usage-stats ;;
        stop) ;;
        *) command ray "$@" ;;
    esac
}
"""


def script(shell: list[str]) -> str:
    """Blocks as one script: variables and jobs of the shell last from block to block; the first failure ends it."""
    ports = {name: free_port() for name in ("serve", "dashboard", "client")}
    text = "\n".join(f"echo '== block {number}'\n{block}" for number, block in enumerate(shell, 1))
    for written, port in (("8000", ports["serve"]), ("8265", ports["dashboard"])):
        text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{port}")
    text = re.sub(r"(bend-ray serve \S+)", rf"\1 --port {ports['serve']}", text)
    return f"set -euo pipefail\n{RAY % ports}\n{text}"


@contextlib.contextmanager
def reader() -> Iterator[dict[str, str]]:
    """A reader's environment: the repository's Python first on the path, a home of its own, no cluster known. What is
    still there at the end, and was started with it, is ended."""
    scratch = Path(tempfile.mkdtemp(prefix="walk-", dir="/tmp"))  # sockets want a short path
    mark = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = {"command": BEND_RAY, "smaller": " ".join(f"--{key} {value}" for key, value in SMALLER.items())}
    command = scratch / "bin" / "bend-ray"
    command.parent.mkdir()
    command.write_text(BEND_RAY_RUN % words)
    command.chmod(0o755)
    places = [str(command.parent), str(Path(sys.executable).parent), environment["PATH"]]
    environment |= {"PATH": ":".join(places), "PYTHONPATH": str(ROOT)}
    environment |= {"HOME": str(scratch), "RAY_TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "BEND_RAY_READER": mark}
    environment["RAY_worker_niceness"] = "0"  # others run tests beside us
    environment.pop("XDG_CACHE_HOME", None)
    try:
        yield environment
    finally:
        ended = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("BEND_RAY_READER") == mark:
                    process.kill()
                    ended.append(process)
        psutil.wait_procs(ended, timeout=30)  # they may still write into the folder
        shutil.rmtree(scratch, ignore_errors=True)


def follow(shell: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What these blocks print, run in ``folder``."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    log = Path(environment["HOME"]) / "log"
    with log.open("w") as output:  # a pipe would stay open as long as any process that was left behind
        words = ["bash", "-c", script(shell)]
        ran = subprocess.run(
            words, cwd=folder, env=environment, stdout=output, stderr=output, timeout=LIMIT_S, check=False
        )
    text = log.read_text()
    assert ran.returncode == 0, text[-6000:]
    return text


@pytest.mark.parametrize(("page", "more_than"), [(README, 3), (TUTORIAL, 15)], ids=lambda value: str(value)[-11:])
def test_blocks_are_shell(page: Path, more_than: int) -> None:
    shell = blocks(page, "bash")
    assert len(shell) > more_than
    for block in shell:
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_the_readme_begins_with_two_commands_of_the_makefile() -> None:
    """They are what CI runs: `.ci/run`, and `make run` by whoever tries it."""
    first = blocks(README, "bash")[0]
    targets = re.findall(r"^make (\w+) ", first, re.MULTILINE)
    assert targets == ["run", "test"] and len(first.splitlines()) == 2
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture
def clone(reference: Path, tmp_path: Path) -> Path:
    """The repository after `make run`, as far as the README uses it; the run is the toy configuration's."""
    for name in ("bend_ray", "examples", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "jobs" / "digits.yaml").write_text(dump(changed()))
    shutil.copytree(reference, tmp_path / "runs" / "digits")
    (yaml,) = blocks(README, "yaml")
    (tmp_path / "mine.yaml").write_text(yaml)
    return tmp_path


@pytest.mark.ray
@pytest.mark.slow
def test_every_block_of_the_readme_runs_as_written(clone: Path) -> None:
    """`bend-ray serve` leaves a token in the home folder, as `make run` does; the last block works without one, too."""
    _, *shell = blocks(README, "bash")
    with reader() as environment:
        text = follow(shell, clone, environment)
        assert (Path(environment["HOME"]) / ".ray" / "auth_token").is_file()
    assert "stripes: 573 training" in text and '"mutual_information":' in text, text
    assert text.count("aBEND (mean of probabilities)") == 3, text  # show, job, show
    with reader() as environment:
        assert not (Path(environment["HOME"]) / ".ray").exists()
        again = follow(shell[-1:], clone, environment)
    assert "succeeded" in text and "succeeded" in again, again


@pytest.mark.ray
@pytest.mark.slow
def test_every_block_of_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    with reader() as environment:
        text = follow(blocks(TUTORIAL, "bash"), tmp_path, environment)
    assert "refused with exit code 2" in text and text.count("aBEND (mean of probabilities)") >= 6, text
    assert '"class": "three"' in text and " are right; mean entropy" in text
    for run in ("digits", "mine", "mine-1"):
        assert (tmp_path / "runs" / run / "report" / "README.md").is_file()
