"""Nodes that die in each stage: the command goes on with the others or says what it lacks; the bits are the same."""

import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from bend_ray.workers.evaluate import Evaluator
from bend_ray.workers.sample import Sampler
from conftest import WHOLE, bits
from nodes import Nodes, nodes, three_nodes
from processes import Start, count, ended_well, first_worker, start, wait_for

__all__ = ["start", "three_nodes"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_node_dies_in_every_stage(reference: Path, three_nodes: Nodes, start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage, title, moment in (
        ("collect", "RayTrainWorker", lambda: count(run, "snapshots/chain-*.parquet") >= 1),
        ("fit", None, None),
        ("sample", Sampler, lambda: True),
        ("evaluate", Evaluator, lambda: True),
    ):
        process = start(stage, address=three_nodes.address)
        if title is not None and moment is not None:
            dying = three_nodes.first_with_worker(title, moment, process)
            three_nodes.kill(dying)
            three_nodes.add()
        ended_well(process)
    assert bits(run) == bits(reference)


def has_trials(run: Path, wanted: int) -> bool:
    return count(run, "search/trial-*.json") >= wanted


def test_a_node_dies_in_search(whole: Path, start: Start, tmp_path: Path) -> None:
    """On a head without CPUs, so that trials run on the nodes that die."""
    run = tmp_path / "run"
    for kind in ("base", "snapshots"):
        shutil.copytree(whole / kind, run / kind)
    with nodes(0, 1) as cluster:
        process = start("search", config=WHOLE, address=cluster.address)
        for done in (0, 2):
            dying = cluster.first_with_worker("ImplicitFunc", partial(has_trials, run, done), process)
            cluster.add()
            cluster.kill(dying)
        ended_well(process)
    assert (run / "search" / "best.yaml").read_text() == (whole / "search" / "best.yaml").read_text()


def test_a_lost_node_ends_the_command_or_leaves_fewer_workers(reference: Path, start: Start, tmp_path: Path) -> None:
    """Nothing replaces it: elastic workers go on with fewer; a fixed number of them is said to be missing."""
    run = tmp_path / "run"
    give_up = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}  # on the node that has died

    def has_base() -> bool:
        return (run / "base" / "config.json").exists()

    with nodes(1, 1) as cluster:
        # First, for Ray counts a node that joins later only after a while, and would start with one worker.
        process = start("run", "--collect.workers", "[1, 8]", address=cluster.address, **give_up)
        dying = cluster.first_with_worker("RayTrain", has_base, process)
        cluster.kill(dying)
        wait_for(lambda: (run / "snapshots" / "_config.json").exists(), process)
        cluster.add()  # two actors are asked for to sample
        ended_well(process)
        assert bits(run) == bits(reference)
        shutil.rmtree(run)
        process = start("run", "--cluster.wait", "3", address=cluster.address, **give_up)
        dying = cluster.first_with_worker("RayTrain", has_base, process)
        cluster.kill(dying)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert (
            "collect: nodes were lost and not replaced within 3 s; collect.cpus_per_worker: 2 x 1 CPU asked for, but"
            " the cluster has 1" in said
        )
        assert "Traceback" not in said


def test_a_hung_worker_is_killed_and_started_again(reference: Path, start: Start, tmp_path: Path) -> None:
    """Stopped, so that it does not even notice that it hangs."""
    run = tmp_path / "run"
    process = start("run", "--cluster.stall", "20")
    hung = first_worker("RayTrainWorker", lambda: count(run, "snapshots/chain-*.parquet") >= 1, process)
    hung.send_signal(signal.SIGSTOP)
    said = ended_well(process)
    assert f"process {hung.pid} has said nothing for 20 s (cluster.stall): killed" in said
    assert bits(run) == bits(reference)
