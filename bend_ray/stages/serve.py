"""serve: an ensemble (or a run that holds one) in, an HTTP endpoint out, on Ray Serve.

One deployment: each replica holds the ensemble, memory-mapped, and answers by itself; requests that come while a batch
is answered make up the next one. The same command with another ensemble or other keys rolls over: what is asked for is
loaded and tried first, then new replicas start beside the old ones, which end what they have begun. Nothing is written
but a note of where the cluster is that a second command must join.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import ray

from bend_ray import artifacts, cluster
from bend_ray.config import Serve, Serving
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ConfigError, EndpointError, ResourceError
from bend_ray.folders import Folder
from bend_ray.replica import Arguments, Replica
from bend_ray.serving import front, guard

NAME = "bend"
"""Of the application and its deployment."""
TOKEN = "BEND_SERVE_TOKEN"  # noqa: S105 (the name of the variable)
START_SECONDS = 120.0
"""How long the endpoint may take to answer once its replicas are there."""


def run(where: str, overrides: dict[str, str], verbose: bool = False) -> None:
    """Serve the ensemble at ``where`` until stopped; on a cluster that is there already, deploy it and return."""
    folder = Folder(where)
    settings = artifacts.inference(Serving, folder, overrides)
    arguments = Arguments(run=folder.address, ensemble=settings.ensemble, serve=settings.serve)
    served, limits = tried(arguments), settings.serve
    with tempfile.TemporaryDirectory(prefix="bend-", dir="/tmp") as scratch:  # short: a socket's path
        environment = front.settings(Path(scratch))
        os.environ |= {**environment, **os.environ}
        own = _connect(limits, verbose)
        from ray import serve  # it reads the environment above

        _end_on_sigterm()
        try:
            started = _start(limits, environment)
            _deploy(arguments, verbose)
            _wait_ready(limits)
            print(_words(served, where, limits, own), flush=True)
            while own and started:
                time.sleep(1.0)
        finally:
            if own:
                _note(limits).unlink(missing_ok=True)
                serve.shutdown()


def tried(arguments: Arguments) -> Ensemble:
    """The ensemble, loaded and asked once. Raises BendError where it cannot be used, before any replica changes."""
    ensemble = Ensemble.load(arguments.run, settings=arguments.ensemble)
    ensemble.warm(1, 0.0)
    return ensemble


def build(arguments: Arguments) -> Any:
    """The application, for `bend-ray serve` and for `serve run jobs/serve.yaml`."""
    tried(arguments)
    limits, token = arguments.serve, os.environ.get(TOKEN)
    return _deployment(limits).bind(arguments.model_dump(mode="json"), guard.digest(token) if token else None)


def _deployment(limits: Serve) -> Any:
    from ray import serve
    from ray.serve.config import BackpressureConfig

    scale: dict[str, Any] = {"num_replicas": limits.replicas}
    if limits.max_replicas is not None:
        ends = {"min_replicas": limits.replicas, "max_replicas": limits.max_replicas}
        scale = {"autoscaling_config": {**ends, "target_ongoing_requests": limits.target}}
    return serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        **scale,
        ray_actor_options={"num_cpus": limits.cpus_per_replica, "num_gpus": limits.gpus_per_replica},
        max_ongoing_requests=limits.queue + 32,  # the replica says itself when it is full, and health is asked as well
        max_queued_requests=limits.queue,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=guard.RETRY_AFTER),
        graceful_shutdown_timeout_s=limits.timeout,
        max_surge_percent=_surge(limits),
        logging_config={"encoding": "JSON", "enable_access_log": False},  # ours says more
    )


def _surge(limits: Serve) -> int:
    """Replicas, in percent, that a roll-over may start before old ones end: as many as there is room for."""
    most = limits.max_replicas or limits.replicas
    rooms = [cluster.room("CPU", limits.cpus_per_replica)]
    if limits.gpus_per_replica:
        rooms.append(cluster.room("GPU", limits.gpus_per_replica))
    return min(100, 100 * max(0, min(rooms) - most) // most)


def _connect(limits: Serve, verbose: bool) -> bool:
    """Join the cluster of RAY_ADDRESS, or that of a `bend-ray serve` at this port, or start one; whether it is ours."""
    note = _note(limits)
    address = None
    if "RAY_ADDRESS" not in os.environ and note.exists():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(note.read_text())
            os.kill(found["pid"], 0)
            address = found["address"]
    before = {node["NodeID"] for node in ray.nodes()} if ray.is_initialized() else None
    if address is None and "RAY_ADDRESS" not in os.environ and before is None:
        _check_port(limits)
    cluster.connect(verbose, address)
    cluster.check_resources(
        [
            (f"serve.{name}s_per_replica", name.upper(), limits.replicas, each)
            for name, each in (("cpu", limits.cpus_per_replica), ("gpu", limits.gpus_per_replica))
            if each > 0
        ]
    )
    own = address is None and before is None and ray._private.worker._global_node is not None
    if own:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"pid": os.getpid(), "address": ray.get_runtime_context().gcs_address}))
    return own


def _note(limits: Serve) -> Path:
    """Where a second command finds the cluster that the first one started."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bend_ray" / f"serve-{limits.port}.json"


def _check_port(limits: Serve) -> None:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((limits.host, limits.port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"serve.port: cannot listen at {limits.host}:{limits.port} ({error}); give another --port or --host"
            ) from None


def _start(limits: Serve, environment: dict[str, str]) -> bool:
    """Start Ray Serve, if it does not run yet. Raises ConfigError where it listens elsewhere than asked."""
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        there = client.http_config
        if there.port != limits.port:
            raise ConfigError(
                f"serve.port: Ray Serve runs there already, at port {there.port}; give --port {there.port}"
            )
        return False
    serve.start(
        http_options={"host": limits.host, "port": limits.port, "request_timeout_s": None},
        logging_config={"encoding": "JSON"},
        controller_options={"runtime_env": {"env_vars": environment}},
    )
    return True


def _deploy(arguments: Arguments, verbose: bool) -> None:
    from ray import serve

    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    print(f"serve: starting {arguments.serve.replicas} x {arguments.run}", flush=True)
    try:
        serve.run(build(arguments), name=NAME, route_prefix="/")
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise EndpointError(f"serve: the replicas cannot start ({lines[-1].strip()}); see --verbose") from None


def _url(limits: Serve) -> str:
    host = "127.0.0.1" if limits.host in ("0.0.0.0", "::") else limits.host  # noqa: S104 (compared, not bound)
    return f"http://{host}:{limits.port}"


def _wait_ready(limits: Serve) -> None:
    """Wait until the endpoint answers. Raises ResourceError where it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{_url(limits)}/v2/health/ready", timeout=5).read()  # noqa: S310 (our own)
            return
        time.sleep(0.1)
    raise ResourceError(f"serve: {_url(limits)} does not answer after {START_SECONDS:g} s; see --verbose")


def _words(ensemble: Ensemble, where: str, limits: Serve, own: bool) -> str:
    url = _url(limits)
    node = ray.nodes()[0]
    lines = [
        f"serving:   {ensemble.members} members of {where} at {url} ({limits.replicas} replicas)",
        f"page:      {url}/    routes: {url}/docs",
        f"predict:   curl -F image=@digit.png {url}/predict",
        f"metrics:   http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
    ]
    if limits.host not in ("127.0.0.1", "localhost") and not os.environ.get(TOKEN):
        lines.append(f"warning:   anybody who reaches {limits.host} may ask; set {TOKEN} to ask for a token")
    lines.append("new one:   bend-ray serve OTHER_RUN, while this goes on" + ("; stop: Control-C" if own else ""))
    return "\n".join(lines)


def _end_on_sigterm() -> None:
    """SIGTERM ends as Control-C does (Ray's own way, set when it starts, is to abort)."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
