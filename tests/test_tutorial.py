"""The tutorial as its reader would follow it: every bash block of docs/tutorial.md, in order, in one empty folder."""

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

from bend_ray.serving.front import free_port
from conftest import ROOT

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
LIMIT_S = 3600.0

# What is not as written, for the sake of others on the machine: servers listen at free ports, and `ray stop`, which
# would end every Ray there is, is left to the fixture below.
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


def blocks() -> list[str]:
    """The commands, block by block."""
    return re.findall(r"^```bash\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)


def script(ports: dict[str, int]) -> str:
    """All blocks as one script: variables and jobs of the shell last from block to block; the first failure ends it."""
    text = "\n".join(f"echo '== block {number}'\n{block}" for number, block in enumerate(blocks(), 1))
    for written, own in (("8000", ports["serve"]), ("8265", ports["dashboard"])):
        text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{own}")
    text = text.replace("bend-ray serve runs/mine", f"bend-ray serve runs/mine --port {ports['serve']}")
    return f"set -euo pipefail\n{RAY % ports}\n{text}"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A reader's: the repository's environment first on the path, a home of its own, no cluster known. What is still
    there at the end, and was started with it, is ended."""
    scratch = Path(tempfile.mkdtemp(prefix="tut-", dir="/tmp"))  # sockets want a short path
    mark = uuid.uuid4().hex
    reader = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    reader |= {"PATH": f"{Path(sys.executable).parent}:{reader['PATH']}", "PYTHONPATH": str(ROOT)}
    reader |= {"HOME": str(scratch), "RAY_TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "BEND_RAY_TUTORIAL": mark}
    reader.pop("XDG_CACHE_HOME", None)
    yield reader
    ended = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("BEND_RAY_TUTORIAL") == mark:
                process.kill()
                ended.append(process)
    psutil.wait_procs(ended, timeout=30)  # they may still write into the folder
    shutil.rmtree(scratch, ignore_errors=True)


def test_blocks_are_shell() -> None:
    assert len(blocks()) > 15
    for block in blocks():
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_every_block_runs_as_written(environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    ports = {name: free_port() for name in ("serve", "dashboard", "client")}
    said = Path(environment["HOME"]) / "said"
    with said.open("w") as output:  # a pipe would stay open as long as any process that was left behind
        words = ["bash", "-c", script(ports)]
        ran = subprocess.run(
            words, cwd=tmp_path, env=environment, stdout=output, stderr=output, timeout=LIMIT_S, check=False
        )
    text = said.read_text()
    assert ran.returncode == 0, text[-6000:]
    assert "refused with exit code 2" in text and text.count("aBEND (mean of probabilities)") >= 6, text
    assert '"class": "three"' in text and " are right; mean entropy" in text
    for run in ("digits", "mine", "mine-1"):
        assert (tmp_path / "runs" / run / "report" / "README.md").is_file()
