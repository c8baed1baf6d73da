"""Runs with several bases: trained side by side, each with its own cycles, behind one ensemble."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bend_ray import seeds
from bend_ray.ensemble.ensemble import Ensemble, trunk_file
from bend_ray.errors import ArtifactError
from bend_ray.models import base as bases
from bend_ray.run import Run
from bend_ray.stages import collect, export, pipeline, show
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.training import loop
from bend_ray.training.average import average
from bend_ray.workers import cycles
from conftest import TWO, bits, changed, once
from oracles import logits_of_whole_models
from pipeline_helpers import copy, stamps
from processes import Start, count, ended_well, first_worker, kill, start
from test_training_resume import data

__all__ = ["start"]

pytestmark = pytest.mark.ray

TWO_BASES: dict[str, Any] = {
    "base": {"count": 2, "cycles": 1, "cycle_epochs": 1, "cycle_lr": 2e-3},
    "collect": {"workers": 2, "trunk": "average", "subset": "head", "accuracy_filter": None},
    "sample": {"actors": 2},
    "evaluate": {"baselines": ["base_model", "random_originals"]},
}
NETWORKS = [
    *("average.safetensors", "base-00001-average.safetensors", "base-00001-cycle-00000.safetensors"),
    *("base-00001.safetensors", "cycle-00000.safetensors"),
]


def alone(**more: Any) -> dict[str, Any]:
    """The same on one worker and one actor."""
    return TWO_BASES | {
        "collect": TWO_BASES["collect"] | {"workers": 1} | more,
        "sample": TWO_BASES["sample"] | {"actors": 1},
    }


@pytest.fixture(scope="module")
def two_bases(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reference's base, a further one, a cycle of each, and all that follows from the two averages."""

    def make(run: Path) -> None:
        shutil.copytree(reference / "base", run / "base")
        pipeline.execute(Run(changed(**TWO_BASES), Folder(run)))

    yield once(tmp_path_factory, "two_bases", make)


def test_members_stand_on_the_average_of_each_base(two_bases: Path) -> None:
    config, dataset, folder = changed(**TWO_BASES), data(), Folder(two_bases / "ensemble")
    ensemble, places = Ensemble.load(two_bases), bases.trunk_places(config)
    assert places == [("trunks", "average.safetensors"), ("trunks", "base-00001-average.safetensors")]
    assert ensemble.trunks == 2 and ensemble.manifest.facts["trunk_of_member"] == [0, 1, 0, 1, 0, 1, 0]
    x = dataset.preprocess(dataset.test.images)
    networks = [bases.load(Folder(two_bases / kind), ensemble.spec, file=file) for kind, file in places]
    for member, theta_D in enumerate(ensemble.theta_MD):
        (expected,) = logits_of_whole_models(networks[member % 2], ensemble.subset, theta_D[None], x)
        torch.testing.assert_close(ensemble.logits(dataset.test.images)[member], expected, atol=1e-4, rtol=1e-4)
    for number, (kind, file) in enumerate(places):
        assert folder.read(trunk_file(number)) == (two_bases / kind / file).read_bytes()


def test_a_further_base_is_a_training_from_a_seed_of_its_own(two_bases: Path) -> None:
    config, dataset = changed(**TWO_BASES), data()
    assert [name for name in (Folder(two_bases) / "trunks").list() if name.endswith("tensors")] == NETWORKS
    run = Run(config, loaded=dataset).seeded(seeds.seed_for(config.seed, "base-00001") % 2**31)
    module = run.spec.build(run.seed)
    loop.train(module, run)
    (_, base), (_, cycle), (_, mean) = bases.base_place(1), bases.cycle_place(0, 1), bases.average_place(1)

    def kept(file: str) -> dict[str, torch.Tensor]:
        return bases.load(Folder(two_bases / "trunks"), run.spec, file=file).state_dict()

    def same(file: str) -> bool:
        return all(torch.equal(value, kept(file)[key]) for key, value in module.state_dict().items())

    assert same(base)
    cycles.train_cycle(module, run, 0)
    assert same(cycle)
    average(module, [bases.load(Folder(two_bases / "trunks"), run.spec, file=cycle)], run)
    assert same(mean)
    first = bases.load(Folder(two_bases / "base"), run.spec).state_dict()
    assert not any(torch.equal(value, first[key]) for key, value in kept(base).items() if key.endswith("weight"))


def test_report_has_the_ensemble_of_the_networks_and_what_they_cost(two_bases: Path) -> None:
    report = json.loads((two_bases / "report" / "metrics.json").read_text())
    row = {row["name"]: row for row in report["rivals"]}
    cycle = row["average_of_cycles"]["cost_trainings"] - 1
    assert row["trunks"]["members"] == row["trunks"]["answer_forwards"] == 2
    assert row["trunks"]["cost_trainings"] == pytest.approx(2 + 2 * cycle) and row["cycle_ends"]["members"] == 2
    assert row["abend"]["cost_trainings"] > row["random_originals"]["cost_trainings"] > row["trunks"]["cost_trainings"]
    assert 2 < row["abend"]["answer_forwards"] < 3
    networks = artifacts.load(Folder(two_bases) / "trunks", "trunks").facts["networks"]
    assert sorted(networks) == NETWORKS and all(0 < one["val_accuracy"] <= 1 for one in networks.values())


def test_same_bits_however_many_train_and_whatever_was_there(
    two_bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(two_bases, tmp_path)
    for name in (
        "trunks/config.json",
        "trunks/base-00001-average.safetensors",
        "trunks/base-00001-cycle-00000.safetensors",
    ):
        (run.path / name).unlink()
    for kind in ("snapshots", "generator", "ensemble", "report"):
        shutil.rmtree(run.path / kind)
    before = stamps(run.path)
    assert collect.existing(Run(changed(**alone()), run)) is None
    pipeline.execute(Run(changed(**alone()), run))
    assert "steps of further bases" in capsys.readouterr().out
    kept = ("trunks/base-00001.safetensors", "trunks/cycle-00000", "/base/")
    assert all(stamps(run.path)[name] == before[name] for name in before if any(part in name for part in kept))
    assert bits(run.path) == bits(two_bases)
    with pytest.raises(ArtifactError, match=r"base\.count"):
        pipeline.execute(Run(changed(**TWO_BASES | {"base": TWO_BASES["base"] | {"count": 1}}), run))


def test_show_and_export_know_of_them(two_bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.execute(str(two_bases), {})
    said = capsys.readouterr().out
    assert "5 networks, the best one's" in said and "7 members on 2 trunks" in said
    assert "ensemble of the networks members stand on" in said
    export.execute(str(two_bases), "trunks", str(tmp_path / "out"))
    ensemble, dataset = Ensemble.load(tmp_path / "out"), data()
    x = dataset.preprocess(dataset.test.images)
    networks = [
        bases.load(Folder(two_bases / kind), ensemble.spec, file=file)
        for kind, file in bases.trunk_places(changed(**TWO_BASES))
    ]
    expected_MBK = torch.stack([network(x) for network in networks])
    torch.testing.assert_close(ensemble.logits(dataset.test.images), expected_MBK, atol=1e-4, rtol=1e-4)


def test_bases_without_cycles(two_bases: Path, tmp_path: Path) -> None:
    """Members stand on the bases themselves."""
    run = copy(two_bases, tmp_path)
    for kind in ("trunks", "snapshots", "generator", "ensemble", "report"):
        shutil.rmtree(run.path / kind)
    keys = alone(trunk="base") | {"base": {"count": 2, "cycles": 0}}
    pipeline.execute(Run(changed(**keys), run), ("collect", "fit", "sample"))
    names = [name for name in (run / "trunks").list() if name.endswith("tensors")]
    assert names == ["base-00001.safetensors"]
    first = (two_bases / "trunks" / names[0]).read_bytes()  # cycles change no base
    assert Ensemble.load(run).trunks == 2 and len((run.path / "trunks" / names[0]).read_bytes()) == len(first)
    assert (run.path / "ensemble" / trunk_file(1)).read_bytes() == (run.path / "trunks" / names[0]).read_bytes()


@pytest.mark.slow
def test_a_killed_base_goes_on_from_its_last_epoch(start: Start, tmp_path: Path) -> None:
    keys = {"base": {**TWO["base"], "count": 2, "epochs": 40}, "collect": {**TWO["collect"], "subset": "head"}}
    run, driver = tmp_path / "run", start("collect", config=TWO | keys)
    begun = "trunks/epoch-base-00001-*"
    kill(first_worker(cycles.make_base, lambda: count(run, begun), driver), driver)
    assert "steps of further bases" in ended_well(driver)
    assert count(run, "trunks/epoch-*") == 0 and count(run, "timings/base-00001.json") == 1
    whole = Run(changed(**keys), loaded=data()).seeded(seeds.seed_for(0, "base-00001") % 2**31)
    module = whole.spec.build(whole.seed)
    loop.train(module, whole)
    folder, file = bases.base_place(1)
    kept = bases.load(Folder(run / folder), whole.spec, file=file).state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())
