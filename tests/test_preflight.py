"""What cannot end well is said before it starts; what the autoscaler can bring is waited for."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from bend_ray.cluster import connection, preflight, resources
from bend_ray.config import Config
from bend_ray.errors import ResourceError
from bend_ray.serving.proxy import free_port
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from conftest import BEND_RAY, TWO, changed, ray_head
from nodes import nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def two_nodes(ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process joins a cluster of two nodes; the second has another torch, as far as its list of packages goes."""
    old = tmp_path / "packages" / "torch-1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    ray.shutdown()
    with nodes(1, 0) as made:
        made.add(env_vars={"PYTHONPATH": str(old.parent)}, num_gpus=4)
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        connection.connect(verbose=False)
        yield
        ray.shutdown()


def test_nodes_must_fit_each_other(two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = changed(), Folder(tmp_path / "run")
    with pytest.raises(ResourceError, match=r"torch: version 1\.0 on node 2 \(.*, 2\.\S+ on node this one"):
        preflight.check(config, run, ("collect",))
    assert list((tmp_path / "run").iterdir()) == []
    both = changed(
        collect={"workers": 2, "gpus_per_worker": 1}, sample={"actors": 2}
    )  # the head has no GPU, and the other node one CPU
    with pytest.raises(
        ResourceError, match=r"2 x 1 CPU with 1 GPU asked for, but nodes that have both have room for 1"
    ):
        preflight.check(both, run, ("collect",))
    resources.check(resources.wants(changed(collect={"gpus_per_worker": 1, "workers": [1, 8]}), ("collect",)))
    assert resources.bundles(resources.wants(both, ("collect", "fit", "sample"))) == [
        (2, {"CPU": 1.0, "GPU": 1.0}),
        (1, {"CPU": 1.0}),
        (2, {"CPU": 1.0}),
    ]
    real = preflight._compare

    def without_versions(run: Folder, seen: dict[str, Any], marker: str) -> None:
        first = next(iter(seen.values()))
        same = {where: preflight.Seen(first.versions, node.missing, node.free) for where, node in seen.items()}
        real(run, same, marker)

    monkeypatch.setattr(preflight, "_compare", without_versions)
    preflight.check(config, run, ("collect",))
    monkeypatch.chdir(tmp_path)  # a path that is another folder for each process
    with pytest.raises(ResourceError, match=r"--run-dir: /proc/self/cwd/own is not the same folder on all 2 nodes"):
        preflight.check(config, Folder("/proc/self/cwd/own"), ("collect",))
    (tmp_path / "data.npz").touch()
    own = changed(data={"name": None, "path": "/proc/self/cwd/data.npz"})
    with pytest.raises(ResourceError, match=r"^/proc/self/cwd/data\.npz: is not there on node 2"):
        preflight.check(own, run, ("collect",))


def test_disks_must_have_room(ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Config) -> None:
    connection.connect(verbose=False)
    run = Folder(tmp_path / "run")
    with pytest.raises(ResourceError, match=r"--run-dir: \d+ MiB are free at .*, and \d+ MiB are needed"):
        preflight.check(toy, run, ("collect",), size=1 << 60)
    monkeypatch.setattr(preflight, "SPARE", 1 << 60)
    with pytest.raises(ResourceError, match=r"only \d+ MiB are free on node this one"):
        preflight.check(toy, run, ("collect",))
    assert list((tmp_path / "run").iterdir()) == []


def collect(tmp_path: Path, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TWO))
    words = [BEND_RAY, "collect", str(tmp_path / "toy.yaml"), "--run-dir", str(tmp_path / "run"), *more]
    environment = os.environ | {"RAY_ADDRESS": address}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


def test_nodes_that_do_not_come_are_not_waited_for_for_ever(ray_cluster: str, tmp_path: Path) -> None:
    more = ("--cluster.allow_autoscale", "true", "--cluster.wait", "1", "--collect.workers", "3")
    ended = collect(tmp_path, ray_cluster, *more)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "collect   waiting for nodes, 0 of at most 1 s: 3 x {'CPU': 1.0} asked for" in ended.stdout
    assert "collect.workers, or raise cluster.wait: nothing came within 1 s" in ended.stderr


def test_the_autoscaler_is_waited_for(reference: Path, tmp_path: Path) -> None:
    """Ray's own, which starts further raylets on this machine in the place of machines."""
    port = free_port()
    (tmp_path / "scale.json").write_text(json.dumps(_scaling(f"{ray.util.get_node_ip_address()}:{port}")))
    words = (f"--port={port}", "--num-cpus=0", f"--autoscaling-config={tmp_path / 'scale.json'}")
    scaled = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with ray_head(*words, environment=scaled) as address:
        refused = collect(tmp_path, address)
        assert refused.returncode == 2 and "2 x 1 CPU asked for, but the cluster has 0" in refused.stderr
        ended = collect(tmp_path, address, "--cluster.allow_autoscale", "true", "--cluster.wait", "60")
    assert ended.returncode == 0, ended.stderr
    assert "collect   waiting for nodes, 0 of at most 60 s: 2 x {'CPU': 1.0}" in ended.stdout
    made, expected = (artifacts.load(Folder(run) / "snapshots", "snapshots") for run in (tmp_path / "run", reference))
    assert made == expected


def _scaling(address: str) -> dict[str, Any]:
    """What `cluster.yaml` says to a cloud, said to Ray's stand-in for one."""
    kinds = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    }
    provider = {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "toy",
        "provider": provider | {"gcs_address": address},
        "available_node_types": kinds,
        "head_node_type": "head",
        "max_workers": 3,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in commands},
    }
