"""What would otherwise wait for ever or fail late, said in one sentence before any work starts."""

import contextlib
import hashlib
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import ray

from bend_ray.cluster import connection, failures, processes, resources
from bend_ray.cluster.watchdog import watchdog
from bend_ray.config import Config
from bend_ray.errors import ArtifactError, ResourceError
from bend_ray.progress import EVERY_S, counted
from bend_ray.store.folders import Folder
from bend_ray.version import __version__

SPARE = 1 << 28
"""Bytes that must be free on every node, and beside what is written where the run is kept."""
ANSWER_S = 60.0
"""How long a node may take to say what it sees."""
LOOK_S = 2.0
RELEASED_S = 3.0
"""Within which Ray sees that processes of the stage before have ended."""


@dataclass(frozen=True)
class Seen:
    """What one node sees."""

    versions: dict[str, str]
    missing: tuple[str, ...]
    """Of the files that all must see."""
    free: dict[str, int]
    """Bytes, by folder."""


def check(config: Config, run: Folder, stages: tuple[str, ...], size: int = 0) -> None:
    """Raises ResourceError or ArtifactError where the stages cannot end well: what they ask for is not there, ``run``
    cannot be written or is not the same folder on all nodes, software differs between nodes, or disks are full.

    ``size`` is what the stages will write, in bytes.
    """
    if not config.cluster.allow_autoscale:
        resources.check(resources.wants(config, stages))
    marker = f".tmp-visible-{uuid.uuid4().hex}"  # swept with others if this is killed
    run.write(marker, b"")
    try:
        classifier = config.classifier
        of_hub = classifier.hub if classifier.hub and Path(classifier.hub).is_dir() else None
        paths = [path for path in (config.data.path, classifier.weights, of_hub) if path and "://" not in path]
        _compare(run, _seen(run, marker, paths), marker)
    finally:
        with contextlib.suppress(ArtifactError):
            run.delete(marker)
    if not run.remote:
        free, need = shutil.disk_usage(run.path).free, SPARE + size
        if free < need:
            raise ResourceError(
                f"--run-dir: {free >> 20} MiB are free at {run.path}, and {need >> 20} MiB are needed"
                f" ({SPARE >> 20} to spare); free some space or give another folder"
            )


def _seen(run: Folder, marker: str, paths: list[str]) -> dict[str, Seen]:
    """What each node sees, by its address; this one first. Raises ResourceError where one cannot say."""
    this_node = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in connection.nodes()}
    arguments = (run.address, marker, paths)
    seen = {f"this one ({nodes[this_node]})": _inspect(*arguments)}
    node_of = {processes.on(node, _inspect_remotely).remote(*arguments): node for node in nodes if node != this_node}
    ready, late = ray.wait(list(node_of), num_returns=len(node_of), timeout=ANSWER_S) if node_of else ([], [])
    for number, reference in enumerate(ready):
        where = f"{number + 2} ({nodes[node_of[reference]]})"
        try:
            seen[where] = ray.get(reference)
        except ray.exceptions.RayError as error:
            if (ours := failures.bend_error(error)) is not None:
                raise type(ours)(f"on node {where}: {ours}") from None
            if node_of[reference] not in {node["NodeID"] for node in connection.nodes()}:
                continue  # lost a moment ago
            raise ResourceError(
                f"node {where}: cannot run bend_ray ({failures.last_line(error)}); install it there, or submit the job"
                " with --working-dir"
            ) from None
    if late:
        raise ResourceError(
            f"node {nodes[node_of[late[0]]]}: has not answered for {ANSWER_S:g} s (silent: {len(late)} of"
            f" {counted(len(nodes), 'nodes')}); is it overloaded?"
        )
    return seen


@ray.remote
def _inspect_remotely(where: str, marker: str, paths: list[str]) -> Seen:
    return _inspect(where, marker, paths)


def _inspect(where: str, marker: str, paths: list[str]) -> Seen:
    run = Folder(where)
    missing = [] if run.exists(marker) else [marker]
    missing += [path for path in paths if not Path(path).exists()]
    temporary = tempfile.gettempdir()
    return Seen(_versions(), tuple(missing), {temporary: shutil.disk_usage(temporary).free})


def _versions() -> dict[str, str]:
    software = {name: metadata.version(name) for name in ("ray", "torch")}
    return {"python": platform.python_version(), **software, "bend_ray": f"{__version__} ({_code()})"}


@cache
def _code() -> str:
    """Of our own source: a node may have an older one installed under the same version."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _compare(run: Folder, seen: dict[str, Seen], marker: str) -> None:
    (here, first), *others = seen.items()
    for where, node in seen.items():
        if marker in node.missing:
            raise ResourceError(
                f"--run-dir: {run} is not the same folder on all {len(seen)} nodes of the cluster (node {where} does"
                " not see it); give a shared folder or a URI such as s3://bucket/run"
            )
        for path in node.missing:
            raise ResourceError(
                f"{path}: is not there on node {where}; put it where all nodes see it, or give a URI such as s3://..."
            )
        for folder, free in node.free.items():
            if free < SPARE:
                raise ResourceError(
                    f"{folder}: only {free >> 20} MiB are free on node {where}; at least {SPARE >> 20} are needed"
                )
    for where, node in others:
        for name, version in first.versions.items():
            if node.versions[name] != version:
                raise ResourceError(
                    f"{name}: version {node.versions[name]} on node {where}, {version} on node {here}; results and"
                    " messages would not fit, so install the same on all nodes (or use one image)"
                )


def make_room(config: Config, stage: str, say: Callable[[str], None]) -> None:
    """Wait until the cluster has what ``stage`` asks for, where `cluster.allow_autoscale` says so; its autoscaler is
    told. Raises ResourceError after `cluster.wait` seconds."""
    wants = resources.wants(config, (stage,))
    if not config.cluster.allow_autoscale or not _lacks(wants):
        return
    from ray.autoscaler.sdk import request_resources

    bundles = resources.bundles(wants)
    request_resources(bundles=[bundle for count, bundle in bundles for _ in range(count)])
    wanted = ", ".join(f"{count} x {bundle}" for count, bundle in bundles)
    names = sorted({name for _, bundle in bundles for name in bundle})
    began, last = time.monotonic(), -EVERY_S
    try:
        while lack := _lacks(wants):
            waited = time.monotonic() - began
            if waited > config.cluster.wait:
                raise ResourceError(f"{lack}, or raise cluster.wait: nothing came within {waited:.0f} s")
            if waited - last > EVERY_S:
                last = waited
                say(
                    f"waiting for nodes, {waited:.0f} of at most {config.cluster.wait:g} s: {wanted} asked for,"
                    f" the cluster of {counted(len(connection.nodes()), 'nodes')} has {_amounts(names)}"
                )
            time.sleep(min(LOOK_S, config.cluster.wait))
    finally:
        request_resources(bundles=[])  # the stage's own processes hold on to what came


def say_who_waits(config: Config, stage: str, say: Callable[[str], None]) -> None:
    """A word where the cluster has what ``stage`` asks for, but others are using it, and who: Ray waits for them."""
    wants = resources.wants(config, (stage,))
    until = time.monotonic() + RELEASED_S
    while busy := _busy(wants):
        if time.monotonic() > until:
            say(f"{busy}; also at work there: {connection.other_drivers()}; it begins when others have ended")
            return
        time.sleep(0.2)


def _busy(wants: list[resources.Want]) -> str:
    free, has = ray.available_resources(), ray.cluster_resources()
    for want in wants:
        amount = free.get(want.resource, 0.0)
        if amount + 1e-9 < want.processes * want.each:
            return (
                f"{want.processes} x {want.each:g} {want.resource} asked for ({want.key}), {amount:g} of"
                f" {has.get(want.resource, 0.0):g} are free"
            )
    return ""


def _amounts(names: list[str]) -> str:
    has = ray.cluster_resources()
    return ", ".join(f"{has.get(resource, 0.0):g} {resource}" for resource in names)


def _lacks(wants: list[resources.Want]) -> str:
    """What the cluster lacks, in words."""
    try:
        resources.check(wants)
    except ResourceError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def while_there_is_room(config: Config, stage: str) -> Iterator[None]:
    """Ends the block with a ResourceError if the cluster loses what ``stage`` cannot go on without, and nothing takes
    its place within `cluster.wait` seconds: Ray would wait for it for ever."""
    # One process of a pool is enough to go on; Ray Train's workers must all be there.
    wants = [want if stage == "collect" else want._replace(processes=1) for want in resources.wants(config, (stage,))]
    lost: list[float] = []

    def check_room() -> None:
        lack = _lacks(wants)
        if not lack:
            lost.clear()
            return
        lost.append(time.monotonic())
        if lost[-1] - lost[0] > config.cluster.wait:
            raise ResourceError(f"{stage}: nodes were lost and not replaced within {config.cluster.wait:g} s; {lack}")

    with watchdog(check_room, LOOK_S):
        yield
