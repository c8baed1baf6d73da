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

from bend_ray import lineage
from bend_ray.config import Serve, Serving
from bend_ray.errors import ResourceError
from bend_ray.folders import Folder
from bend_ray.progress import counted
from bend_ray.serving import front, guard

START_SECONDS = 120.0
"""How long the endpoint may take to answer once its replicas are there."""
JOIN_SECONDS = 2.0
"""How long a cluster that is there already may take to answer."""


def run(where: str, overrides: dict[str, str], verbose: bool = False) -> None:
    """Serve the ensemble at ``where`` until stopped; on a cluster that is there already, deploy it and return."""
    folder = Folder(where)
    settings = lineage.inference(Serving, folder, overrides)
    limits = settings.serve
    with contextlib.ExitStack() as ending:
        scratch = Path(tempfile.mkdtemp(prefix="bend-", dir="/tmp"))  # short, for sockets' paths
        ending.callback(shutil.rmtree, scratch, ignore_errors=True)
        environment = front.settings(scratch)
        os.environ |= {**environment, **os.environ}
        _join(limits)
        from bend_ray import cluster, deployment, replica  # Ray reads the environment above when it is imported

        arguments = replica.Arguments(run=folder.address, ensemble=settings.ensemble, serve=limits)
        served = deployment.tried(arguments)
        own = cluster.connect(verbose)
        deployment.check(limits)
        if own:
            ending.callback(deployment.stop)
            ending.callback(_note(limits, cluster.address()).unlink, missing_ok=True)
        started = deployment.start(limits, {name: os.environ[name] for name in environment}, verbose)
        if started and not own:
            ending.pop_all()  # its files are needed after us
        deployment.deploy(arguments, verbose)
        _wait_ready(limits)
        print(_words(served.members, str(folder), limits, cluster.metrics_address(), own), flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # Control-C or SIGTERM: the end that was asked for
            while own:
                time.sleep(1.0)
    if own:
        print("serve: stopped", flush=True)


def _join(limits: Serve) -> None:
    """Let Ray find the cluster of a `bend-ray serve` at this port, if one listens where its note says."""
    if "RAY_ADDRESS" in os.environ:
        return
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(_note_file(limits).read_text())
        os.kill(found["pid"], 0)  # which may be another process by now, so:
        host, _, port = found["address"].rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), JOIN_SECONDS).close()
        os.environ["RAY_ADDRESS"] = found["address"]
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


def _words(members: int, where: str, limits: Serve, metrics: str, own: bool) -> str:
    url = _url(limits)
    lines = [
        f"serving:   {counted(members, 'members')} of {where} at {url}",
        f"page:      {url}/    routes: {url}/docs",
        f"predict:   curl -F image=@digit.png {url}/predict",
        f"metrics:   {metrics}",
    ]
    if limits.host not in guard.LOOPBACK and not os.environ.get(guard.TOKEN):
        lines.append(f"warning:   anybody who reaches {limits.host} may ask; set {guard.TOKEN} to ask for a token")
    lines.append("new one:   bend-ray serve OTHER_RUN, while this goes on" + ("; stop: Control-C" if own else ""))
    return "\n".join(lines)
