#!/usr/bin/env bash
# Guess: a training with one worker and no data set is two processes, Ray Train's controller and the worker.
# Seen (ray 2.60.0, torch 2.13.0, CPU, Python 3.11): five actors beside the worker, each a process of its own with Ray
# and its libraries in it: TrainController, SynchronizationActor, PlacementGroupCleaner, and, although no data set was
# given, DatasetManager and Ray Data's _AutoscalingCoordinatorActor. The first four take 7 s of CPU time around a
# training of milliseconds, on one node with the metrics and the preemption watcher off. A trainer for something that
# takes seconds pays for them each time.
# Output seen:
#   beside RayTrainWorker: DatasetManager, PlacementGroupCleaner, SynchronizationActor, TrainController,
#   _AutoscalingCoordinatorActor
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
python3 -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet "ray[train]==2.60.0" torch==2.13.0 numpy==2.4.6
export RAY_TMPDIR="$where" RAY_TRAIN_METRICS_ENABLED=0 RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0
cd "$where"
"$where/venv/bin/python" - "$where" <<'END'
import re
import sys
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
where = sys.argv[1]


def train() -> None:
    import os
    import subprocess
    from pathlib import Path

    listed = subprocess.run(["ps", "--ppid", str(os.getppid()), "-o", "args="], capture_output=True, text=True).stdout
    Path(where, "titles").write_text(listed)


TorchTrainer(
    train,
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=1),
    run_config=RunConfig(storage_path=f"{where}/results", name="one"),
).fit()
titles = set(re.findall(r"^ray::(\w+)", Path(where, "titles").read_text(), re.MULTILINE))
beside = sorted(titles - {"RayTrainWorker", "IDLE", "DashboardAgent", "RuntimeEnvAgent"})
print("beside RayTrainWorker:", ", ".join(beside))
expected = {"DatasetManager", "PlacementGroupCleaner", "SynchronizationActor", "TrainController"}
expected |= {"_AutoscalingCoordinatorActor"}
sys.exit(not expected <= set(beside))
END
