"""Processes of the cluster: their threads and device, and the end of one that hangs."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bend_ray.errors import ResourceError


@dataclass(frozen=True)
class Process:
    """A process of the cluster, and when it was born: numbers are given out again."""

    node: str
    pid: int
    birth: str


def this_process() -> Process:
    return Process(ray.get_runtime_context().get_node_id(), os.getpid(), _birth(os.getpid()))


def end(process: Process) -> bool:
    """Kill it, wherever it is, even if it is stopped or hangs; whether it was still there."""
    with contextlib.suppress(ray.exceptions.RayError):
        return bool(ray.get(on(process.node, _kill).remote(process.pid, process.birth), timeout=10))
    return False


def on(node: str, task: Any) -> Any:
    """The remote function or class ``task``, to be run on that node alone, beside whatever runs there."""
    return task.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def threads(cpus: float) -> None:
    """Give this process its own number of threads: torch would otherwise take every core of the machine."""
    import torch

    torch.set_num_threads(max(1, int(cpus)))


def device(gpus: float) -> Any:
    """The device of a process that was promised ``gpus``. Raises ResourceError if the promise was not kept."""
    import torch

    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(
            f"a worker was promised {gpus:g} GPU and sees none; check the node's driver and torch build"
        )
    torch.backends.cudnn.deterministic = True  # else convolutions may add up gradients in any order
    return torch.device("cuda")


@ray.remote
def _kill(pid: int, birth: str) -> bool:
    if _birth(pid) != birth:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _birth(pid: int) -> str:
    """In ticks since the machine started; empty where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
