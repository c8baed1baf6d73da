"""What the stages ask of a cluster, and whether it has room for that."""

import ray

from bend_ray import cluster
from bend_ray.config import Config
from bend_ray.errors import ResourceError

Want = tuple[str, str, int, float]
"""Key of the amount, resource, processes, amount for each."""


def wants(config: Config, stages: tuple[str, ...]) -> list[Want]:
    """What the stages ask for, at the least."""
    collect, sample = config.collect, config.sample
    asked = {
        "collect": [
            ("collect.cpus_per_worker", "CPU", collect.fewest, collect.cpus_per_worker),
            ("collect.gpus_per_worker", "GPU", collect.fewest, collect.gpus_per_worker),
        ],
        "search": [  # fewer trials at once are no failure; not one at all is
            ("search.cpus_per_trial", "CPU", 1, config.search.cpus_per_trial),
            ("search.gpus_per_trial", "GPU", 1, config.search.gpus_per_trial),
        ],
        "fit": [("fit", "CPU", 1, 1.0), ("diffusion.gpus", "GPU", 1, config.diffusion.gpus)],
        "sample": [
            ("sample.cpus_per_actor", "CPU", sample.actors, sample.cpus_per_actor),
            ("sample.gpus_per_actor", "GPU", sample.actors, sample.gpus_per_actor),
        ],
    }
    asked["evaluate"] = asked["sample"]
    if config.evaluate.bagging_members or config.evaluate.deep_ensemble_members:  # trained one by one, as chains are
        asked["evaluate"] = asked["sample"] + [(key, resource, 1, each) for key, resource, _, each in asked["collect"]]
    return [want for stage in stages for want in asked.get(stage, []) if want[3] > 0]


def room(bundle: dict[str, float]) -> int:
    """How many processes that each take so much of these resources the cluster has room for; none spreads over two
    nodes."""
    amounts = [node["Resources"] for node in cluster.nodes()]
    return sum(min(int(has.get(name, 0.0) / each + 1e-9) for name, each in bundle.items()) for has in amounts)


def bundles(wanted: list[Want]) -> list[tuple[int, dict[str, float]]]:
    """How many processes of what each: all that one process asks for must be there on one node."""
    found: dict[str, tuple[int, dict[str, float]]] = {}
    for key, resource, processes, each in wanted:
        kind = "fit" if key == "diffusion.gpus" else key.split(".")[0]
        count, bundle = found.get(kind, (0, {}))
        found[kind] = max(count, processes), bundle | {resource: each}
    return list(found.values())


def check(wanted: list[Want]) -> None:
    """Raises ResourceError where more is asked for than the cluster has: Ray would wait for it for ever."""
    for key, resource, processes, each in wanted:
        if room({resource: each}) < processes:
            has = ray.cluster_resources().get(resource, 0.0)
            largest = max((node["Resources"].get(resource, 0.0) for node in cluster.nodes()), default=0.0)
            raise ResourceError(
                f"{key}: {processes} x {each:g} {resource} asked for, but the cluster has {has:g}"
                f" (at most {largest:g} on one node); {_less(key)}"
            )
    for processes, bundle in bundles(wanted):
        if (together := room(bundle)) < processes:
            asked = " with ".join(f"{each:g} {resource}" for resource, each in bundle.items())
            keys = ", ".join(key for key, resource, _, each in wanted if bundle.get(resource) == each)
            raise ResourceError(
                f"{keys}: {processes} x {asked} asked for, but nodes that have both have room for {together};"
                " lower one of them"
            )


def _less(key: str) -> str:
    if key == "fit":
        return "it is one process"
    counts = {"collect": "collect.workers", "sample": "sample.actors", "serve": "serve.replicas"}
    count = counts.get(key.split(".")[0])
    return f"lower {key}" + (f" or {count}" if count else "")
