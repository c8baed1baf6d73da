"""How a cluster is reached, and what is said where it is not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from bend_ray.cluster import connection, preflight
from bend_ray.errors import ResourceError
from bend_ray.serving.proxy import free_port
from conftest import BEND_RAY, TWO, changed

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the cluster's processes have no such module


def test_a_machine_too_busy_to_start_ray_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**arguments: object) -> None:
        raise Exception("The current node timed out during startup.\nThe GCS has become overloaded.")  # as Ray does

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=r"not start on this machine \(The current .* overloaded\.\); .* again$"):
        connection.connect(verbose=False)


def command(tmp_path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bend-ray run`, outside the tests' cluster."""
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TWO))
    known = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment
    return subprocess.run(
        [BEND_RAY, "run", "toy.yaml", *words], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=120
    )


def test_an_address_where_nobody_listens_is_said_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = command(tmp_path, RAY_ADDRESS=address)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"RAY_ADDRESS: no Ray cluster can be joined or started at {address} ([Errno 111]" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]


@pytest.mark.ray
def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:  # for sockets
        note = Path(scratch) / "ray" / "ray_current_cluster"
        note.parent.mkdir()
        note.write_text(address)
        done = command(tmp_path, "--dry-run", RAY_TMPDIR=scratch)
    assert done.returncode == 0, done.stderr
    assert f"cluster   `ray start` had one at {address}, which is no more ([Errno 111]" in done.stdout
    assert "2 x 1 CPU (collect.cpus_per_worker); the cluster has" in done.stdout


@pytest.mark.parametrize(
    ("address", "deaf"),
    [("auto", False), ("local", False), ("http://127.0.0.1:1", False), ("127.0.0.1:1", True), ("h:99999", True)],
)
def test_only_addresses_of_heads_are_tried(address: str, deaf: bool) -> None:
    assert bool(connection._deaf(address)) == deaf


class Held:
    def pid(self) -> int:
        return os.getpid()


@pytest.mark.ray
def test_who_waits_says_for_what_and_who_has_it(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.connect(verbose=False)
    monkeypatch.setattr(preflight, "RELEASED_S", 0.5)
    replica: Any = (
        ray.remote(type("ServeReplica:bend:bend", (Held,), {})).options(num_cpus=1).remote()
    )  # as Serve's are called
    other = "import os, ray, time; ray.init(); print('in', flush=True); time.sleep(300)"
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE, text=True) as driver:
        try:
            ray.get(replica.pid.remote())
            assert driver.stdout is not None and driver.stdout.readline() == "in\n"
            preflight.say_who_waits(changed(collect={"workers": 2}), "collect", said.append)
        finally:
            driver.kill()
            ray.kill(replica)
    (line,) = said
    assert line.startswith(
        "2 x 1 CPU asked for (collect.cpus_per_worker), 1 of 2 are free; also at work there: 1 served"
    )
    assert f"1 served replica, process {driver.pid} on " in line and line.endswith("; it begins when others have ended")
    assert f"process {os.getpid()} " not in line
