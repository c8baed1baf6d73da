"""How a Ray cluster is reached, what it has, its processes, and its errors in plain words."""

import contextlib
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bend_ray.errors import ArtifactError, BendError, ResourceError
from bend_ray.progress import counted, say
from bend_ray.watch import interrupt

ANSWER_S = 5.0
"""How long a cluster's head may take to be connected to; after as long a word is said while Ray starts or joins one."""
RETRIES = 3
"""How often a killed worker, actor or task is started again."""


def connect(verbose: bool) -> bool:
    """Join the cluster that RAY_ADDRESS (or `ray start`) names, or start one on this machine; whether one was.

    Raises ResourceError where that cannot be done.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end of a loop is seen
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of a coming change otherwise
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it prints a banner whatever it is told
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Control-C ends the command, not the search alone
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial has none
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a trial is our own file; others are asked for
    if ray.is_initialized():
        return False
    level = logging.INFO if verbose else logging.ERROR
    arguments: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "include_dashboard": False}
    asked = os.environ.get("RAY_ADDRESS")
    waits = f"waiting for Ray at {asked}" if asked else "waiting for Ray to start on this machine"
    slow = threading.Timer(ANSWER_S, say, ("cluster", waits))
    slow.start()
    try:
        ray.init(address=_address(asked), namespace="bend_ray", **arguments)
    except Exception as error:  # Ray raises bare ones, too
        raise _unreached(asked, error) from None
    finally:
        slow.cancel()
    if len(nodes()) == 1:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more to start, a second of each
    if not verbose:
        for name in ("ray", "ray.train", "ray.tune", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        # `ray job stop`, a machine that goes down: the end is as by Control-C, where Ray's own way is to abort.
        signal.signal(signal.SIGTERM, interrupt)
    node: Any = ray._private.worker._global_node
    return bool(node.is_head())


def _address(asked: str | None) -> str | None:
    """None: Ray is to look at RAY_ADDRESS (``asked``) and at what `ray start` noted; "local" where the latter is no
    more.

    Raises ConnectionError where nobody listens at RAY_ADDRESS. Ray would ask for minutes.
    """
    if asked:
        if why := _deaf(asked):
            raise ConnectionError(why)
        return None
    noted = ray._private.utils.read_ray_address()
    if not noted or not (why := _deaf(noted)):
        return None
    gone = f"`ray start` had one at {noted}, which is no more ({why})"
    say("cluster", f"{gone}: one is started here; `ray stop` forgets it")
    return "local"


def _deaf(address: str) -> str:
    """Why nobody can be reached at HOST:PORT; empty where somebody can, or where the address is of another kind."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return ""


def _unreached(asked: str | None, error: Exception) -> ResourceError:
    """What keeps `connect` from the cluster at RAY_ADDRESS (``asked``), or from one of its own, as a sentence."""
    said = " ".join(str(error).split())[:300]
    if not asked and not isinstance(error, ConnectionError | RuntimeError | ValueError):
        return ResourceError(
            f"Ray does not start on this machine ({said}); it may be too busy: wait a little, and run the same command"
            " again"
        )
    return ResourceError(
        f"RAY_ADDRESS: no Ray cluster can be joined or started at {asked or 'this machine'} ({said}); is it up, the"
        " address right, and RAY_AUTH_MODE=token set where the cluster asks for a token?"
    )


def nodes() -> list[dict[str, Any]]:
    """The machines that the cluster has now."""
    return [node for node in ray.nodes() if node["Alive"]]


def others() -> str:
    """Who else is at work on the cluster, in words: served replicas, and other drivers' processes."""
    own, state = ray.get_runtime_context().get_job_id(), ray._private.state
    actors = state.actors(actor_state_name="ALIVE").values()
    served = sum(actor["ActorClassName"].startswith("ServeReplica:") for actor in actors)
    drivers = [
        f"process {job['DriverPid']} on {job['DriverIPAddress']}"
        for job in state.jobs()
        if not job["IsDead"] and job["JobID"] != own and "/ray/dashboard/" not in job["Entrypoint"]
    ]
    return ", ".join([counted(served, "served replicas")] * bool(served) + drivers) or "nobody that Ray tells of"


def scratch() -> str:
    """A folder for what Ray Train and Tune keep of their own and nobody reads; it goes when the cluster does."""
    node: Any = ray._private.worker._global_node
    return str(Path(node.get_session_dir_path()) / "bend_ray")


def address() -> str:
    """Of the cluster, for other drivers' RAY_ADDRESS."""
    return str(ray.get_runtime_context().gcs_address)


def metrics_address() -> str:
    """Where Prometheus finds the metrics of the first node."""
    node = nodes()[0]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


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


def own_error(error: Exception) -> BendError | None:
    """The BendError of ours that Ray's exception was raised for, if it was for one."""
    cause: BaseException | None = error
    while cause is not None:
        # The innermost: Ray's own wrapper is of our class as well, and says the whole traceback.
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, ray.exceptions.ActorDiedError) and cause.args:  # its constructor's error
            inner = cause.args[0]
        if isinstance(cause, BendError) and not isinstance(cause, ray.exceptions.RayError):
            return cause
        cause = inner if isinstance(inner, BaseException) else None
    return None


def plainly(error: Exception) -> BendError:
    """Ray's exception as one of ours: the BendError inside it, or a sentence that says what Ray said."""
    if (own := own_error(error)) is not None:
        return own
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return ResourceError(f"a Ray process ran out of memory ({str(error).splitlines()[0]}); use fewer at once")
    if isinstance(error, ray.exceptions.OutOfDiskError):
        return ArtifactError("a node's disk is full; free some space and run the same command again")
    return ResourceError(
        f"Ray gave up after {RETRIES} tries ({type(error).__name__}: {last_line(error)}); see --verbose"
    )


def last_line(error: Exception) -> str:
    """What a long message comes to."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [""])[-1]
