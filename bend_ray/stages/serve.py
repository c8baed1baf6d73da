"""serve: an ensemble (or a run that holds one) in, an HTTP endpoint out, on Ray Serve.

The same command with another ensemble or other keys rolls over: what is asked for is loaded and tried first, and a
broken one changes nothing. Nothing is written but a note of where the cluster is that a second command must join.
"""

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bend_ray.config import Serve, Serving
from bend_ray.errors import ResourceError
from bend_ray.progress import counted
from bend_ray.serving import middleware, proxy
from bend_ray.store import lineage
from bend_ray.store.folders import Folder

START_SECONDS = 120.0
"""How long the endpoint may take to answer once its replicas are there."""
JOIN_SECONDS = 2.0
"""How long a cluster that is there already may take to answer."""


def execute(where: str, overrides: dict[str, str], verbose: bool = False) -> None:
    """Serve the ensemble at ``where`` until stopped; on a cluster that is there already, deploy it and return."""
    folder = Folder(where)
    settings = lineage.inference(Serving, folder, overrides)
    limits = settings.serve
    with contextlib.ExitStack() as ending:
        scratch = Path(tempfile.mkdtemp(prefix=f"bend-{os.getpid()}-", dir="/tmp"))  # short, for sockets' paths
        ending.callback(shutil.rmtree, scratch, ignore_errors=True)
        environment = proxy.settings(scratch)
        os.environ |= {**environment, **os.environ}
        _join(limits)
        from bend_ray.cluster import connection
        from bend_ray.stages import deployment
        from bend_ray.workers import replica  # Ray reads the environment above when it is imported

        arguments = replica.Arguments(run=folder.address, ensemble=settings.ensemble, serve=limits)
        served = deployment.tried(arguments)
        own_cluster = connection.connect(verbose)
        deployment.check(limits)
        if own_cluster:
            ending.callback(deployment.stop)
            ending.callback(_note(limits, connection.address()).unlink, missing_ok=True)
        started = deployment.start(limits, {name: os.environ[name] for name in environment}, verbose)
        if started and not own_cluster:
            ending.pop_all()  # its files are needed after us
        deployment.deploy(arguments, verbose)
        _wait_ready(limits)
        print(_words(served.members, str(folder), limits, connection.metrics_address(), own_cluster), flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # Control-C or SIGTERM: the end that was asked for
            while own_cluster:
                time.sleep(1.0)
    if own_cluster:
        print("serve: stopped", flush=True)


def _join(limits: Serve) -> None:
    """Let Ray find the cluster of a `bend-ray serve` at this port, if one listens where its note says."""
    if "RAY_ADDRESS" in os.environ:
        return
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_note_file(limits).read_text())
        os.kill(note["pid"], 0)  # which may be another process by now, so:
        host, _, port = note["address"].rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), JOIN_SECONDS).close()
        os.environ["RAY_ADDRESS"] = note["address"]
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # what a cluster that Ray starts by itself asks for


def _note(limits: Serve, address: str) -> Path:
    """Note where a second command finds the cluster that this one started."""
    file = _note_file(limits)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"pid": os.getpid(), "address": address}))
    return file


def _note_file(limits: Serve) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bend-ray" / f"serve-{limits.port}.json"


def _url(limits: Serve) -> str:
    host = "127.0.0.1" if limits.host == "0.0.0.0" else limits.host  # noqa: S104 (compared, not bound)
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


def _words(members: int, where: str, limits: Serve, metrics: str, own_cluster: bool) -> str:
    url = _url(limits)
    lines = [
        f"serving:   {counted(members, 'members')} of {where} at {url}",
        f"page:      {url}/    routes: {url}/docs",
        f"predict:   curl -F image=@digit.png {url}/predict",
        f"metrics:   {metrics}",
    ]
    if limits.host not in middleware.LOOPBACK and not os.environ.get(middleware.TOKEN):
        lines.append(f"warning:   anybody who reaches {limits.host} may ask; set {middleware.TOKEN} to ask for a token")
    lines.append(
        "new one:   bend-ray serve OTHER_RUN, while this goes on" + ("; stop: Control-C" if own_cluster else "")
    )
    return "\n".join(lines)
