#!/usr/bin/env bash
# Guess: once ray.cluster_resources() counts a node that has joined, an elastic training that is started after that
# begins with workers on it.
# Seen (ray 2.60.0, torch 2.13.0, CPU, Python 3.11): it begins without it. How many workers fit is counted not by the
# cluster but by Ray Data's _AutoscalingCoordinatorActor, which looks at the nodes once in 20 s (TICK_INTERVAL_S); it is
# detached, so a training before has left it with an older look. The training's own check for more room comes a minute
# later, so a short one never has the second worker. The first training on a cluster is right, for it starts the actor.
# Output seen: CPUs 2: elastic with 1 worker right after the node joined, with 2 half a minute later
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
python3 -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet "ray[train]==2.60.0" torch==2.13.0 numpy==2.4.6
export HOME="$where" RAY_TMPDIR="$where" RAY_TRAIN_METRICS_ENABLED=0 RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0
cd "$where"
"$where/venv/bin/python" - "$where" <<'END'
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

where = Path(sys.argv[1])
(where / "ray").mkdir()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)


def workers(name: str) -> int:
    """With how many workers an elastic training begins."""
    mark = where / name

    def train() -> None:
        mark.write_text(str(ray.train.get_context().get_world_size()))

    TorchTrainer(
        train,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=(1, 2)),
        run_config=RunConfig(storage_path=str(where / "results"), name=name),
    ).fit()
    return int(mark.read_text())


def joined() -> object:
    """A node more, from when the cluster counts its CPU."""
    node = cluster.add_node(num_cpus=1)
    while ray.cluster_resources()["CPU"] < 2:
        time.sleep(0.1)
    return node


assert workers("alone") == 1
found = []
for attempt in range(3):  # a look of the coordinator may come in between
    node = joined()
    found = [workers(f"at_once_{attempt}")]
    if found == [1]:
        break
    cluster.remove_node(node)
    time.sleep(25)
time.sleep(30)
found.append(workers("later"))
print(f"CPUs {ray.cluster_resources()['CPU']:.0f}: elastic with {found[0]} worker right after the node joined,", end=" ")
print(f"with {found[1]} half a minute later")
sys.exit(found != [1, 2])
END
