"""search: `snapshots/` and `base/` in, `search/` out: the best configuration of the generator, and why it is.

Ray Tune runs trials; each fits a generator and measures its members on the validation split, at the end and on the way
there. A finished trial is a file: whatever is killed, the same command goes on with the others. Trial 0 is the
configuration as it stands.
"""

import importlib.util
import json
import math
import time
import uuid
from collections import Counter
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.search import Searcher

from bend_ray import artifacts, cluster
from bend_ray.artifacts import Manifest
from bend_ray.config import Config, dump
from bend_ray.data import base as bases
from bend_ray.data.base import Description
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.ensemble import plan
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.ensemble.recalibrate import Recalibration
from bend_ray.ensemble.trunk import SharedTrunk
from bend_ray.errors import ArtifactError, BendError, ConfigError, ResourceError, TrainingError
from bend_ray.folders import Folder
from bend_ray.generator.generator import Generator
from bend_ray.progress import Progress
from bend_ray.report import trials as pictures
from bend_ray.search import objective, study
from bend_ray.search.objective import Prepared
from bend_ray.search.study import LOOKS, Trial
from bend_ray.weights import snapshots as parts
from bend_ray.weights.subset import Subset

FAILED = "failed"
"""What a trial reports in the place of metrics when it fails."""


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the search of ``config`` in ``run``, or find it there whole. Returns its manifest."""
    if (whole := found(config, run, dataset)) is not None:
        return whole
    inputs = _inputs(run, dataset)
    table = _Table(config, run, artifacts.recipe("search", config, inputs))
    with Progress("search", "trials", config.search.trials, len(table.known)) as show:
        if table.known:
            show.line(f"{len(table.known)} of {config.search.trials} trials are there already")
        if len(table.known) < config.search.trials:
            table.show = show
            _tune(config, run, dataset, table)
        return _publish(config, run, inputs, table.known, show)


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The search, if it is there whole."""
    return artifacts.there(run, "search", config, _inputs(run, dataset))


def _inputs(run: Folder, dataset: Dataset) -> dict[str, str]:
    kinds: tuple[artifacts.Kind, ...] = ("base", "snapshots")
    return {kind: artifacts.load(run / kind, kind).digest for kind in kinds} | {"data": dataset.digest()}


def _tune(config: Config, run: Folder, dataset: Dataset, table: "_Table") -> None:
    search = config.search
    prepared = _prepare(config, run, dataset)
    job = {"config": config.model_dump(mode="json"), "run": run.address}
    resources = {"cpu": search.cpus_per_trial} | ({"gpu": search.gpus_per_trial} if search.gpus_per_trial else {})
    trainable = tune.with_resources(tune.with_parameters(_tried, job=job, prepared=prepared), resources)
    kept = "tensorboard" in search.loggers
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Suggest(config, table),
            scheduler=_scheduler(config, table),
            num_samples=-1,  # until the searcher says that all are there
            max_concurrent_trials=search.concurrent,
            reuse_actors=True,  # a process that has torch and the classifier's graph
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex,
            **_storage(run / "tensorboard" if kept else None),
            callbacks=[table, *_loggers(config)],
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
        raise ResourceError(f"search: Ray Tune ended with {left} trials to go; run the same command again")


def _storage(kept: Folder | None) -> dict[str, Any]:
    """Where Tune keeps its own files: in a folder of the run's, or where they go with the cluster."""
    if kept is None:
        return {"storage_path": cluster.scratch()}
    if not kept.remote:
        return {"storage_path": kept.address}
    system, path = kept.opened()
    return {"storage_path": path, "storage_filesystem": system}


def _scheduler(config: Config, table: "_Table") -> tune.schedulers.TrialScheduler:
    """Stops trials that are behind, those of an earlier run counted in. With several objectives none is behind."""
    if not config.search.early_stop or len(config.search.objective) > 1:
        return tune.schedulers.FIFOScheduler()
    name = config.search.objective[0]
    mode = "min" if study.direction(name) == "minimize" else "max"
    scheduler: Any = _Halving(metric=name, mode=mode, max_t=LOOKS, grace_period=1, reduction_factor=2)
    for trial in sorted(table.known, key=lambda trial: trial.number):
        earlier = _Earlier(trial.number)
        scheduler.on_trial_add(None, earlier)
        for look, metrics in enumerate(trial.looks):
            scheduler.on_trial_result(None, earlier, {"training_iteration": look + 1, name: metrics[name]})
    return scheduler


class _Halving(tune.schedulers.ASHAScheduler):
    """ASHA, but trial 0, which the gain is measured against, always comes to its end."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        own = trial.config["number"] == 0 and result["training_iteration"] < LOOKS
        return tune.schedulers.TrialScheduler.CONTINUE if own else action

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process died: it is tried again under another name, and must not count twice."""
        for _, recorded in self._trial_info[trial.trial_id]._rungs:
            recorded.pop(trial.trial_id, None)
        super().on_trial_error(tune_controller, trial)


class _Earlier:
    """All that the scheduler asks of a trial."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"earlier-{number}", {"number": number}


def _loggers(config: Config) -> list[Callback]:
    """Ray's own integrations, each where the user asked for it."""
    found: list[Callback] = []
    for name in config.search.loggers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise ConfigError(f"search.loggers: {name} is not installed; pip install bend-ray[{name}]")
        if name == "tensorboard":
            found.append(tune.logger.TBXLoggerCallback())
        elif name == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            found.append(MLflowLoggerCallback(experiment_name="bend_ray"))
        else:
            from ray.air.integrations.wandb import WandbLoggerCallback

            found.append(WandbLoggerCallback(project="bend_ray"))
    return found


def _prepare(config: Config, run: Folder, dataset: Dataset) -> Prepared:
    snapshots = parts.read(run / "snapshots", config.collect.chains)
    seen, held_out = snapshots.divide(config.collect.chains, config.collect.held_out)
    domain = config.search.space.get("autoencoder.explained")
    explained = max([config.autoencoder.explained, *(float(value) for value in (domain.values if domain else ()))])
    cut, _ = _classifier(run.address, config.model_dump_json(), seen.subset, "cpu")
    return Prepared.of(cut, seen, held_out, dataset, explained)


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
        tune.report({FAILED: str(error) if isinstance(error, BendError) else f"{type(error).__name__}: {error}"})


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
    span, c_SR = prepared.coordinates(config.autoencoder.explained)

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
        prepared.subset, span, c_SR, config.autoencoder, config.diffusion, config.seed, device, progress, look, LOOKS
    )


class _Table(Callback):
    """The trials that are known: one file each, written when it ends."""

    def __init__(self, config: Config, run: Folder, recipe: str) -> None:
        self.config, self.run, self.recipe = config, run, recipe
        self.show: Progress | None = None
        self.known = [_read(run / "search", name, recipe) for name in artifacts.finished_units(run, "search")]
        self.running: dict[str, dict[str, Any]] = {}
        """Values by Tune's name of the trial, its number among them."""
        self.looks: dict[str, list[dict[str, float]]] = {}
        self.broken: BendError | None = None
        """What ends the search."""
        self.deaths: Counter[int] = Counter()
        """How often the process of each number died."""
        self.again: list[dict[str, Any]] = []
        """Values, as in `running`, of trials whose process died."""
        self.reasons: dict[str, str] = {}
        """Why each failed."""
        self.seconds: dict[str, float] = {}
        """Of work, as the trial itself counts them."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of its callbacks, which nobody reads: the files are what is gone on from."""
        return {key: value for key, value in vars(self).items() if key != "show"}

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict, **info: Any
    ) -> None:
        if FAILED in result:
            self.reasons[trial.trial_id] = " ".join(result[FAILED].split())
            return
        self.seconds[trial.trial_id] = result["seconds"]
        found = {name: float(result[name]) for name in objective.METRICS}
        self.looks.setdefault(trial.trial_id, []).append(found)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        if trial.trial_id in self.reasons:
            self._end(trial, "failed", self.reasons[trial.trial_id])
        else:
            self._end(trial, "done" if len(self.looks.get(trial.trial_id, [])) == LOOKS else "stopped")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self.looks.pop(trial.trial_id, None)
        number = self.running[trial.trial_id]["number"]
        if trial.pickled_error_file is not None:
            error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
            if isinstance(error, ray.exceptions.RayTaskError):  # it spoke itself
                self.broken = cluster.plainly(error)
                del self.running[trial.trial_id]
                return
        self.deaths[number] += 1
        if self.deaths[number] <= cluster.RETRIES:
            self.again.append(self.running.pop(trial.trial_id))
        else:
            self._end(trial, "failed", "its process died")

    def _end(self, trial: RayTrial, status: study.Status, reason: str = "") -> None:
        values = dict(self.running.pop(trial.trial_id))
        seconds = self.seconds.get(trial.trial_id, 0.0)
        number, looks = values.pop("number"), self.looks.get(trial.trial_id, [])
        ended = Trial(number, values, status, looks, seconds, reason)
        unit = f"trial-{number:05d}"
        text = json.dumps({"recipe": self.recipe} | asdict(ended), indent=1)
        try:
            artifacts.note_seconds(self.run, unit, seconds)
            (self.run / "search").write(f"{unit}.json", text.encode())
        except BendError as error:  # Tune must not see it: it would take the trial for failed
            self.broken = error
            return
        self.known.append(ended)
        if self.show is not None:
            self.show.line(pictures.line(self.config, ended))
            self.show.update(len(self.known))


def _read(folder: Folder, name: str, recipe: str) -> Trial:
    try:
        raw = json.loads(folder.read(name))
        made_by = raw.pop("recipe")
        trial = Trial(**raw)
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{folder}/{name}: is no finished trial; delete it and run the same command again"
        ) from None
    artifacts.check_recipe(folder, name, made_by, recipe)
    return trial


class _Suggest(Searcher):
    """Hands out the numbers that have no trial yet, with the values that `study.suggest` gives each."""

    def __init__(self, config: Config, table: _Table) -> None:
        super().__init__(metric=config.search.objective[0], mode="min")
        self.config, self.table = config, table
        there = {trial.number for trial in table.known}
        self.todo = [number for number in range(config.search.trials) if number not in there]

    def suggest(self, trial_id: str) -> Any:
        if self.table.broken is not None:
            return Searcher.FINISHED
        if self.table.again:
            self.table.running[trial_id] = self.table.again.pop(0)
            return dict(self.table.running[trial_id])
        if not self.todo:  # one that runs may have to be tried again
            return None if self.table.running else Searcher.FINISHED
        number = self.todo.pop(0)
        running = [{k: v for k, v in values.items() if k != "number"} for values in self.table.running.values()]
        values = study.suggest(self.config, number, self.table.known, running)
        self.table.running[trial_id] = {"number": number, **values}
        return dict(self.table.running[trial_id])

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The table hears of it as well."""


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
        if name.startswith(artifacts.UNITS["search"]):
            folder.delete(name)
    return manifest
