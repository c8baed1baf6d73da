"""search: `snapshots/` and `base/` in, `search/` out: the best configuration of the generator, and why it is.

Ray Tune runs trials; each fits a generator and measures its members on the validation split, at the end and on the way
there. A finished trial is a file: whatever is killed, the same command goes on with the others. Trial 0 is the
configuration as it stands.
"""

import math
import time
import uuid
from functools import lru_cache
from typing import Any

import ray
from ray import tune

from bend_ray import artifacts, cluster, lineage, tuning
from bend_ray.artifacts import Manifest
from bend_ray.config import Config, dump
from bend_ray.data import base as bases
from bend_ray.data.base import Description
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import plan
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.ensemble.recalibrate import Recalibration
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.errors import BendError, ConfigError, ResourceError, TrainingError
from bend_ray.folders import Folder
from bend_ray.generator.denoiser import condition
from bend_ray.generator.generator import Generator
from bend_ray.progress import Progress, counted
from bend_ray.report import trials as pictures
from bend_ray.search import objective, study
from bend_ray.search.objective import Prepared
from bend_ray.search.study import LOOKS, Trial
from bend_ray.weights import parts
from bend_ray.weights.snapshots import seen_of
from bend_ray.weights.subset import Subset


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the search of ``config`` in ``run``, or find it there whole. Returns its manifest."""
    inputs = _inputs(run, dataset)
    if (whole := lineage.there(run, "search", config, inputs)) is not None:
        return whole
    table = tuning.Table(config, run, artifacts.recipe("search", config, inputs))
    with Progress("search", "trials", config.search.trials, len(table.known)) as show:
        if table.known:
            show.line(f"{len(table.known)} of {config.search.trials} trials are there already")
        if len(table.known) < config.search.trials:
            table.show = show
            _tune(config, run, dataset, table)
        return _publish(config, run, inputs, table.known, show)


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The search, if it is there whole."""
    return lineage.there(run, "search", config, _inputs(run, dataset))


def _inputs(run: Folder, dataset: Dataset) -> dict[str, str]:
    kinds: tuple[artifacts.Kind, ...] = ("base", "snapshots")
    return {kind: artifacts.load(run / kind, kind).digest for kind in kinds} | {"data": dataset.digest()}


def _tune(config: Config, run: Folder, dataset: Dataset, table: tuning.Table) -> None:
    search = config.search
    prepared = _prepare(config, run, dataset)
    job = {"config": config.model_dump(mode="json"), "run": run.address}
    resources = {"cpu": search.cpus_per_trial} | ({"gpu": search.gpus_per_trial} if search.gpus_per_trial else {})
    trainable = tune.with_resources(tune.with_parameters(_tried, job=job, prepared=prepared), resources)
    kept = "tensorboard" in search.loggers
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=tuning.Suggest(config, table),
            scheduler=tuning.scheduler(config, table),
            num_samples=-1,  # until the searcher says that all are there
            max_concurrent_trials=search.concurrent,
            reuse_actors=True,  # a process that has torch and the classifier's graph
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex,
            **_storage(run / "tensorboard" if kept else None),
            callbacks=[table, *tuning.loggers(config)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except ray.exceptions.RayError as error:
        raise cluster.plainly(error) from error
    if table.broken is not None:
        raise table.broken
    if left := search.trials - len(table.known):
        raise ResourceError(f"search: Ray Tune ended with {counted(left, 'trials')} to go; run the same command again")


def _storage(kept: Folder | None) -> dict[str, Any]:
    """Where Tune keeps its own files: in a folder of the run's, or where they go with the cluster."""
    if kept is None:
        return {"storage_path": cluster.scratch()}
    if not kept.remote:
        return {"storage_path": kept.address}
    system, path = kept.opened()
    return {"storage_path": path, "storage_filesystem": system}


def _prepare(config: Config, run: Folder, dataset: Dataset) -> Prepared:
    snapshots = parts.read(run / "snapshots", config.collect.chains)
    domain = config.search.space.get("autoencoder.scaling")
    scalings: set[Any] = {config.autoencoder.scaling, *(domain.values if domain else ())}
    cut, _ = _classifier(run.address, config.model_dump_json(), snapshots.subset, "cpu")
    seen = seen_of(snapshots.facts, config.collect.seen_chains)
    return Prepared.of(cut, snapshots, seen, dataset, sorted(scalings))


@lru_cache(maxsize=4)
def _classifier(where: str, config_json: str, subset: Subset, device: str) -> tuple[SharedTrunk, Recalibration | None]:
    """The classifier's cut, once for a process; ``config_json`` without what trials vary."""
    config, run = Config.model_validate_json(config_json), Folder(where)
    facts = artifacts.load(run / "base", "base").facts
    description = Description.from_json(facts, f"{run / 'base'}/config.json")
    module = bases.load(run / "base", description, device)
    recalibration = None
    if config.sample.recalibrate:
        dataset = load_dataset(config.data, config.seed)
        recalibration = Recalibration.of(module, subset, dataset, config.sample.recalibrate, config.seed)
        subset = recalibration.subset
    return plan.pinned(make_trunk(module, subset, description), config.ensemble), recalibration


def _tried(values: dict[str, Any], job: dict[str, Any], prepared: Prepared) -> None:
    """A trial whose error is a result, if its values or the classifier are at fault: what Tune sees fail is a process
    that died, and is tried again, or what no trial can do without (the store, the disk), and ends the search."""
    try:
        _trial(values, job, prepared)
    except OSError:
        raise
    except Exception as error:
        tune.report({tuning.FAILED: str(error) if isinstance(error, BendError) else f"{type(error).__name__}: {error}"})


def _trial(values: dict[str, Any], job: dict[str, Any], prepared: Prepared) -> None:
    """One trial, in a process of Tune's: fit a generator, and report what its members are like at each look."""
    start = time.monotonic()
    base = Config.model_validate(job["config"])
    try:
        config = base.with_keys({key: value for key, value in values.items() if key != "number"})
    except ValueError as error:
        raise ConfigError(f"these values do not go together ({' '.join(str(error).split())})") from None
    if config.diffusion.iterations < LOOKS:
        raise ConfigError(
            f"diffusion.iterations: {config.diffusion.iterations} is less than the {LOOKS} looks at a trial"
        )
    cluster.threads(config.search.cpus_per_trial)
    device = cluster.device(config.search.gpus_per_trial)
    kept = base.with_keys({"sample.recalibrate": config.sample.recalibrate})
    cut, recalibration = _classifier(job["run"], kept.model_dump_json(), prepared.subset, str(device))
    span, c_SR = prepared.coordinates(config.autoencoder)

    def progress(done: int, total: int) -> None:
        if time.monotonic() - start > config.search.timeout:
            raise TrainingError(
                f"not done after {config.search.timeout:g} s (search.timeout), at step {done} of {total}"
            )

    def look(generator: Generator) -> None:
        found = objective.measure(generator, prepared, cut, config, recalibration)
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            raise TrainingError(f"{bad[0]} is not finite; lower diffusion.lr")
        tune.report(found | {"seconds": time.monotonic() - start})

    Generator.fit_in(
        prepared.subset,
        span,
        c_SR,
        config.autoencoder,
        config.diffusion,
        config.seed,
        device,
        progress,
        look,
        LOOKS,
        condition(prepared.facts),
    )


def _publish(config: Config, run: Folder, inputs: dict[str, str], known: list[Trial], show: Progress) -> Manifest:
    folder = run / "search"
    known = sorted(known, key=lambda trial: trial.number)
    best = study.best_of(config, known)
    if best is None:
        reasons = {trial.reason for trial in known}
        raise TrainingError(
            f"search: no trial of {len(known)} came to its end ({'; '.join(sorted(reasons))[:500]});"
            f" to try them again, delete {folder}"
        )
    show.line(f"best: {pictures.line(config, best)}")
    folder.write("best.yaml", dump(config.with_keys(best.values | {"search.trials": 0})).encode())
    with folder.staged("trials.parquet") as path:
        pictures.write_table(known, path)
    importances = study.importances_of(config, known)
    front = study.front_of(config, known)
    files = ["best.yaml", "trials.parquet", *pictures.draw(folder, config, known, front, importances)]
    facts = {
        "trials": len(known),
        "best": best.number,
        "values": best.values,
        "objective": list(config.search.objective),
        "found": best.metrics,
        "default": known[0].metrics,
        "front": front,
        "importances": importances,
    }
    readme = pictures.readme(config, known, best, front, importances, files)
    manifest = artifacts.publish(run, "search", config, inputs, facts, files, readme)
    for name in folder.list():
        if name.startswith(lineage.UNITS["search"]):
            folder.delete(name)
    return manifest
