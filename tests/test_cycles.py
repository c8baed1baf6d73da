"""Cycles of the whole network after the base, their average, and a run whose members share it."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import swa_utils

import ranks
from bend_ray import seeds
from bend_ray.config import Base, loads
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, ConfigError
from bend_ray.models import base as bases
from bend_ray.models import subset as subsets
from bend_ray.models.base import ModelSpec
from bend_ray.progress import ProgressCallback
from bend_ray.report import metrics, text
from bend_ray.run import Run
from bend_ray.stages import pipeline, show
from bend_ray.store import artifacts, lineage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from bend_ray.training import average as averages
from bend_ray.training import loop
from bend_ray.training import optimizer as optimizers
from bend_ray.training.average import average
from bend_ray.training.checkpoint import Checkpoint
from bend_ray.workers import cycles
from conftest import changed, once, run_of
from pipeline_helpers import copy, stamps
from test_training_resume import KilledError, data, same, state

CYCLES: dict[str, Any] = {
    "base": {"cycles": 2, "cycle_epochs": 1.5, "cycle_lr": 2e-3, "ema": 0.0},
    "collect": {"workers": 2, "trunk": "average", "subset": "head"},
    "evaluate": {"baselines": ["base_model", "random_originals"]},
}


def network(seed: int) -> nn.Module:
    return ModelSpec.of(changed().classifier, data()).build(seed)


# --- one cycle


def test_cycles_are_as_long_and_as_fast_as_the_base_unless_told_otherwise() -> None:
    cycle = Base(epochs=25, lr=0.5).cycle
    assert cycle.epochs == pytest.approx(9.5) and cycle.lr == 0.5


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_a_cycle_falls_from_its_own_rate_to_none(steps: int) -> None:
    base = Base(lr=0.5, cycle_lr=0.1, ema=0.9, cycle_epochs=1.5).cycle
    assert (base.schedule, base.ema, base.epochs) == ("falling", 0.0, 1.5)
    optimizer = optimizers.adamw(nn.Linear(1, 1), base)
    rates = optimizers.schedule(optimizer, base, steps)
    optimizer.step()
    for i in range(steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * i / steps)) / 2)
        rates.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_cycle_of_one_step_is_a_plain_one_at_its_rate() -> None:
    """Against the obvious step: nothing is left of the base's optimizer or rates."""
    dataset = data()
    base = Base(shards=1, batch_size=len(dataset.train), lr=1.0, cycles=1, cycle_epochs=1, cycle_lr=2e-3)
    ours, plain = network(0), network(0)
    cycles.train_cycle(ours, run_of(dataset, base=base), 0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, weight_decay=base.weight_decay)
    output = plain.train()(dataset.preprocess(dataset.train.images))
    nn.functional.cross_entropy(output, dataset.train.labels).backward()
    optimizer.step()
    for key, value in state(plain).items():  # rows in another order: where a gradient is near 0 its sign may change
        assert (state(ours)[key].double() - value.double()).abs().mean() < 2e-5


def test_a_killed_cycle_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    dataset, config = data(), changed(base={"cycles": 1, "cycle_epochs": 2.5})
    steps = len(dataset.train) // config.base.batch_size

    def cycle(checkpoint: Checkpoint | None, progress: ProgressCallback | None = None) -> dict[str, Tensor]:
        module = network(0)
        cycles.train_cycle(module, Run(config, progress=progress, loaded=dataset), 0, checkpoint)
        return state(module)

    def kill(done: int, total: int) -> None:
        assert total == round(2.5 * steps)
        if done == 2 * steps + 1:
            raise KilledError

    checkpoint = cycles.checkpoint_of(Folder(tmp_path), "recipe", cycles.cycle_unit(3))
    with pytest.raises(KilledError):
        cycle(checkpoint, kill)
    assert [path.name for path in (tmp_path / "trunks").iterdir()] == ["epoch-cycle-00003-00002.safetensors"]
    assert (
        cycles.checkpoint_of(Folder(tmp_path), "recipe", cycles.cycle_unit(2)).epochs() == 0
    )  # another cycle's is none of ours
    seen: list[int] = []
    assert same(cycle(checkpoint, lambda done, total: seen.append(done)), cycle(None))
    assert seen[0] == 2 * steps + 1


def _rank(rank: int, where: Path) -> None:
    torch.set_num_threads(1)
    module = network(0)
    cycles.train_cycle(module, Run(changed(base={"cycles": 1, "cycle_epochs": 1}), loaded=data()), 0)
    torch.save(state(module), where / f"{rank}.pt")


@pytest.mark.slow
def test_a_cycle_has_the_same_bits_on_two_workers(tmp_path: Path) -> None:
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        ranks.spawn(_rank, world, tmp_path / str(world))
    alone, *two = (torch.load(tmp_path / name) for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
    assert same(alone, two[0]) and same(alone, two[1])


# --- the average


class Network(nn.Module):
    """A batch norm, a spectral norm, dropout, and buffers of the user's own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.norm = nn.Linear(64, 16), nn.BatchNorm1d(16, momentum=0.3)
        self.drop, self.middle = nn.Dropout(0.5), spectral_norm(nn.Linear(16, 16))
        self.head = nn.Linear(16, 10)
        self.register_buffer("scale", torch.rand(3))
        self.register_buffer("count", torch.tensor(seed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.body(x.flatten(1)))))
        return self.head(torch.relu(self.middle(x)))


def averaged(kind: type[nn.Module] = Network) -> tuple[nn.Module, list[nn.Module], Run]:
    ends, run = [kind(seed).eval() for seed in (1, 2, 3)], run_of(data())
    module = kind(0)
    average(module, iter(ends), run)
    return module, ends, run


def test_weights_are_averaged_and_buffers_are_the_last_ones() -> None:
    module, ends, _ = averaged()
    of_ends = [dict(end.named_parameters()) for end in ends]
    for name, parameter in module.named_parameters():
        expected = torch.stack([one[name].detach().double() for one in of_ends]).mean(0)
        torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-7, rtol=1e-6)
    buffers, last = dict(module.named_buffers()), dict(ends[-1].named_buffers())
    assert torch.equal(buffers["scale"], last["scale"]) and int(buffers["count"]) == 3
    assert not any(child.training for child in module.modules())


def test_statistics_are_those_that_torch_counts_on_the_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "ROWS", 85)  # a quarter of them
    module, _, run = averaged()
    before = state(module)
    train = run.dataset.train.images
    batches = loop.batches(len(train), 85, seeds.generator_for(run.seed, "average", "batches"))
    swa_utils.update_bn([run.dataset.preprocess(train[next(batches)]) for _ in range(4)], module)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(state(module)[f"norm.{name}"], before[f"norm.{name}"])
    assert int(before["norm.num_batches_tracked"]) == 4 and module.get_submodule("norm").momentum == 0.3


def test_the_spectral_norm_of_an_average_is_one() -> None:
    module, ends, _ = averaged()
    last = dict(ends[-1].named_buffers())
    assert not torch.equal(
        dict(module.named_buffers())["middle.parametrizations.weight.0._u"], last["middle.parametrizations.weight.0._u"]
    )
    weight = module.get_submodule("middle").weight
    assert isinstance(weight, Tensor)
    assert torch.linalg.matrix_norm(weight.detach(), 2).item() == pytest.approx(1, abs=1e-3)


# --- the configuration, and runs that are there


def test_an_average_wants_cycles() -> None:
    with pytest.raises(ConfigError, match=r"collect\.trunk: average is .* base\.cycles is 0; give 1 or more"):
        changed(collect={"trunk": "average"})


def test_whole_epochs_are_hashed_as_whole_numbers() -> None:
    """As they were when there were no others."""
    assert json.dumps(changed(base={"epochs": 2.0}).hashed("base")) == json.dumps(changed().hashed("base"))
    assert loop.steps_of(Base(epochs=2.5), 340) == 12 and loop.steps_of(Base(epochs=2), 340) == 10


def test_the_base_does_not_depend_on_cycles_nor_snapshots_on_a_trunk_that_is_not_theirs() -> None:
    plain, cyclic = changed(), changed(base={"cycles": 3, "cycle_epochs": 2, "cycle_lr": 1e-2})
    for kind in ("base", "snapshots", "generator", "ensemble"):
        assert artifacts.recipe(kind, plain, {}) == artifacts.recipe(kind, cyclic, {})
    other = changed(base={"cycles": 3, "cycle_epochs": 2, "cycle_lr": 2e-2})
    assert artifacts.recipe("trunks", other, {}) != artifacts.recipe("trunks", cyclic, {})
    assert "collect.trunk" not in ARTIFACTS["snapshots"].settings(cyclic)


def test_runs_from_before_there_was_a_key_are_gone_on_with(tmp_path: Path) -> None:
    run, config = Folder(tmp_path), changed()
    made = artifacts.publish(run, "snapshots", config, {}, {}, [], "")
    assert "collect.trunk" not in made.config
    lineage.check_run(run, config)
    now = (tmp_path / "snapshots" / "_config.json").read_text()
    (tmp_path / "snapshots" / "_config.json").write_text(
        now.replace('"collect.subset"', '"collect.trunk": "base", "collect.subset"')
    )
    lineage.check_run(run, config)  # one that has it, off
    with pytest.raises(ArtifactError, match=r"collect\.trunk: 'base' there, 'average' here"):
        lineage.check_run(run, changed(base={"cycles": 1}, collect={"trunk": "average", "augment": True}))


def test_cycles_count_for_members_that_come_from_them() -> None:
    seconds = {"base": 10.0, "cycles": 8.0, "collect": 1.0, "search": 0.0, "fit": 1.0, "sample": 0.0, "evaluate": 0.0}
    for trunk, made in (("base", 2.0), ("average", 10.0)):
        config = changed(base={"cycles": 1}, collect={"trunk": trunk}, sample={"members": 10})
        cost = metrics.cost(config, seconds, [])
        assert cost["member_cost_ratio"] == pytest.approx(made / 10 / 10) and cost["cycles_s"] == 8
        assert "cycles 8.0 s" in text._cost(cost, 10)


# --- a whole run


def made(run: Path, reference: Path) -> None:
    shutil.copytree(reference / "base", run / "base")
    pipeline.execute(Run(changed(**CYCLES), Folder(run)))


@pytest.fixture(scope="module")
def averaged_run(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reference's base, two cycles on two workers, and all that follows from their average."""
    yield once(tmp_path_factory, "cycles", lambda run: made(run, reference))


@pytest.mark.ray
def test_members_share_the_average_of_cycles(averaged_run: Path, reference: Path) -> None:
    run, config, dataset = Folder(averaged_run), changed(**CYCLES), data()
    facts = artifacts.load(run / "trunks", "trunks").facts
    scores = facts["networks"]
    assert list(scores) == ["cycle-00000.safetensors", "cycle-00001.safetensors", "average.safetensors"]
    assert all(0 < one["val_accuracy"] <= 1 for one in scores.values())
    assert (run / "trunks").list() == [
        "README.md", "average.safetensors", "config.json", "cycle-00000.safetensors", "cycle-00001.safetensors",
    ]  # fmt: skip
    spec = ModelSpec.of(config.classifier, dataset)
    module = spec.build()
    bases.read_into(module, run / "base")
    for cycle in range(2):  # in this process alone, one after the other
        cycles.train_cycle(module, Run(config, loaded=dataset), cycle)
        assert same(state(module), state(bases.load(run / "trunks", spec, file=bases.cycle_place(cycle)[1])))
    network, base = (bases.load(run / folder, spec, file=file) for folder, file in (
        bases.average_place(), bases.base_place()
    ))  # fmt: skip
    ensemble, x = Ensemble.load(run), dataset.preprocess(dataset.test.images)
    assert (
        set(ensemble.subset.names) == set(subsets.choose(network, "head").names)
        and ensemble.trunk.plan != "whole model"
    )
    of_head = ensemble.trunk.logits(ensemble.subset.take(network)[None], x)[0]
    torch.testing.assert_close(of_head, network(x), atol=1e-5, rtol=1e-5)
    report = json.loads((averaged_run / "report" / "metrics.json").read_text())
    for name, logits in (("base_model", base(x)), ("average_of_cycles", network(x))):
        scored, accuracy = report["baselines"][name], (logits.argmax(1) == dataset.test.labels).float().mean().item()
        assert scored["members"] == 1 and scored["accuracy"] == pytest.approx(accuracy)
    assert report["baselines"]["cycle_ends"]["members"] == 3 and report["cost"]["cycles_s"] > 0
    before = json.loads((reference / "report" / "metrics.json").read_text())["baselines"]["base_model"]
    assert report["baselines"]["base_model"]["nll"] == pytest.approx(before["nll"], abs=1e-5)


@pytest.mark.ray
def test_the_same_command_changes_nothing_and_show_tells(
    averaged_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(averaged_run, tmp_path)
    before = stamps(run.path)
    pipeline.execute(Run(changed(**CYCLES), run))
    assert stamps(run.path) == before
    show.execute(str(run), {})
    said = capsys.readouterr().out
    assert "3 networks, the best one's validation accuracy" in said and "average of cycles (one network)" in said
    with pytest.raises(
        ArtifactError, match=r"trunks: was made by another configuration \(base\.cycle_lr: 0\.002 there"
    ):
        pipeline.execute(Run(changed(**CYCLES | {"base": CYCLES["base"] | {"cycle_lr": 1e-3}}), run))


@pytest.mark.ray
def test_finished_cycles_are_kept(averaged_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy(averaged_run, tmp_path)
    trunks = {path.name: path.read_bytes() for path in (run.path / "trunks").iterdir()}
    for name in ("config.json", "average.safetensors", "cycle-00001.safetensors"):
        (run.path / "trunks" / name).unlink()
    before = stamps(run.path)
    pipeline.execute(Run(loads(run.read("config.yaml").decode(), "config.yaml"), run), ("collect",))
    assert "1 of 2 cycles after it, and 0 of 5 chains" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (run.path / "trunks").iterdir()} == trunks
    kept = ("base", "snapshots", "trunks/cycle-00000")  # chains follow from the same trunk, and were there
    after = stamps(run.path)
    assert all(after[name] == before[name] for name in before if any(f"/{part}" in name for part in kept))
