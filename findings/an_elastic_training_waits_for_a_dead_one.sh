#!/usr/bin/env bash
# Guess: when a training's driver is killed, Ray ends its controller and workers, their CPUs are free within a second or
# two, and the next training starts at once, elastic or not.
# Seen (ray 2.60.0, torch 2.13.0, CPU, Python 3.11): the CPUs are free at once, and a training with a fixed number of
# workers takes them. An elastic one, ScalingConfig(num_workers=(1, 2)), asks Ray Data's _AutoscalingCoordinatorActor
# what it may have. That actor is detached, and a killed training has not cancelled its request there, so it is told
# nothing is left until the request expires: 180 s after it was last renewed. It says nothing meanwhile. So where a job
# is killed and sent again, the elastic trainer, which is there for clusters that come and go, is the slower one.
# Output seen: elastic, alone: 10 s; after a kill: CPUs free in 0 s, fixed 11 s, elastic 190 s
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
python3 -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet "ray[train]==2.60.0" torch==2.13.0 numpy==2.4.6
export HOME="$where" RAY_TMPDIR="$where" RAY_TRAIN_METRICS_ENABLED=0 RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0
cd "$where"
cat > train.py <<'END'
import sys
import time
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

address, mark, workers, seconds = sys.argv[1], sys.argv[2], eval(sys.argv[3]), float(sys.argv[4])
ray.init(address=address, log_to_driver=False)


def train() -> None:
    Path(mark).touch()
    time.sleep(seconds)


TorchTrainer(
    train,
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=workers),
    run_config=RunConfig(storage_path=f"{Path(mark).parent}/results", name=Path(mark).name),
).fit()
END
"$where/venv/bin/python" - "$where" <<'END'
import subprocess
import sys
import time
from pathlib import Path

import ray

where = sys.argv[1]
address = ray.init(address="local", num_cpus=2, include_dashboard=False).address_info["gcs_address"]


def started(name: str, workers: str, stays: float = 0.0) -> tuple[subprocess.Popen, float]:
    """A training in a process of its own, and after how many seconds its first worker was at work."""
    mark, start = Path(where, name), time.monotonic()
    words = [sys.executable, "train.py", address, str(mark), workers, str(stays)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not mark.exists():
        assert process.poll() is None and time.monotonic() - start < 400
        time.sleep(0.1)
    return process, time.monotonic() - start


def free() -> float:
    """Seconds until both CPUs are free."""
    start = time.monotonic()
    while ray.available_resources().get("CPU", 0) < 2:
        time.sleep(0.1)
    return time.monotonic() - start


first, alone = started("first", "(1, 2)")
first.wait()
killed, _ = started("killed", "2", stays=600.0)
killed.kill()
killed.wait()
freed = free()
fixed, of_fixed = started("fixed", "2")
fixed.wait()
again, _ = started("killed_again", "2", stays=600.0)
again.kill()
again.wait()
free()
elastic, of_elastic = started("elastic", "(1, 2)")
elastic.wait()
after = f"CPUs free in {freed:.0f} s, fixed {of_fixed:.0f} s, elastic {of_elastic:.0f} s"
print(f"elastic, alone: {alone:.0f} s; after a kill: {after}")
sys.exit(not (of_elastic > 120 > 60 > max(alone, of_fixed)))
END
