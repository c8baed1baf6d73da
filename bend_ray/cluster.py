"""The only place that knows how a Ray cluster is reached, asked, and listened to."""

import contextlib
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from bend_ray.config import Config
from bend_ray.errors import ArtifactError, BendError, ResourceError
from bend_ray.folders import Folder
from bend_ray.progress import Progress

RETRIES = 3
"""How often a killed worker, actor or task is started again."""


def connect(verbose: bool) -> bool:
    """Join the cluster that RAY_ADDRESS (or `ray start`) names, or start one on this machine; whether one was."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end of a loop is seen
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of a coming change otherwise
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it prints a banner whatever it is told
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Control-C ends the command, not the search alone
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a trial is our own file; others are asked for
    level = logging.INFO if verbose else logging.ERROR
    try:
        ray.init(log_to_driver=verbose, logging_level=level, include_dashboard=False, namespace="bend_ray")
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise ResourceError(
            f"RAY_ADDRESS: no Ray cluster can be joined or started at {address} ({' '.join(str(error).split())[:300]});"
            " is the address right, and RAY_AUTH_MODE=token set where the cluster asks for a token?"
        ) from None
    if len(ray.nodes()) == 1:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more to start, a second of each
    if not verbose:
        for name in ("ray", "ray.train", "ray.tune", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    node: Any = ray._private.worker._global_node
    return bool(node.is_head())


def nodes() -> int:
    """How many machines the cluster has."""
    return sum(node["Alive"] for node in ray.nodes())


def address() -> str:
    """Of the cluster, for other drivers' RAY_ADDRESS."""
    return str(ray.get_runtime_context().gcs_address)


def metrics_address() -> str:
    """Where Prometheus finds the metrics of the first node."""
    node = ray.nodes()[0]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


Want = tuple[str, str, int, float]
"""Key of the amount, resource, processes, amount for each."""


def wants(config: Config, stages: tuple[str, ...]) -> list[Want]:
    """What the stages ask for."""
    collect, sample = config.collect, config.sample
    asked = {
        "collect": [
            ("collect.cpus_per_worker", "CPU", collect.workers, collect.cpus_per_worker),
            ("collect.gpus_per_worker", "GPU", collect.workers, collect.gpus_per_worker),
        ],
        "search": [  # fewer trials at once are no failure; not one at all is
            ("search.cpus_per_trial", "CPU", 1, config.search.cpus_per_trial),
            ("search.gpus_per_trial", "GPU", 1, config.search.gpus_per_trial),
        ],
        "fit": [("diffusion.gpus", "GPU", 1, config.diffusion.gpus)],
        "sample": [
            ("sample.cpus_per_actor", "CPU", sample.actors, sample.cpus_per_actor),
            ("sample.gpus_per_actor", "GPU", sample.actors, sample.gpus_per_actor),
        ],
    }
    asked["evaluate"] = asked["sample"]
    if config.evaluate.bagging_members or config.evaluate.deep_ensemble_members:  # trained one by one, as chains are
        asked["evaluate"] = asked["sample"] + [(key, resource, 1, each) for key, resource, _, each in asked["collect"]]
    return [want for stage in stages for want in asked.get(stage, []) if want[3] > 0]


def preflight(config: Config, run: Folder, stages: tuple[str, ...]) -> None:
    """Raises ResourceError or ArtifactError in one sentence for what would otherwise wait for ever or fail late."""
    check_resources(wants(config, stages))
    if run.remote:
        return
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"--run-dir: {run.path} cannot be made ({error.strerror})") from None
    _check_visible(run)
    free = shutil.disk_usage(run.path).free
    if free < 1 << 28:
        raise ResourceError(f"--run-dir: only {free >> 20} MiB are free at {run.path}; at least 256 MiB are needed")


def room(resource: str, each: float) -> int:
    """How many processes that take ``each`` of a resource the cluster has room for; none spreads over two nodes."""
    return sum(int(amount / each + 1e-9) for amount in _amounts(resource))


def _amounts(resource: str) -> list[float]:
    return [node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"]]


def check_resources(wanted: list[Want]) -> None:
    """Raises ResourceError where more is asked for than the cluster has: Ray would wait for it for ever."""
    has = ray.cluster_resources()
    for key, resource, processes, each in wanted:
        largest = max(_amounts(resource))
        if room(resource, each) < processes:
            raise ResourceError(
                f"{key}: {processes} x {each:g} {resource} asked for, but the cluster has"
                f" {has.get(resource, 0.0):g} (at most {largest:g} on one node); {_less(key)}"
            )


def _less(key: str) -> str:
    counts = {"collect": "collect.workers", "sample": "sample.actors", "serve": "serve.replicas"}
    count = counts.get(key.split(".")[0])
    return f"lower {key}" + (f" or {count}" if count else "")


def _check_visible(run: Folder) -> None:
    """A local path is fine on one node, and on several where all of them see the same folder."""
    own = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    if not others:
        return
    marker = f"visible-{uuid.uuid4().hex}"
    run.write(marker, b"")
    try:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        options = [_sees.options(num_cpus=0, scheduling_strategy=strategy(node, soft=False)) for node in others]
        if not all(ray.get([option.remote(str(run.path / marker)) for option in options])):
            raise ResourceError(
                f"--run-dir: {run.path} is not the same folder on all {len(others) + 1} nodes of the cluster;"
                " give a shared folder or a URI such as s3://bucket/run"
            )
    finally:
        run.delete(marker)


@ray.remote
def _sees(path: str) -> bool:
    return Path(path).exists()


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
    return torch.device("cuda")


@contextlib.contextmanager
def pool(kind: type, actors: int, cpus: float, gpus: float, *arguments: Any) -> Iterator[ActorPool]:
    """Actors of class ``kind``, each made from ``arguments`` (paths, not tensors) again if it dies; Ray's exceptions
    come out as ours."""
    remote: Any = ray.remote(kind).options(num_cpus=cpus, num_gpus=gpus, max_restarts=RETRIES, max_task_retries=RETRIES)
    handles = [remote.remote(*arguments) for _ in range(actors)]
    try:
        yield ActorPool(handles)
    except ray.exceptions.RayError as error:
        raise plainly(error) from error
    finally:
        for handle in handles:
            ray.kill(handle)


class _Board:
    """An actor where workers say how far they are and why they stopped; the driver reads it."""

    def __init__(self) -> None:
        self.done: dict[str, tuple[float, float]] = {}
        self.failure: BendError | None = None

    def tell(self, unit: str, done: float, total: float) -> None:
        self.done[unit] = (done, total)

    def fail(self, error: BendError) -> None:
        self.failure = self.failure or error

    def failed(self) -> BendError | None:
        return self.failure

    def read(self) -> dict[str, tuple[float, float]]:
        return self.done


@contextlib.contextmanager
def board(show: Progress, units: Callable[[dict[str, tuple[float, float]]], int]) -> Iterator[Any]:
    """A board for the workers of one stage; ``units`` turns what they said into a count for ``show``.

    A BendError that a worker put there is raised when the block ends.
    """
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
    stop = threading.Event()

    def listen() -> None:
        last = False
        while not last:
            last = stop.wait(0.2)
            with contextlib.suppress(ray.exceptions.RayError):
                show.update(units(ray.get(actor.read.remote(), timeout=5)))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield actor
    except Exception:
        if (failure := _failure(actor)) is not None:
            raise failure from None
        raise
    else:
        if (failure := _failure(actor)) is not None:
            raise failure
    finally:
        stop.set()
        listener.join()
        ray.kill(actor)


def _failure(actor: Any) -> BendError | None:
    with contextlib.suppress(ray.exceptions.RayError):
        failure: BendError | None = ray.get(actor.failed.remote(), timeout=10)
        return failure
    return None


@contextlib.contextmanager
def reporting(actor: Any) -> Iterator[None]:
    """In a worker: a BendError inside the block is put on the board, where Ray's retries cannot bury it."""
    try:
        yield
    except BendError as error:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(actor.fail.remote(error))
        raise


def plainly(error: Exception) -> BendError:
    """Ray's exception as one of ours: the BendError inside it, or a sentence that says what Ray said."""
    cause: BaseException | None = error
    while cause is not None:
        # The innermost: Ray's own wrapper is of our class as well, and says the whole traceback.
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, BendError) and not isinstance(cause, ray.exceptions.RayError):
            return cause
        cause = inner if isinstance(inner, BaseException) else None
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return ResourceError(f"a Ray process ran out of memory ({str(error).splitlines()[0]}); use fewer at once")
    if isinstance(error, ray.exceptions.OutOfDiskError):
        return ArtifactError("a node's disk is full; free some space and run the same command again")
    last = [line for line in str(error).splitlines() if line.strip()][-1:] or [""]
    return ResourceError(
        f"Ray gave up after {RETRIES} tries ({type(error).__name__}: {last[0].strip()}); see --verbose"
    )
