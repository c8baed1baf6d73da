"""pipeline: every stage in order, in one run."""

import contextlib
import importlib
from functools import partial
from typing import Any

import ray
import torch
from torch import nn

from bend_ray.cluster import connection, lease, preflight, resources
from bend_ray.config import Config, dump
from bend_ray.data import summary
from bend_ray.ensemble import answer_cost
from bend_ray.ensemble.answer_cost import Settled
from bend_ray.errors import ArtifactError, ConfigError
from bend_ray.models import check, faithful, weights
from bend_ray.models import subset as subsets
from bend_ray.models.subject import MOST, ROWS, Subject
from bend_ray.models.subset import Subset
from bend_ray.progress import say
from bend_ray.run import Run
from bend_ray.snapshots import fresh, rehearsal
from bend_ray.store import artifacts, lineage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS, STAGES, wanted
from bend_ray.training import augment, class_weights, trained


def execute(run: Run, stages: tuple[str, ...] = (), verbose: bool = False) -> None:
    """Run ``stages`` (none given: all that are asked for) in order; what is there already is kept.

    All that can be checked is checked before any starts.
    """
    config, folder = run.config, run.folder
    stages = stages or _every(config)
    if "search" in stages and not config.search.trials:
        raise ConfigError("search.trials: is 0, so there is nothing to search; give 2 or more (20 is a start)")
    lineage.check_run(folder, config)
    run = run.but(loaded=run.dataset)
    todo = tuple(stage for stage in stages if not _is_done(stage, run))
    model = _classifier(run, rehearse="collect" in todo) if "collect" in stages else None
    if model is not None:
        choice = model[1].choice
        run = run.but(subset=choice.subset)
        for warning in choice.warnings if "collect" in todo else ():
            say("collect", warning)
    with contextlib.ExitStack() as held:
        if todo:
            held.enter_context(lease.held(folder))
            folder.sweep()
            connection.connect(verbose)
            preflight.check(config, folder, todo, _size(run, todo, model))
        resolved = dump(config).encode()
        if not folder.exists("config.yaml") or folder.read("config.yaml") != resolved:
            folder.write("config.yaml", resolved)
        for note in run.dataset.notes if todo else ():
            say("data", note)
        for stage in stages:
            tuned = _tuned_for(stage, run)
            if stage not in todo:
                _stage(stage).execute(tuned)
                continue
            for wait in (preflight.make_room, preflight.say_who_waits):
                wait(tuned.config, stage, partial(say, stage))
            with preflight.while_there_is_room(tuned.config, stage):
                _stage(stage).execute(tuned)


def _size(run: Run, todo: tuple[str, ...], model: tuple[nn.Module, Settled] | None) -> int:
    """Bytes that the stages will write at most: the base, snapshots, members in blocks and together."""
    config, folder = run.config, run.folder
    made = artifacts.read_manifest(folder / "snapshots", "snapshots")
    D = model[1].choice.subset.D if model else (made.facts["subset_size"] if made else 0)
    base = sum(tensor.nbytes for tensor in model[0].state_dict().values()) if model else 0
    size = 0
    if "collect" in todo:
        snapshots = 4 * D * config.collect.chains * config.collect.snapshots_per_chain
        size += base + (2 if config.collect.aligned else 1) * snapshots - _bytes_in(folder / "snapshots")
        if "trunks" in wanted(config):
            each = 1 + config.cycles + (config.cycles > 0)  # a base, what its cycles end with, their average
            size += (config.base.count * each - 1) * base - _bytes_in(folder / "trunks")
    if "sample" in todo:
        size += (
            config.trunks * base + 4 * D * (config.sample.made + config.sample.members) - _bytes_in(folder / "ensemble")
        )
    return max(0, size)


def _bytes_in(folder: Folder) -> int:
    """Bytes of the files in a local folder."""
    return 0 if folder.remote else sum((folder.path / name).stat().st_size for name in folder.list())


def _stage(name: str) -> Any:
    """The stage's module: it loads when it is needed, for some take a second."""
    return importlib.import_module(f"bend_ray.stages.{name}")


def _tuned_for(stage: str, run: Run) -> Run:
    """What follows a search uses what it found."""
    return run if stage == "search" else run.but(config=lineage.tuned(run.folder, run.config))


def _is_done(stage: str, run: Run) -> bool:
    """Whether the stage has nothing left to do, so that it needs no cluster."""
    try:
        return _stage(stage).existing(_tuned_for(stage, run)) is not None
    except ArtifactError:  # an input is not there, or something is broken: the stage says so
        return False


def dry_run(run: Run, stages: tuple[str, ...], verbose: bool = False, picture: str | None = None) -> None:
    """Print the resolved configuration, the data, the subset, what will be asked for and what there is; write nothing
    but a ``picture`` of rows, where a path is given for one."""
    config, dataset = run.config, run.dataset
    stages = stages or _every(config)
    module, settled = _classifier(run)
    rule, subset = settled.rule, settled.choice.subset
    passes = answer_cost.forward_passes(run, module, settled.cut)
    total = sum(parameter.numel() for parameter in module.parameters())
    print(dump(config))
    print(f"data:      {dataset.name}: {len(dataset.train)} training, {len(dataset.val)} validation,", end=" ")
    print(f"{len(dataset.test)} test rows; {dataset.classes} classes")
    for line in (*summary.lines(dataset), *dataset.notes):
        print(f"           {line}")
    if picture:
        from bend_ray.report import rows  # matplotlib takes a second

        rows.draw(dataset, picture)
        print(f"           rows as the classifier gets them: {picture}")
    print(f"subset:    {rule}: D = {subset.D} of {total} parameters ({subset.D / total:.1%})")
    for name, shape in zip(subset.names, subset.shapes, strict=True):
        print(f"           {name} {list(shape)}")
    for note in subsets.notes(module, settled.choice, settled.reach):
        print(f"           {note}")
    trunks = f" on {config.trunks} trunks" if config.trunks > 1 else ""
    instead = _instead(run, module, settled)
    print(f"answer:    {config.sample.members} members{trunks} cost {passes:.2f} forward passes{instead}")
    connection.connect(verbose)
    has = ray.cluster_resources()
    wanted = resources.wants(config, stages)
    for key, resource, processes, each in dict.fromkeys(want[:4] for want in wanted):
        print(f"asks for:  {processes} x {each:g} {resource} ({key}); the cluster has {has.get(resource, 0.0):g}")
    print(f"run:       {run.folder}")
    lineage.check_run(run.folder, config)
    if not config.cluster.allow_autoscale:
        resources.check(wanted)


def _instead(run: Run, module: nn.Module, settled: Settled) -> str:
    """What a larger subset would cost, where `auto` has taken the head instead of it."""
    config = run.config
    if config.collect.subset == settled.rule:
        return ""
    larger = subsets.choose(module, "auto", settled.reach)
    layers = {name.rpartition(".")[0] for name in larger.names}
    cost = answer_cost.forward_passes(run, module, answer_cost.cut_at(run, module, larger, settled.graph))
    return (
        f"; {larger.D} parameters in {len(layers)} layers would cost {cost:.2f}"
        f" (ensemble.answer_cost: {config.ensemble.answer_cost:g})"
    )


def _every(config: Config) -> tuple[str, ...]:
    every = {ARTIFACTS[kind].stage for kind in wanted(config)}
    return tuple(stage for stage in STAGES if stage in every)


def _classifier(run: Run, rehearse: bool = True) -> tuple[nn.Module, Settled]:
    """The classifier and its subset, made once before any worker is, and rehearsed: its mistakes are then told at
    once."""
    config = run.config
    augment.check(config.augment, run.dataset.image_size)
    class_weights.check(run)
    few, make = rehearsal.few(run), partial(_made, run)
    module, x = _made(run, tell=True), rehearsal.inputs(few)
    whole_trainings = config.cycles or config.evaluate.bagging_members or config.evaluate.deep_ensemble_members
    trains = not config.classifier.is_trained or bool(whole_trainings)
    trained.check(module, trains)
    if rehearse:
        check.on_rows(_subject(run, module, trains))
        faithful.check_still(module, x)
        after = rehearsal.training(few, make) if trains else module
        faithful.check_read_back(after, run.spec.build(run.seed + 1, filled=True), x)
    settled = answer_cost.settled(run, module)
    if config.collect.init == "fresh":
        fresh.starts(run, settled.choice.subset, ())
    if rehearse:
        rehearsal.chain(few, module, settled.cut, partial(_adapted, make, settled.choice.subset))
    return module, settled


def _adapted(make: rehearsal.Make, subset: Subset) -> nn.Module:
    module = make()
    if subset.lora is not None:
        subset.lora.attach(module)
    return module


def _made(run: Run, tell: bool = False) -> nn.Module:
    """The classifier as its training, or its chains, find it; ``tell``: say what was taken of its weights."""
    classifier = run.config.classifier
    module = run.spec.build(run.seed, filled=classifier.is_filled)
    for note in weights.bring(module, classifier, run.dataset.preprocess):
        if tell:
            say("collect", note)
    return module


def _subject(run: Run, module: nn.Module, trains: bool) -> Subject:
    """The classifier with training images from all over the split, to be tried before any work."""
    rows, base = run.dataset.train, run.config.base
    batch = torch.arange(min(base.batch_size, len(rows)))
    shards = {min(len(shard), MOST) for shard in batch.tensor_split(base.shards) if len(shard) > 1}
    index = torch.linspace(0, len(rows) - 1, min(len(rows), max(ROWS, *shards, 0))).long()
    x = run.dataset.preprocess(rows.images[index])
    sizes = sorted(shards) if trains else ()
    return Subject(module, lambda: _made(run), x, run.dataset.classes, sizes, run.config.classifier.output)
