"""Which values to try next: a pure function of the seed, the trial's number and the results of other trials.

Optuna's samplers keep a random state of their own, so a search that was killed would go on differently. Here each trial
has a seed of its own, and the study is made anew from the table of trials.
"""

import math
import types
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from bend_ray import seeds
from bend_ray.config import Config, Domain

Status = Literal["done", "stopped", "failed"]
STATES: dict[Status, TrialState] = {
    "done": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
IMPORTANCE = "fANOVA (Hutter et al. 2014)"
"""How `importances_of` measures, whatever Optuna would take by itself."""
FEWEST = 30
"""Finished trials from which on importances are shown: of fewer any key may seem to explain half."""
LOOKS = 4
"""Times that a trial is measured: after each quarter of the diffusion model's training."""


@dataclass(frozen=True)
class Trial:
    """What is known of one finished trial."""

    number: int
    values: dict[str, Any]
    """Of the searched keys; number 0 has the configuration's own."""
    status: Status
    looks: list[dict[str, float]] = field(default_factory=list)
    """What was measured at each look; the last is what counts."""
    seconds: float = 0.0
    reason: str = ""
    """Why it failed."""

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last look; empty where there was none."""
        return self.looks[-1] if self.looks else {}


def direction(objective: str) -> Literal["minimize", "maximize"]:
    """Which way an objective is optimised, as Optuna calls it."""
    return "minimize" if objective.endswith("nll") else "maximize"


def configured_values(config: Config) -> dict[str, Any]:
    """The configuration's own values of the searched keys."""
    pairs = (key.split(".") for key in config.search.space)
    return {f"{section}.{name}": getattr(getattr(config, section), name) for section, name in pairs}


def suggest(config: Config, number: int, trials: list[Trial], running: list[dict[str, Any]]) -> dict[str, Any]:
    """Values of trial ``number``, given finished trials and the values of those that are running."""
    if number == 0:
        return configured_values(config)
    search = config.search
    seed = seeds.seed_for(config.seed, "search", number) % 2**32
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if search.method == "tpe":
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=search.startup, multivariate=True, constant_liar=True
        )
    study = study_of(config, trials, sampler)
    distributions = distributions_of(config)
    for values in running:
        if _inside(values, distributions):
            study.add_trial(optuna.create_trial(state=TrialState.RUNNING, params=values, distributions=distributions))
    return dict(study.ask(distributions).params)


def study_of(config: Config, trials: list[Trial], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """Optuna's study of the finished trials that lie in the space."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objectives = config.search.objective
    study = optuna.create_study(sampler=sampler, directions=[direction(name) for name in objectives])
    distributions = distributions_of(config)
    for trial in sorted(trials, key=lambda trial: trial.number):
        if _inside(trial.values, distributions):
            study.add_trial(_frozen(trial, objectives, distributions))
    return study


def _frozen(trial: Trial, objectives: tuple[str, ...], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    # Several objectives know no stopping early, and a trial that was stopped has values that count for less.
    seen = {step: metrics[objectives[0]] for step, metrics in enumerate(trial.looks)} if len(objectives) == 1 else {}
    return optuna.create_trial(
        state=STATES[trial.status],
        params=trial.values,
        distributions=distributions,
        values=[trial.metrics[name] for name in objectives] if trial.status == "done" else None,
        intermediate_values=seen,
    )


def best_of(config: Config, trials: list[Trial]) -> Trial | None:
    """The finished trial that is best by the first objective; where equal by the next, then the lower number. None
    where none finished."""
    ranked = sorted(_costs(config, trials).items(), key=lambda item: (item[1], item[0]))
    by_number = {trial.number: trial for trial in trials}
    return by_number[ranked[0][0]] if ranked else None


def front_of(config: Config, trials: list[Trial]) -> list[int]:
    """Numbers of the finished trials that no other beats in all objectives at once (the Pareto front), ordered."""
    costs = _costs(config, trials)

    def beaten(mine: list[float]) -> bool:
        return any(
            all(theirs <= ours for theirs, ours in zip(other, mine, strict=True)) and other != mine
            for other in costs.values()
        )

    return sorted(number for number, mine in costs.items() if not beaten(mine))


def _costs(config: Config, trials: list[Trial]) -> dict[int, list[float]]:
    """What finished trials come to in each objective, lower being better, by number."""
    signs = {name: 1 if direction(name) == "minimize" else -1 for name in config.search.objective}
    done = [trial for trial in trials if trial.status == "done"]
    return {trial.number: [sign * trial.metrics[name] for name, sign in signs.items()] for trial in done}


def importances_of(config: Config, trials: list[Trial]) -> dict[str, float]:
    """How much each key alone matters to the first objective, the most first, by `IMPORTANCE`: the share that it
    explains of the variance, over the space as it is searched, of a random forest fitted to the finished trials.

    What keys do only together is in none, so that the shares add up to less than 1.

    Empty where fewer than `FEWEST` trials finished in the space, or all are equally good.
    """
    study = study_of(config, [trial for trial in trials if trial.status == "done"])
    if len(study.trials) < FEWEST or len({trial.values[0] for trial in study.trials}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seeds.seed_for(config.seed, "importance") % 2**32)
    try:
        # Asked itself: what optuna makes of it otherwise adds up to 1, whatever keys explain.
        shares = evaluator.evaluate(
            _on_plain_scales(study), params=list(config.search.space), target=lambda trial: trial.values[0]
        )
    except (ValueError, RuntimeError):  # no key took two values
        return {}
    return {key: float(share) for key, share in shares.items()}


def _on_plain_scales(study: optuna.Study) -> optuna.Study:
    """The logarithms of keys that are searched on a logarithmic scale: the evaluator spreads its weight evenly from the
    lowest value to the highest."""
    plain = optuna.create_study(directions=study.directions)
    for trial in study.trials:
        values, distributions = dict(trial.params), dict(trial.distributions)
        for key, one in trial.distributions.items():
            if isinstance(one, FloatDistribution | IntDistribution) and one.log:
                values[key] = math.log(values[key])
                distributions[key] = FloatDistribution(math.log(one.low), math.log(one.high))
        plain.add_trial(optuna.create_trial(params=values, distributions=distributions, values=trial.values))
    return plain


def distributions_of(config: Config) -> dict[str, BaseDistribution]:
    """The search space as Optuna's distributions."""
    return {key: _distribution(config, key, domain) for key, domain in config.search.space.items()}


def _distribution(config: Config, key: str, domain: Domain) -> BaseDistribution:
    if domain.choice is not None:
        return CategoricalDistribution([config.as_value(key, value) for value in domain.choice])
    low, high = domain.uniform or domain.loguniform or (0.0, 0.0)
    log = domain.loguniform is not None
    if _is_whole(key):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _is_whole(key: str) -> bool:
    section, name = key.split(".")
    model = Config.model_fields[section].annotation
    assert model is not None
    annotation = model.model_fields[name].annotation
    kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return int in kinds and float not in kinds


def _inside(values: dict[str, Any], distributions: dict[str, BaseDistribution]) -> bool:
    """The configuration's own values need not lie in the space."""
    try:
        optuna.create_trial(state=TrialState.RUNNING, params=values, distributions=distributions)
    except ValueError:
        return False
    return True
