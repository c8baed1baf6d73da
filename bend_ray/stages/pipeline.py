"""pipeline: every stage in order, in one run."""

import contextlib
import importlib
from functools import partial
from typing import Any

import ray
from torch import nn

from bend_ray import artifacts, cluster, lease, lineage, preflight, resources
from bend_ray.config import Config, dump
from bend_ray.data import augment, classifiers
from bend_ray.data.base import Description
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ArtifactError, ConfigError
from bend_ray.folders import Folder
from bend_ray.progress import say
from bend_ray.weights import subset as subsets
from bend_ray.weights.subset import Subset

STAGES = ("collect", "search", "fit", "sample", "evaluate")


def run(config: Config, run: Folder, stages: tuple[str, ...] = (), verbose: bool = False) -> None:
    """Run ``stages`` (none given: all that are asked for) in order; what is there already is kept.

    All that can be checked is checked before any starts.
    """
    stages = stages or _every(config)
    if "search" in stages and not config.search.trials:
        raise ConfigError("search.trials: is 0, so there is nothing to search; give 2 or more (20 is a start)")
    lineage.check_run(run, config)
    dataset = load_dataset(config.data, config.seed)
    model = _classifier(config, dataset) if "collect" in stages else None
    todo = tuple(stage for stage in stages if not _is_there(stage, config, run, dataset))
    with contextlib.ExitStack() as held:
        if todo:
            held.enter_context(lease.held(run))
            run.sweep()
            cluster.connect(verbose)
            preflight.check(config, run, todo, _size(config, run, todo, model))
        resolved = dump(config).encode()
        if not run.exists("config.yaml") or run.read("config.yaml") != resolved:
            run.write("config.yaml", resolved)
        for stage in stages:
            tuned = _config_for(stage, config, run)
            if stage not in todo:
                _stage(stage).run(tuned, run, dataset)
                continue
            for look in (preflight.make_room, preflight.say_who_waits):
                look(tuned, stage, partial(say, stage))
            with preflight.while_there_is_room(tuned, stage):
                _stage(stage).run(tuned, run, dataset)


def _size(config: Config, run: Folder, todo: tuple[str, ...], model: tuple[nn.Module, Subset] | None) -> int:
    """Bytes that the stages will write at most: the base, snapshots, members in blocks and together."""
    made = artifacts.read_manifest(run / "snapshots", "snapshots")
    D = model[1].D if model else (made.facts["subset_size"] if made else 0)
    base = sum(tensor.nbytes for tensor in model[0].state_dict().values()) if model else 0
    size = 0
    if "collect" in todo:
        snapshots = 4 * D * config.collect.chains * config.collect.snapshots_per_chain
        size += base + (2 if config.collect.aligned else 1) * snapshots - _there(run / "snapshots")
    if "sample" in todo:
        size += base + 4 * D * (config.sample.made + config.sample.members) - _there(run / "ensemble")
    return max(0, size)


def _there(folder: Folder) -> int:
    """Bytes of the files in a local folder."""
    return 0 if folder.remote else sum((folder.path / name).stat().st_size for name in folder.list())


def _stage(name: str) -> Any:
    """The stage's module: it loads when it is needed, for some take a second."""
    return importlib.import_module(f"bend_ray.stages.{name}")


def _config_for(stage: str, config: Config, run: Folder) -> Config:
    """What follows a search uses what it found."""
    return config if stage == "search" else lineage.tuned(run, config)


def _is_there(stage: str, config: Config, run: Folder, dataset: Dataset) -> bool:
    """Whether the stage has nothing left to do, so that it needs no cluster."""
    try:
        return _stage(stage).found(_config_for(stage, config, run), run, dataset) is not None
    except ArtifactError:  # an input is not there, or something is broken: the stage says so
        return False


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
    for key, resource, processes, each in dict.fromkeys(resources.wants(config, stages)):
        print(f"asks for:  {processes} x {each:g} {resource} ({key}); the cluster has {has.get(resource, 0.0):g}")
    print(f"run:       {run}")
    lineage.check_run(run, config)
    if not config.cluster.allow_autoscale:
        resources.check(resources.wants(config, stages))


def _every(config: Config) -> tuple[str, ...]:
    return tuple(stage for stage in STAGES if stage != "search" or config.search.trials)


def _classifier(config: Config, dataset: Dataset) -> tuple[nn.Module, Subset]:
    """The classifier and its subset, made once before any worker is: its mistakes are then told at once."""
    augment.check(config.augment, dataset.image_size)
    module = Description.of(config.classifier, dataset).build(config.seed)
    if config.classifier.weights:
        classifiers.load_weights(module, config.classifier.weights)
    return module, subsets.choose(module, config.collect.subset)
