"""What Ray Tune is told of a search and tells of it: which trial comes next, which is stopped, and how each ended."""

import importlib.util
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.search import Searcher

from bend_ray.cluster import failures, private
from bend_ray.config import Config
from bend_ray.errors import ArtifactError, BendError, ConfigError
from bend_ray.progress import Progress
from bend_ray.report import trials as trial_report
from bend_ray.run import Run
from bend_ray.search import objective, study
from bend_ray.search.study import LOOKS, Trial
from bend_ray.store import lineage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered
from bend_ray.store.timings import note_seconds
from bend_ray.workers.trial import FAILED


def scheduler(config: Config, table: "Table") -> tune.schedulers.TrialScheduler:
    """Stops trials that are behind, those of an earlier run counted in. With several objectives none is behind."""
    if not config.search.early_stop or len(config.search.objective) > 1:
        return tune.schedulers.FIFOScheduler()
    name = config.search.objective[0]
    mode = "min" if study.direction(name) == "minimize" else "max"
    asha: Any = _Halving(metric=name, mode=mode, max_t=LOOKS, grace_period=1, reduction_factor=2)
    for trial in sorted(table.ended, key=lambda trial: trial.number):
        earlier = _Earlier(trial.number)
        asha.on_trial_add(None, earlier)
        for look, metrics in enumerate(trial.looks):
            asha.on_trial_result(None, earlier, {"training_iteration": look + 1, name: metrics[name]})
    return asha


class _Halving(tune.schedulers.ASHAScheduler):
    """ASHA, but trial 0, which the gain is measured against, always comes to its end."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        exempt = trial.config["number"] == 0 and result["training_iteration"] < LOOKS
        return tune.schedulers.TrialScheduler.CONTINUE if exempt else action

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process died: it is tried again under another name, and must not count twice."""
        private.forget_trial(self, trial.trial_id)
        super().on_trial_error(tune_controller, trial)


class _Earlier:
    """All that the scheduler asks of a trial."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"earlier-{number}", {"number": number}


def loggers(config: Config) -> list[Callback]:
    """Ray's own integrations, each where the user asked for it."""
    callbacks: list[Callback] = []
    for name in config.search.loggers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise ConfigError(f"search.loggers: {name} is not installed; pip install {name}")
        if name == "tensorboard":
            callbacks.append(tune.logger.TBXLoggerCallback())
        elif name == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            callbacks.append(MLflowLoggerCallback(experiment_name="bend_ray"))
        else:
            from ray.air.integrations.wandb import WandbLoggerCallback

            callbacks.append(WandbLoggerCallback(project="bend_ray"))
    return callbacks


class Table(Callback):
    """The trials that have ended: one file each, written when it ends."""

    def __init__(self, run: Run, recipe: str) -> None:
        self.run, self.recipe = run, recipe
        self.show: Progress | None = None
        self.ended = [
            _read(run.folder / "search", name, recipe) for name in lineage.finished_units(run.folder, "search")
        ]
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
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if FAILED in result:
            self.reasons[trial.trial_id] = " ".join(result[FAILED].split())
            return
        self.seconds[trial.trial_id] = result["seconds"]
        metrics = {name: float(result[name]) for name in objective.METRICS}
        self.looks.setdefault(trial.trial_id, []).append(metrics)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        if trial.trial_id in self.reasons:
            self._end(trial, "failed", self.reasons[trial.trial_id])
        else:
            self._end(trial, "done" if len(self.looks.get(trial.trial_id, [])) == LOOKS else "stopped")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self.looks.pop(trial.trial_id, None)
        number = self.running[trial.trial_id]["number"]
        error = private.trial_error(trial)
        if isinstance(error, ray.exceptions.RayTaskError):  # it spoke itself
            self.broken = failures.plainly(error)
            del self.running[trial.trial_id]
            return
        self.deaths[number] += 1
        if self.deaths[number] <= failures.RETRIES:
            self.again.append(self.running.pop(trial.trial_id))
        else:
            self._end(trial, "failed", "its process died")

    def _end(self, trial: RayTrial, status: study.Status, reason: str = "") -> None:
        values = dict(self.running.pop(trial.trial_id))
        seconds = self.seconds.get(trial.trial_id, 0.0)
        number, looks = values.pop("number"), self.looks.get(trial.trial_id, [])
        ended = Trial(number, values, status, looks, seconds, reason)
        unit = numbered("trial", number)
        text = json.dumps({"recipe": self.recipe} | asdict(ended), indent=1)
        try:
            note_seconds(self.run.folder, unit, seconds)
            (self.run.folder / "search").write(f"{unit}.json", text.encode())
        except BendError as error:  # Tune must not see it: it would take the trial for failed
            self.broken = error
            return
        self.ended.append(ended)
        if self.show is not None:
            self.show.line(trial_report.line(self.run.config, ended))
            self.show.update(len(self.ended))


def _read(folder: Folder, name: str, recipe: str) -> Trial:
    try:
        raw = json.loads(folder.read(name))
        made_by = raw.pop("recipe")
        trial = Trial(**raw)
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{folder}/{name}: is no finished trial; delete it and run the same command again"
        ) from None
    lineage.check_recipe(folder, name, made_by, recipe)
    return trial


class Suggest(Searcher):
    """Hands out the numbers that have no trial yet, with the values that `study.suggest` gives each."""

    def __init__(self, config: Config, table: Table) -> None:
        super().__init__(metric=config.search.objective[0], mode="min")
        self.config, self.table = config, table
        ended = {trial.number for trial in table.ended}
        self.todo = [number for number in range(config.search.trials) if number not in ended]

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
        values = study.suggest(self.config, number, self.table.ended, running)
        self.table.running[trial_id] = {"number": number, **values}
        return dict(self.table.running[trial_id])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The table hears of it as well."""
