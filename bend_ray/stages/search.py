"""search: `snapshots/` and `base/` in, `search/` out: the best configuration of the generator, and why it is.

Ray Tune runs trials; each fits a generator and measures its members on the validation split, at the end and on the way
there. A finished trial is a file: whatever is killed, the same command goes on with the others. Trial 0 is the
configuration as it stands.
"""

import uuid
from typing import Any

import ray
from ray import tune

from bend_ray.cluster import connection, failures
from bend_ray.config import dump
from bend_ray.errors import ResourceError, TrainingError
from bend_ray.progress import Progress, counted
from bend_ray.report import trials as trial_report
from bend_ray.run import Run
from bend_ray.search import study
from bend_ray.search.objective import Prepared
from bend_ray.search.study import Trial
from bend_ray.snapshots import parquet
from bend_ray.snapshots.snapshots import seen_of
from bend_ray.stages import tuning
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from bend_ray.workers.trial import classifier, run_trial


def execute(run: Run) -> Manifest:
    """Make the search of ``run``, or find it there whole. Returns its manifest."""
    inputs, search = _inputs(run), run.config.search
    if (whole := lineage.verified(run.folder, "search", run.config, inputs)) is not None:
        return whole
    table = tuning.Table(run, artifacts.recipe("search", run.config, inputs))
    with Progress("search", "trials", search.trials, len(table.ended)) as show:
        if table.ended:
            show.line(f"{len(table.ended)} of {search.trials} trials are there already")
        if len(table.ended) < search.trials:
            table.show = show
            _tune(run, table)
        return _publish(run, inputs, table.ended, show)


def existing(run: Run) -> Manifest | None:
    """The search, if it is there whole."""
    return lineage.verified(run.folder, "search", run.config, _inputs(run))


def _inputs(run: Run) -> dict[str, str]:
    return artifacts.inputs_of(run.folder, "search", run.config) | {"data": run.data_digest}


def _tune(run: Run, table: tuning.Table) -> None:
    search = run.config.search
    resources = {"cpu": search.cpus_per_trial} | ({"gpu": search.gpus_per_trial} if search.gpus_per_trial else {})
    trainable = tune.with_resources(tune.with_parameters(run_trial, run=run, prepared=_prepare(run)), resources)
    keeps_files = "tensorboard" in search.loggers
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=tuning.Suggest(run.config, table),
            scheduler=tuning.scheduler(run.config, table),
            num_samples=-1,  # until the searcher says that all are there
            max_concurrent_trials=search.concurrent,
            reuse_actors=True,  # a process that has torch and the classifier's graph
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex,
            **_storage(run.folder / "tensorboard" if keeps_files else None),
            callbacks=[table, *tuning.loggers(run.config)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except ray.exceptions.RayError as error:
        raise failures.plainly(error) from error
    if table.broken is not None:
        raise table.broken
    if left := search.trials - len(table.ended):
        raise ResourceError(f"search: Ray Tune ended with {counted(left, 'trials')} to go; run the same command again")


def _storage(kept: Folder | None) -> dict[str, Any]:
    """Where Tune keeps its own files: in a folder of the run's, or where they go with the cluster."""
    if kept is None:
        return {"storage_path": connection.scratch()}
    if not kept.remote:
        return {"storage_path": kept.address}
    system, path = kept.opened()
    return {"storage_path": path, "storage_filesystem": system}


def _prepare(run: Run) -> Prepared:
    config = run.config
    snapshots = parquet.read(run.folder / "snapshots", config.collect.chains)
    domain = config.search.space.get("autoencoder.scaling")
    scalings: set[Any] = {config.autoencoder.scaling, *(domain.values if domain else ())}
    trunk, _ = classifier(run.folder.address, config.model_dump_json(), snapshots.subset, "cpu")
    seen = seen_of(snapshots.facts, config.collect.seen_chains)
    return Prepared.of(trunk, snapshots, seen, run.dataset, sorted(scalings))


def _publish(run: Run, inputs: dict[str, str], ended: list[Trial], show: Progress) -> Manifest:
    config, folder = run.config, run.folder / "search"
    ended = sorted(ended, key=lambda trial: trial.number)
    best = study.best_of(config, ended)
    if best is None:
        reasons = {trial.reason for trial in ended}
        raise TrainingError(
            f"search: no trial of {len(ended)} came to its end ({'; '.join(sorted(reasons))[:500]});"
            f" to try them again, delete {folder}"
        )
    show.line(f"best: {trial_report.line(config, best)}")
    folder.write("best.yaml", dump(config.with_keys(best.values | {"search.trials": 0})).encode())
    with folder.staged("trials.parquet") as path:
        trial_report.write_table(ended, path)
    importances = study.importances_of(config, ended)
    front = study.front_of(config, ended)
    files = ["best.yaml", "trials.parquet", *trial_report.draw(folder, config, ended, front, importances)]
    facts = {
        "trials": len(ended),
        "best": best.number,
        "values": best.values,
        "objective": list(config.search.objective),
        "found": best.metrics,
        "default": ended[0].metrics,
        "front": front,
        "importances": importances,
        "importance": study.IMPORTANCE,
    }
    readme = trial_report.readme(config, ended, best, front, importances, files)
    manifest = artifacts.publish(run.folder, "search", config, inputs, facts, files, readme)
    for name in folder.list():
        if name.startswith(ARTIFACTS["search"].unit_files):
            folder.delete(name)
    return manifest
