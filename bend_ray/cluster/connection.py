"""How a Ray cluster is reached, what it has, its processes, and its errors in plain words."""

import logging
import os
import signal
import socket
import threading
from typing import Any

import ray

from bend_ray.cluster import private
from bend_ray.cluster.watchdog import interrupt
from bend_ray.errors import ResourceError
from bend_ray.progress import counted, say

ANSWER_S = 5.0
"""How long a cluster's head may take to be connected to; after as long a word is said while Ray starts or joins one."""


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
    requested = os.environ.get("RAY_ADDRESS")
    waits = f"waiting for Ray at {requested}" if requested else "waiting for Ray to start on this machine"
    slow = threading.Timer(ANSWER_S, say, ("cluster", waits))
    slow.start()
    try:
        ray.init(address=_address(requested), namespace="bend_ray", **arguments)
    except Exception as error:  # Ray raises bare ones, too
        raise _unreached(requested, error) from None
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
    return private.is_head()


def _address(requested: str | None) -> str | None:
    """None: Ray is to look at RAY_ADDRESS (``requested``) and at what `ray start` noted; "local" where the latter is no
    more.

    Raises ConnectionError where nobody listens at RAY_ADDRESS. Ray would ask for minutes.
    """
    if requested:
        if why := _deaf(requested):
            raise ConnectionError(why)
        return None
    noted = private.noted_address()
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


def _unreached(requested: str | None, error: Exception) -> ResourceError:
    """What keeps `connect` from the cluster at RAY_ADDRESS (``requested``), or from one of its own, as a sentence."""
    reason = " ".join(str(error).split())[:300]
    if not requested and not isinstance(error, ConnectionError | RuntimeError | ValueError):
        return ResourceError(
            f"Ray does not start on this machine ({reason}); it may be too busy: wait a little, and run the same"
            " command again"
        )
    return ResourceError(
        f"RAY_ADDRESS: no Ray cluster can be joined or started at {requested or 'this machine'} ({reason}); is it up,"
        " the address right, and RAY_AUTH_MODE=token set where the cluster asks for a token?"
    )


def nodes() -> list[dict[str, Any]]:
    """The machines that the cluster has now."""
    return [node for node in ray.nodes() if node["Alive"]]


def other_drivers() -> str:
    """Who else is at work on the cluster, in words: served replicas, and other drivers' processes."""
    served = sum(name.startswith("ServeReplica:") for name in private.live_actors())
    listed = [counted(served, "served replicas")] * bool(served) + live_drivers()
    return ", ".join(listed) or "nobody that Ray tells of"


def live_drivers() -> list[str]:
    """Other drivers' processes on the cluster, in words."""
    this_job = ray.get_runtime_context().get_job_id()
    return [
        f"process {job['DriverPid']} on {job['DriverIPAddress']}"
        for job in private.drivers()
        if not job["IsDead"] and job["JobID"] != this_job and "/ray/dashboard/" not in job["Entrypoint"]
    ]


def scratch() -> str:
    """A folder for what Ray Train and Tune keep of their own and nobody reads; it goes when the cluster does."""
    return str(private.session_folder() / "bend_ray")


def address() -> str:
    """Of the cluster, for other drivers' RAY_ADDRESS."""
    return str(ray.get_runtime_context().gcs_address)


def metrics_address() -> str:
    """Where Prometheus finds the metrics of the first node."""
    node = nodes()[0]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
