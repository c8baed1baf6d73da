"""Jobs for real: `ray job submit` and `ray job stop` to a cluster whose nodes have no bend_ray of their own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bend_ray.config import dump
from bend_ray.serving.proxy import free_port
from conftest import ROOT, bits, changed, ray_head
from processes import wait_for, workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LIMIT_S = 300.0


@dataclass
class Cluster:
    """Where jobs are sent, from which folder, and what the `ray` there is told."""

    folder: Path
    environment: dict[str, str]
    address: str
    """Of the cluster itself; jobs are sent to its dashboard."""

    def ray(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "ray.scripts.scripts", *words]

    def submit(self, name: str, entrypoint: str) -> subprocess.Popen[str]:
        """`ray job submit` as jobs/ shows it: it stays until the job ends, and prints its log."""
        options = ["--submission-id", name, "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"]
        return subprocess.Popen(
            self.ray("job", "submit", *options, "--", *entrypoint.split()),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self, name: str) -> None:
        subprocess.run(self.ray("job", "stop", name), env=self.environment, check=True, capture_output=True)


def nodes_python(where: Path) -> Path:
    """A Python that has all that this one has, but not bend_ray: what a cluster's nodes are."""
    venv.create(where, symlinks=True)
    python, packages = where / "bin" / "python", sysconfig.get_path("purelib")
    # What a .pth file names is searched, but its own .pth files are not read: an editable install is one of them.
    (where / f"lib/python3.{sys.version_info.minor}/site-packages/nodes.pth").write_text(packages)
    found = "from importlib.util import find_spec as f; print(f('ray') is not None, f('bend_ray') is not None)"
    if subprocess.run([python, "-c", found], cwd=where, env={}, capture_output=True).stdout != b"True False\n":
        pytest.skip("bend_ray is not installed editable, so nodes without it cannot be made")
    return python


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("bend_ray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "toy.yaml").write_text(dump(changed()))
    python = nodes_python(tmp_path_factory.mktemp("nodes"))
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {"PATH": f"{python.parent}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    port = free_port()
    words = ["--num-cpus=2", "--port=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    words += [f"--dashboard-port={port}", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"]
    with ray_head(*words, environment=environment, python=python) as address:
        found = Cluster(folder, environment | {"RAY_ADDRESS": f"http://127.0.0.1:{port}"}, address)
        end = time.monotonic() + LIMIT_S
        while subprocess.run(found.ray("job", "list"), env=found.environment, capture_output=True).returncode:
            assert time.monotonic() < end, "the dashboard does not answer"
        yield found


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, said


def chains(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.glob("snapshots/chain-*.parquet")}


def test_wrong_key_is_one_sentence_in_the_jobs_log(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = ended(cluster.submit("wrong", f"python jobs/collect.py toy.yaml --run-dir {run} --collect.chians 3"))
    assert code == 1, said
    assert "bend-ray: collect: unrecognized arguments: --collect.chians 3; did you mean --collect.chains?\n" in said
    assert "exit code 2" in said and "Traceback" not in said and not run.exists()


def test_stopped_job_goes_on_to_the_bits_of_a_plain_run(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    entrypoint = f"python jobs/pipeline.py toy.yaml --run-dir {run}"
    process = cluster.submit("stopped", entrypoint)
    wait_for(lambda: chains(run), process)
    for worker in workers("RayTrainWorker", address=cluster.address):
        worker.suspend()  # `ray job stop` takes a second to come, and must find chains that are not done
    cluster.stop("stopped")
    _, said = ended(process)
    kept = chains(run)
    assert "was stopped" in said and kept

    code, said = ended(cluster.submit("again", entrypoint))
    assert code == 0, said
    there = re.search(r"the base is there already, and (\d+) of 5 chains", said)
    assert there is not None and len(kept) <= int(there[1]) < 5, said
    assert "aBEND (mean of probabilities)" in said and "'again' succeeded" in said
    assert kept.items() <= chains(run).items()
    assert bits(run) == bits(reference)
