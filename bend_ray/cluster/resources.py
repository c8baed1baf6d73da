"""What the stages ask of a cluster, and whether it has room for that."""

from functools import reduce
from typing import Any, NamedTuple

import ray

from bend_ray.cluster import connection
from bend_ray.config import Config
from bend_ray.errors import ResourceError
from bend_ray.store.kinds import PROCESSES, Processes


class Want(NamedTuple):
    """So much of one resource for each of so many processes."""

    key: str
    """Of the configuration, for the amount."""
    resource: str
    processes: int
    each: float
    together: str
    """What names the same process: all that it asks for must be there on one node."""
    count_key: str = ""
    """Of the configuration, for the number of processes."""


def wants(config: Config, stages: tuple[str, ...]) -> list[Want]:
    """What the stages ask for, at the least."""
    every = [
        want
        for stage in stages
        for processes in PROCESSES.get(stage, ())
        if not processes.wanted_by or any(_value(config, key) for key in processes.wanted_by)
        for want in _wants(config, stage, processes)
    ]
    return [want for want in every if want.each > 0]


def _wants(config: Config, stage: str, processes: Processes) -> tuple[Want, Want]:
    count = _value(config, processes.count) if processes.count else 1
    fewest = min(count) if isinstance(count, tuple) else count
    key, cpus = processes.cpus or stage, _value(config, processes.cpus) if processes.cpus else 1.0
    return (
        Want(key, "CPU", fewest, cpus, key, processes.count),
        Want(processes.gpus, "GPU", fewest, _value(config, processes.gpus), key, processes.count),
    )


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def room(bundle: dict[str, float]) -> int:
    """How many processes that each take so much of these resources the cluster has room for; none spreads over two
    nodes."""
    amounts = [node["Resources"] for node in connection.nodes()]
    return sum(min(int(has.get(name, 0.0) / each + 1e-9) for name, each in bundle.items()) for has in amounts)


def bundles(wanted: list[Want]) -> list[tuple[int, dict[str, float]]]:
    """How many processes of what each: all that one process asks for must be there on one node."""
    by_process: dict[str, tuple[int, dict[str, float]]] = {}
    for want in wanted:
        count, bundle = by_process.get(want.together, (0, {}))
        by_process[want.together] = max(count, want.processes), bundle | {want.resource: want.each}
    return list(by_process.values())


def check(wanted: list[Want]) -> None:
    """Raises ResourceError where more is asked for than the cluster has: Ray would wait for it for ever."""
    for want in wanted:
        if room({want.resource: want.each}) < want.processes:
            has = ray.cluster_resources().get(want.resource, 0.0)
            largest = max((node["Resources"].get(want.resource, 0.0) for node in connection.nodes()), default=0.0)
            raise ResourceError(
                f"{want.key}: {want.processes} x {want.each:g} {want.resource} asked for, but the cluster has {has:g}"
                f" (at most {largest:g} on one node); {_less(want)}"
            )
    for processes, bundle in bundles(wanted):
        if (together := room(bundle)) < processes:
            needs = " with ".join(f"{each:g} {resource}" for resource, each in bundle.items())
            keys = ", ".join(want.key for want in wanted if bundle.get(want.resource) == want.each)
            raise ResourceError(
                f"{keys}: {processes} x {needs} asked for, but nodes that have both have room for {together};"
                " lower one of them"
            )


def _less(want: Want) -> str:
    if "." not in want.key:
        return "it is one process"
    return f"lower {want.key}" + (f" or {want.count_key}" if want.count_key else "")
