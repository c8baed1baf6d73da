"""The application on Ray Serve: how many replicas of what, checked before anything changes.

One deployment: each replica holds the ensemble and answers by itself (see `replica`). The same application deployed
again rolls over: new replicas start beside the old ones, as far as there is room, and old ones end what
they have begun.
"""

import logging
import os
import socket
from typing import Any

import ray
from ray import serve
from ray.serve.config import BackpressureConfig

from bend_ray.cluster import connection, failures, private, resources
from bend_ray.config import Serve
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ConfigError, EndpointError, shown
from bend_ray.progress import counted
from bend_ray.serving import middleware
from bend_ray.store.folders import Folder
from bend_ray.workers.replica import Arguments, Replica

NAME = "bend"
"""Of the application and its deployment."""
SPARE = 32
"""Requests that Ray Serve lets through beyond the queue, for the replica to say itself that it is full."""


def tried(arguments: Arguments) -> Ensemble:
    """The ensemble, loaded and asked once. Raises BendError where it cannot be used, before any replica changes."""
    ensemble = Ensemble.load(arguments.run, settings=arguments.ensemble)
    ensemble.warm(1, 0.0)
    return ensemble


def build(arguments: Arguments) -> Any:
    """The application, for `serve run jobs/serve.yaml` and the like, tried first."""
    arguments = arguments.model_copy(update={"run": Folder(arguments.run).address})
    tried(arguments)
    return _bound(arguments)


def _bound(arguments: Arguments) -> Any:
    limits, token = arguments.serve, os.environ.get(middleware.TOKEN)
    return _deployment(limits).bind(arguments.model_dump(mode="json"), middleware.digest(token) if token else None)


def _deployment(limits: Serve) -> Any:
    scale: dict[str, Any] = {"num_replicas": limits.replicas}
    if limits.max_replicas is not None:
        ends = {"min_replicas": limits.replicas, "max_replicas": limits.max_replicas}
        scale = {"autoscaling_config": {**ends, "target_ongoing_requests": limits.target}}
    return serve.deployment(
        serve.ingress()(private.builds_app(Replica, "app")),
        name=NAME,
        **scale,
        ray_actor_options={"num_cpus": limits.cpus_per_replica, "num_gpus": limits.gpus_per_replica},
        max_ongoing_requests=limits.queue + SPARE,
        max_queued_requests=limits.queue,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=middleware.RETRY_AFTER),
        graceful_shutdown_timeout_s=limits.timeout,
        max_surge_percent=_surge(limits),
        logging_config={"encoding": "JSON", "enable_access_log": False},  # ours says more
    )


def _surge(limits: Serve) -> int:
    """Replicas, in percent, that a roll-over may start before old ones end: as many as there is room for."""
    most = limits.max_replicas or limits.replicas
    rooms = [resources.room({"CPU": limits.cpus_per_replica})]
    if limits.gpus_per_replica:
        rooms.append(resources.room({"GPU": limits.gpus_per_replica}))
    return min(100, 100 * max(0, min(rooms) - most) // most)


def check(limits: Serve) -> None:
    """Raises ResourceError where the cluster cannot hold the replicas (Ray would wait for it for ever), ConfigError
    where they could not be reached."""
    if limits.host in middleware.LOOPBACK and (others := len(connection.nodes()) - 1):
        raise ConfigError(
            f"serve.host: replicas on the other {counted(others, 'nodes')} cannot be reached at {limits.host};"
            f" give --host 0.0.0.0, and set {middleware.TOKEN} to ask for a token"
        )
    each, count = {"cpu": limits.cpus_per_replica, "gpu": limits.gpus_per_replica}, "serve.replicas"
    resources.check(
        [
            resources.Want(f"serve.{name}s_per_replica", name.upper(), limits.replicas, each[name], "replica", count)
            for name in each
            if each[name] > 0
        ]
    )


def start(limits: Serve, environment: dict[str, str], verbose: bool) -> bool:
    """Start Ray Serve, if it does not run yet; whether it was.

    Raises ConfigError where it listens elsewhere, EndpointError where it does not come up.
    """
    port = private.serve_port()
    if port is not None:
        if port != limits.port:
            raise ConfigError(f"serve.port: Ray Serve runs there already, at port {port}; give --port {port}")
        return False
    _check_port(limits)
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(
            http_options={"host": limits.host, "port": limits.port, "request_timeout_s": None},
            logging_config={"encoding": "JSON"},
            controller_options={"runtime_env": {"env_vars": environment}},
        )
    except ray.exceptions.RayError as error:
        raise EndpointError(
            f"serve: Ray Serve does not come up ({failures.last_line(error)}); the machine may be too busy: run the"
            " same command again, or see --verbose"
        ) from None
    return True


def _check_port(limits: Serve) -> None:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((limits.host, limits.port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"serve.port: cannot listen at {limits.host}:{limits.port} ({error}); give another --port or --host"
            ) from None


def deploy(arguments: Arguments, verbose: bool) -> None:
    """Deploy what was `tried`, and wait until its replicas are there. Raises EndpointError where they cannot start."""
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    print(f"serve: starting {arguments.serve.replicas} x {shown(arguments.run)}", flush=True)
    try:
        serve.run(_bound(arguments), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise EndpointError(f"serve: the replicas cannot start ({failures.last_line(error)}); see --verbose") from None


def stop() -> None:
    """End all that Ray Serve runs, requests that are under way answered first."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.shutdown()
