"""Nodes that die in each stage: the command goes on with the others or says what it lacks; the bits are the same."""

import shutil
import signal
from pathlib import Path

import pytest

from conftest import TOY, bits
from nodes import Nodes, nodes, three_nodes
from processes import Start, count, ended_well, start, wait_for, workers

__all__ = ["start", "three_nodes"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEARCHED = TOY | {"search": {"trials": 3, "concurrent": 1, "method": "random", "early_stop": False}}


def test_a_node_dies_in_every_stage(reference: Path, three_nodes: Nodes, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage, title, moment in (
        ("collect", "RayTrainWorker", lambda: count(run, "snapshots/chain-*.parquet") >= 1),
        ("fit", None, None),
        ("sample", "_Sampler", lambda: True),
        ("evaluate", "_Evaluator", lambda: True),
    ):
        process = start(stage, address=three_nodes.address)
        if moment is not None:
            dying = three_nodes.first_with_worker(title, moment, process)
            three_nodes.kill(dying)
            three_nodes.add()
        ended_well(process)
    assert bits(run) == bits(reference)


def test_a_node_dies_in_search(reference: Path, start: Start, tmp_path: Path) -> None:
    """On a head without CPUs, so that trials run on the nodes that die."""
    for name in ("undisturbed", "run"):
        for kind in ("base", "snapshots"):
            shutil.copytree(reference / kind, tmp_path / name / kind)
    with nodes(0, 1) as cluster:
        process = start("search", config=SEARCHED, address=cluster.address)
        for done in (0, 2):
            dying = cluster.first_with_worker(
                "ImplicitFunc", lambda done=done: count(tmp_path / "run", "search/trial-*.json") >= done, process
            )
            cluster.add()
            cluster.kill(dying)
        ended_well(process)
        run = tmp_path / "run"
        run.rename(tmp_path / "killed")
        (tmp_path / "undisturbed").rename(run)
        ended_well(start("search", config=SEARCHED, address=cluster.address))
    found = [(tmp_path / name / "search" / "best.yaml").read_text() for name in ("killed", "run")]
    assert found[0] == found[1]


def test_a_lost_node_that_nothing_replaces_ends_the_command(reference: Path, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with nodes(1, 1) as cluster:
        process = start("run", "--cluster.wait", "3", address=cluster.address)
        wait_for(lambda: count(run, "snapshots/chain-*.parquet") >= 1 and cluster.with_worker("RayTrain"), process)
        cluster.kill(cluster.others[0])
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert (
            "collect: nodes were lost and not replaced within 3 s; collect.cpus_per_worker: 2 x 1 CPU asked for, but"
            " the cluster has 1" in said
        )
        assert "Traceback" not in said
        cluster.add()
        said = ended_well(start(address=cluster.address))
        assert "the base is there already" in said
    assert bits(run) == bits(reference)


def test_elastic_workers_go_on_with_fewer(reference: Path, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with nodes(1, 1) as cluster:
        process = start(
            "run",
            "--collect.workers",
            "[1, 8]",
            address=cluster.address,
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15",  # until it gives up waiting for the node that has died
        )
        wait_for(lambda: count(run, "snapshots/chain-*.parquet") >= 1 and cluster.with_worker("RayTrain"), process)
        cluster.kill(cluster.others[0])
        wait_for(lambda: (run / "snapshots" / "_config.json").exists(), process)
        cluster.add()  # two actors are asked for to sample
        ended_well(process)
    assert bits(run) == bits(reference)


def test_a_hung_worker_is_killed_and_started_again(reference: Path, start: Start, tmp_path: Path) -> None:
    """Stopped, so that it does not even notice that it hangs."""
    run = tmp_path / "run"
    process = start("run", "--cluster.stall", "6")
    wait_for(lambda: count(run, "snapshots/chain-*.parquet") >= 1 and workers("RayTrainWorker"), process)
    hung = workers("RayTrainWorker")[0]
    hung.send_signal(signal.SIGSTOP)
    said = ended_well(process)
    assert f"process {hung.pid} has said nothing for 6 s (cluster.stall): killed" in said
    assert bits(run) == bits(reference)
