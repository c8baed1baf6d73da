"""pipeline: every stage in order, in one run."""

import importlib
from collections.abc import Callable
from typing import Any

import ray
from torch import nn

from bend_ray import artifacts, cluster
from bend_ray.config import Config, dump
from bend_ray.data import classifiers
from bend_ray.data.base import Description
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.folders import Folder
from bend_ray.stages import collect, fit, sample
from bend_ray.weights import subset as subsets
from bend_ray.weights.subset import Subset

STAGES: dict[str, Callable[[Config, Folder, Dataset], object]] = {
    "collect": collect.run,
    "search": lambda *arguments: _late("search").run(*arguments),
    "fit": lambda config, run, dataset: fit.run(config, run),
    "sample": sample.run,
    "evaluate": lambda *arguments: _late("evaluate").run(*arguments),
}


def _late(stage: str) -> Any:
    """A stage whose libraries take a second to load: when it runs."""
    return importlib.import_module(f"bend_ray.stages.{stage}")


def run(config: Config, run: Folder, stages: tuple[str, ...] = (), verbose: bool = False) -> None:
    """Run ``stages`` (none given: all that are asked for) in order; what is there already is kept.

    All that can be checked is checked before any starts.
    """
    stages = stages or _every(config)
    artifacts.check_run(run, config)
    dataset = load_dataset(config.data, config.seed)
    if "collect" in stages:
        _classifier(config, dataset)
    cluster.connect(verbose)
    cluster.preflight(config, run, stages)
    run.sweep()
    resolved = dump(config).encode()
    if not run.exists("config.yaml") or run.read("config.yaml") != resolved:
        run.write("config.yaml", resolved)
    for stage in stages:
        # What follows a search uses what it found.
        STAGES[stage](config if stage == "search" else artifacts.tuned(run, config), run, dataset)


def dry_run(config: Config, run: Folder, stages: tuple[str, ...], verbose: bool = False) -> None:
    """Print the resolved configuration, the subset, what will be asked for and what there is; write nothing."""
    stages = stages or _every(config)
    dataset = load_dataset(config.data, config.seed)
    module, subset = _classifier(config, dataset)
    total = sum(parameter.numel() for parameter in module.parameters())
    print(dump(config))
    print(f"data:      {dataset.name}: {len(dataset.train)} training, {len(dataset.val)} validation,", end=" ")
    print(f"{len(dataset.test)} test rows; {dataset.classes} classes")
    print(f"subset:    {config.collect.subset}: D = {subset.D} of {total} parameters ({subset.D / total:.1%})")
    for name, shape in zip(subset.names, subset.shapes, strict=True):
        print(f"           {name} {list(shape)}")
    cluster.connect(verbose)
    has = ray.cluster_resources()
    for key, resource, processes, each in dict.fromkeys(cluster.wants(config, stages)):
        print(f"asks for:  {processes} x {each:g} {resource} ({key}); the cluster has {has.get(resource, 0.0):g}")
    print(f"run:       {run}")
    artifacts.check_run(run, config)
    cluster.check_resources(config, stages)


def _every(config: Config) -> tuple[str, ...]:
    return tuple(stage for stage in STAGES if stage != "search" or config.search.trials)


def _classifier(config: Config, dataset: Dataset) -> tuple[nn.Module, Subset]:
    """The classifier and its subset, made once before any worker is: its mistakes are then told at once."""
    module = Description.of(config.classifier, dataset).build(config.seed)
    if config.classifier.weights:
        classifiers.load_weights(module, config.classifier.weights)
    return module, subsets.choose(module, config.collect.subset)
