"""Which trial comes next, and which was best: functions of the seed, the number and what is known."""

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.config import Config
from bend_ray.errors import ConfigError
from bend_ray.report import trials as trial_report
from bend_ray.search import study
from bend_ray.search.study import Trial
from conftest import changed

SPACE = {
    "autoencoder.latent": {"choice": [2, 4, 8]},
    "diffusion.iterations": {"loguniform": [10, 1000]},
    "diffusion.lr": {"loguniform": [1e-4, 1e-2]},
    "sample.eta": {"uniform": [0, 1]},
}


def config(**search: Any) -> Config:
    return changed(search={"trials": 30, "space": SPACE, "startup": 5} | search, sample={"steps": 5})


def loss(values: dict[str, Any]) -> float:
    """A hill whose top is known: only the learning rate and, less, the latents matter."""
    rate = torch.tensor(values["diffusion.lr"]).log10().item()
    return (rate + 3) ** 2 + 0.05 * abs(values["autoencoder.latent"] - 4)


def searched(asked: Config, trials: int) -> list[Trial]:
    known: list[Trial] = []
    for number in range(trials):
        values = study.suggest(asked, number, known, [])
        known.append(Trial(number, values, "done", [{"abend_nll": loss(values)}]))
    return known


def test_trial_0_is_the_configuration_as_it_stands() -> None:
    asked = config()
    values = study.suggest(asked, 0, [], [])
    assert asked.with_keys(values) == asked and set(values) == set(SPACE)


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_values_lie_in_the_space_and_make_a_configuration(method: str) -> None:
    asked = config(method=method)
    for trial in searched(asked, 12)[1:]:
        values = trial.values
        assert values["autoencoder.latent"] in (2, 4, 8) and type(values["diffusion.iterations"]) is int
        assert 10 <= values["diffusion.iterations"] <= 1000 and 1e-4 <= values["diffusion.lr"] <= 1e-2
        assert asked.with_keys(values).diffusion.lr == values["diffusion.lr"]


def test_the_next_trial_follows_from_the_number_and_what_is_known() -> None:
    asked = config()
    known = searched(asked, 10)
    assert searched(asked, 10) == known
    for number in (3, 9):  # as after a kill: all before are known, in any order
        assert study.suggest(asked, number, known[:number][::-1], []) == known[number].values
    assert len({trial.values["diffusion.lr"] for trial in known}) == 10
    other = searched(asked.with_keys({"seed": 1}), 3)
    assert [trial.values for trial in other[1:]] != [trial.values for trial in known[1:3]]


def test_the_estimator_learns_where_the_top_is() -> None:
    """Five seeds: after 25 trials it looks nearer the top than trials at random do."""

    def late(method: str, seed: int) -> float:
        trials = searched(config(method=method).with_keys({"seed": seed}), 25)[15:]
        return sum(loss(trial.values) for trial in trials) / len(trials)

    better = [late("tpe", seed) < late("random", seed) for seed in range(5)]
    assert sum(better) >= 4


def test_running_trials_are_not_tried_again() -> None:
    asked = config()
    known = searched(asked, 12)
    alone = study.suggest(asked, 12, known, [])
    crowd = study.suggest(asked, 12, known, [alone] * 3)
    assert crowd != alone


def test_failed_and_stopped_trials_are_known_as_such() -> None:
    asked = config()
    known = [
        Trial(0, study.configured_values(asked), "done", [{"abend_nll": 1.0}]),
        Trial(1, study.suggest(asked, 1, [], []), "failed", reason="NaN"),
        Trial(2, study.suggest(asked, 2, [], []), "stopped", [{"abend_nll": 0.1}]),
    ]
    states = [trial.state.name for trial in study.study_of(asked, known).trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED"]
    outside = config(space=SPACE | {"autoencoder.latent": {"choice": [2, 8]}})  # and not 4, as it stands
    assert [trial.number for trial in study.study_of(outside, known[:1]).trials] == []
    assert study.best_of(asked, known) == known[0]  # what was stopped is not in the race


def test_nothing_is_best_of_failures() -> None:
    asked = config()
    assert study.best_of(asked, [Trial(0, study.configured_values(asked), "failed")]) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_front_and_best_are_those_of_a_plain_search(points: list[tuple[int, int]]) -> None:
    asked = config(objective=["abend_nll", "disagreement"])
    own = study.configured_values(asked)
    known = [
        Trial(i, own, "done", [{"abend_nll": float(a), "disagreement": float(b)}]) for i, (a, b) in enumerate(points)
    ]
    front = [i for i, (a, b) in enumerate(points) if not any(c <= a and d >= b and (c, d) != (a, b) for c, d in points)]
    assert study.front_of(asked, known) == front
    best = study.best_of(asked, known)
    assert best is not None and best.number == min(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))


def test_what_matters_is_found() -> None:
    asked = config()
    known = searched(config(method="random"), 40)
    importances = study.importances_of(asked, known)
    assert next(iter(importances)) == "diffusion.lr" and importances["diffusion.lr"] > 0.7
    assert sum(importances.values()) < 1 and set(importances) == set(SPACE)
    assert study.importances_of(asked, known[: study.FEWEST - 1]) == {} != study.importances_of(asked, known[:30])
    same = [Trial(t.number, t.values, "done", [{"abend_nll": 1.0}]) for t in known]
    assert study.importances_of(asked, same) == {}


def tried(trials: int, loss: Callable[[dict[str, Any], random.Random], float]) -> list[Trial]:
    """At random, with results that ``loss`` makes of the values and of chance."""
    chance, asked = random.Random(0), config(method="random")
    values = [study.suggest(asked, number, [], []) for number in range(1, trials + 1)]
    return [Trial(i, one, "done", [{"abend_nll": loss(one, chance)}]) for i, one in enumerate(values)]


def test_keys_that_matter_only_together_are_no_keys_that_matter() -> None:
    together = tried(100, lambda values, _: float((values["diffusion.lr"] > 1e-3) != (values["sample.eta"] > 0.5)))
    importances = study.importances_of(config(), together)
    assert max(importances.values()) < 0.2 and sum(importances.values()) < 0.4


def test_the_report_names_the_method_and_what_single_keys_do_not_explain() -> None:
    asked, many = config(), tried(study.FEWEST, lambda _, chance: chance.random())
    importances = study.importances_of(asked, many)
    said = trial_report.readme(asked, many, many[0], [0], importances, [])
    rest = re.search(r"^\| keys together, or chance \|  \|  \| (\S+) \|$", said, re.MULTILINE)
    assert rest and float(rest[1]) == pytest.approx(1 - sum(importances.values()), abs=0.005) and float(rest[1]) > 0.1
    assert "fANOVA (Hutter et al. 2014): the share that a key explains alone" in said
    few = trial_report.readme(asked, many[:12], many[0], [0], study.importances_of(asked, many[:12]), [])
    assert "importance" not in few and "12 finished trials do not tell it from chance. From 30 on it is." in few


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            {"autoencoder.latents": {"choice": [2]}},
            r"autoencoder\.latents is no key .*did you mean autoencoder\.latent\?",
        ),
        ({"collect.lr": {"uniform": [0, 1]}}, r"collect\.lr is no key of autoencoder, diffusion, sample"),
        (
            {"autoencoder.latent": {"choice": [2, 0]}},
            r"search\.space\.autoencoder\.latent: 0: .*greater than or equal to 1",
        ),
        ({"autoencoder.latent": {"uniform": [2, 4.5]}}, r"autoencoder\.latent: 4\.5: .*integer"),
        ({"diffusion.lr": {"loguniform": [0, 1]}}, r"loguniform: 0 is not above 0"),
        ({"diffusion.lr": {"uniform": [1, 0.1]}}, r"1 to 0\.1 is empty"),
        ({"diffusion.lr": {"uniform": [0.1, 1], "choice": [1]}}, "exactly one of choice, uniform and loguniform"),
        ({"diffusion.lr": {"choices": [1]}}, "unknown key"),
        ({"diffusion.lr": {"choice": []}}, "choice: give one value or more"),
        ({"diffusion.schedule": {"choice": ["cosine", "cubic"]}}, r"diffusion\.schedule: 'cubic'"),
    ],
)
def test_a_space_that_cannot_be_searched(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(search={"trials": 2, "space": space})


def test_every_kind_of_choice_keeps_its_type() -> None:
    # YAML reads 1e-3 as a word.
    choices = {"diffusion.schedule": {"choice": ["linear", "cosine"]}, "diffusion.lr": {"choice": ["1e-3", 1]}}
    asked = changed(search={"trials": 2, "space": choices})
    found = [study.suggest(asked, number, [], []) for number in range(1, 12)]
    pairs = {(values["diffusion.schedule"], values["diffusion.lr"]) for values in found}
    assert pairs <= set(itertools.product(("linear", "cosine"), (1e-3, 1)))
    assert len(pairs) > 2
