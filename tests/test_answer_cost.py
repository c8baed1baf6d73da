"""Keys that follow from others, and the subset that keeps an answer cheap."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bend_ray.config import Config, dump, loads, parse
from bend_ray.ensemble import answer_cost
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ConfigError
from bend_ray.models import subset as subsets
from bend_ray.run import Run
from bend_ray.snapshots import chains
from bend_ray.stages import pipeline
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from conftest import BEND_RAY, TOY, changed
from pipeline_helpers import stamps
from test_training_resume import data

SHORT: dict[str, Any] = {"data": {"name": "digits"}, "classifier": {"name": "convnet"}}


def short(**sections: Any) -> Config:
    return parse(Config, {name: SHORT.get(name, {}) | sections.get(name, {}) for name in SHORT | sections}, "short")


@pytest.mark.parametrize(
    ("sections", "cycles", "trunk", "trunks"),
    [
        ({}, 4, "average", 1),
        ({"base": {"cycles": 2}}, 2, "average", 1),
        ({"base": {"cycles": 0}}, 0, "base", 1),
        ({"collect": {"trunk": "base"}}, 0, "base", 1),
        ({"base": {"cycles": 2}, "collect": {"trunk": "base"}}, 2, "base", 1),
        ({"collect": {"trunk": "each"}}, 4, "each", 5),
        ({"classifier": {"weights": "/w.pt"}}, 0, "base", 1),
        ({"classifier": {"weights": "/w.pt"}, "base": {"cycles": 1}}, 1, "average", 1),
        ({"base": {"count": 3}}, 4, "average", 3),
        ({"base": {"count": 2, "cycles": 1}, "collect": {"trunk": "each"}}, 1, "each", 4),
        ({"base": {"count": 2, "cycles": 0}}, 0, "base", 2),
    ],
)
def test_cycles_and_trunk_follow_from_each_other(
    sections: dict[str, Any], cycles: int, trunk: str, trunks: int
) -> None:
    config = short(**sections)
    assert (config.cycles, config.collect.trunk, config.trunks) == (cycles, trunk, trunks)
    assert config.collect.augment is (trunk == "base")
    assert config.sample.distance == ("auto" if trunks == 1 else "none")
    assert loads(dump(config), "dumped") == config


def test_what_is_said_stands() -> None:
    config = short(collect={"augment": True}, sample={"distance": "gaussian", "doubt": "none"})
    assert (config.collect.augment, config.sample.distance, config.sample.doubt) == (True, "gaussian", "none")
    with pytest.raises(ConfigError, match=r"base\.count: further bases are trained here"):
        short(classifier={"weights": "/w.pt"}, base={"count": 2})
    with pytest.raises(ConfigError, match=r"for each of 9 trunks \(base\.count: 9\)"):
        short(base={"count": 9}, sample={"members": 8})


def rule(**sections: Any) -> tuple[str, float]:
    """Of a run on the toy's data, and what an answer costs."""
    run = Run(changed(**{"collect": {"subset": "auto"}} | sections), loaded=data())
    module = run.spec.build()
    found, cut = answer_cost.chosen(run, module)
    assert answer_cost.rule(run) == found
    return found, answer_cost.forward_passes(run, module, cut)


def test_auto_takes_no_more_than_an_answer_may_cost() -> None:
    (cheap, head), (dear, norms) = rule(), rule(ensemble={"answer_cost": 7})
    assert (cheap, dear) == ("head", "auto") and 1 < head < 1.5 < norms <= 7
    assert (
        rule(ensemble={"answer_cost": norms})[0] == "auto" and rule(ensemble={"answer_cost": norms - 0.01})[0] == "head"
    )
    assert rule(sample={"members": 1})[0] == "auto"  # nothing is saved by a head
    assert rule(collect={"subset": "norm"})[0] == "norm"


def test_what_an_answer_may_cost_is_for_each_network() -> None:
    each = {"collect": {"trunk": "each", "subset": "auto", "chains": 8}, "base": {"cycles": 2}}
    found, passes = rule(**each)
    assert found == "head" and 3 < passes < 3 * 1.5
    assert rule(**each, ensemble={"answer_cost": 7 / 3})[0] == "auto"


def test_the_key_is_hashed_where_it_matters() -> None:
    def settings(**sections: Any) -> dict[str, Any]:
        return ARTIFACTS["snapshots"].settings(changed(**sections))

    assert "ensemble.answer_cost" not in settings()  # as runs from before have it
    assert settings(ensemble={"answer_cost": 3})["ensemble.answer_cost"] == 3
    assert settings(ensemble={"chunk": 3}) == settings()


def test_a_chains_rate_follows_from_its_subset() -> None:
    module = Run(changed(), loaded=data()).spec.build()
    for spec, lr in (("head", 0.01), ("norm+head", 0.1), ("norm", 0.1), ("regex:^head.bias", 0.1)):
        subset = subsets.choose(module, spec)
        assert chains.with_rate(changed(collect={"lr": None}).collect, subset).lr == lr
        assert chains.with_rate(changed(collect={"lr": 0.5}).collect, subset).lr == 0.5


@pytest.mark.ray
def test_a_dry_run_says_what_an_answer_costs(
    tmp_path: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.dry_run(Run(changed(collect={"subset": "auto"}), Folder(tmp_path)), ())
    said = capsys.readouterr().out
    assert "subset:    head: D = " in said and "(ensemble.answer_cost: 1.5)" in said
    line = next(line for line in said.splitlines() if line.startswith("answer:"))
    assert "7 members cost 1." in line and "parameters in" in line and "would cost 6." in line
    pipeline.dry_run(Run(changed(), Folder(tmp_path)), ())
    assert "would cost" not in capsys.readouterr().out


NORMALISED = """
import torch
from torch import nn

class Normalised(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes), nn.LogSoftmax(-1))
"""
"""A classifier whose last layer does not give what comes out."""


def made(where: Path, has_head: bool) -> Path:
    """A run as far as its ensemble, of a command in the folder of the classifier."""
    own: dict[str, Any] = {} if has_head else {"classifier": {"target": "own_net:Normalised"}}
    auto = {"doubt": "auto", "distance": "auto"}
    config = TOY | own | {"collect": TOY["collect"] | {"subset": "auto"}, "sample": TOY["sample"] | auto}
    (where / "own_net.py").write_text(NORMALISED)
    (where / "toy.yaml").write_text(yaml.safe_dump(config))
    for stage in ("collect", "fit", "sample"):
        subprocess.run([BEND_RAY, stage, "toy.yaml", "--run-dir", "run"], cwd=where, check=True)
    return where / "run"


@pytest.mark.ray
@pytest.mark.parametrize("has_head", [True, False])
def test_doubt_and_distance_are_there_where_members_can_have_them(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch, has_head: bool
) -> None:
    run = made(tmp_path, has_head)
    monkeypatch.syspath_prepend(str(tmp_path))
    ensemble = Ensemble.load(run)
    assert ("doubt_scale" in ensemble.manifest.facts) == has_head == (run / "ensemble/doubt.safetensors").exists()
    assert ensemble.manifest.facts["distance"]["measure"] == "cosine" and ensemble.subset.is_one_layer
    assert ensemble.predict(data().test.images[:3]).distance_B is not None
    before = stamps(run)
    subprocess.run([BEND_RAY, "sample", "toy.yaml", "--run-dir", "run"], cwd=tmp_path, check=True)
    assert stamps(run) == before
