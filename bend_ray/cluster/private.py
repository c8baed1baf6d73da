"""What bend_ray uses of Ray that Ray does not promise to keep, all of it: each part has a test of its shape.

Where a public way exists it is taken instead. Versions: see the pin of Ray in pyproject.toml.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

_ANSWER_S = 10.0
"""Seconds within which an actor of Ray's own must answer."""


def is_head() -> bool:
    """Whether this driver's node is the head of its cluster: so of one that `ray.init` has just started."""
    return bool(_node().is_head())


def session_folder() -> Path:
    """Where Ray keeps a cluster's own files; it goes when the cluster does."""
    return Path(_node().get_session_dir_path())


def _node() -> Any:
    return ray._private.worker._global_node


def noted_address() -> str:
    """The address of the cluster that `ray start` noted on this machine; empty where it noted none."""
    return ray._private.utils.read_ray_address() or ""


def live_actors() -> list[str]:
    """Names of the classes of all actors that live on the cluster. The public way asks the dashboard, which need not
    run."""
    actors = ray._private.state.actors(actor_state_name="ALIVE").values()
    return [str(actor["ActorClassName"]) for actor in actors]


def drivers() -> list[dict[str, Any]]:
    """Jobs of the cluster, ended ones as well: JobID, DriverPid, DriverIPAddress, IsDead, Entrypoint."""
    jobs: list[dict[str, Any]] = ray._private.state.jobs()
    return jobs


def serve_port() -> int | None:
    """The port that Ray Serve listens at; None where it does not run."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.http_config.port


def call_in(actor: Any, function: Callable[[Any], Any]) -> Any:
    """A reference to what ``function`` returns for the object that ``actor`` is, in its process."""
    return actor.__ray_call__.remote(function)


def forget_requests() -> None:
    """Cancel what trainings have asked Ray's autoscaling coordinator for, which must all be of dead ones: it keeps such
    a request for three minutes after a kill, and an elastic training gets nothing meanwhile."""
    try:
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except ValueError:
        return  # nobody has asked it for anything yet

    def cancel_all(self: Any) -> None:
        for requester in [*self._ongoing_reqs]:
            self.cancel_request(requester)

    with contextlib.suppress(ray.exceptions.RayError):  # its node may be gone: then Ray starts another
        ray.get(call_in(coordinator, cancel_all), timeout=_ANSWER_S)


def builds_app(kind: type, method: str) -> type:
    """``kind``, a class for Ray Serve, whose ``method`` makes its ASGI application in each replica."""
    return type(kind.__name__, (kind,), {"__serve_build_asgi_app__": getattr(kind, method)})


def stoppable_trainer() -> type:
    """Ray's TorchTrainer, but Control-C ends it: Ray's own handler asks the controller to stop, waits for it, and stays
    for good. A trainer of this class knows its ``controller``, None before it runs."""
    from ray.train.torch import TorchTrainer

    class StoppableTrainer(TorchTrainer):
        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    return StoppableTrainer


def forget_trial(scheduler: Any, trial_id: str) -> None:
    """Take what ``trial_id`` has reported out of an ASHA scheduler's rungs."""
    for _, recorded in scheduler._trial_info[trial_id]._rungs:
        recorded.pop(trial_id, None)


def trial_error(trial: Any) -> Exception | None:
    """What a trial of Tune's ended with, where its process could say it; None where that died."""
    if trial.pickled_error_file is None:
        return None
    error: Exception = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error
