"""Chains depend on (seed, chain) alone, and those that train on kept features are those of the whole model."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Augment, Collect
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ArtifactError, ResourceError, TrainingError
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset, choose
from bend_ray.run import Run
from bend_ray.snapshots import chains, parquet
from bend_ray.snapshots.features import Rows, Tails
from bend_ray.snapshots.snapshots import Fact
from bend_ray.stages import collect as stage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from bend_ray.training import loop
from bend_ray.training.augment import augment
from conftest import changed, run_of
from oracles import train_chain

CONFIG = changed()
RESNET = changed(classifier={"name": "resnet18", "kwargs": {"width": 4}})


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(CONFIG.data, 0)


def settings(**keys: Any) -> Collect:
    return changed(collect=keys).collect


def built(dataset: Dataset, config: Any = CONFIG) -> nn.Module:
    return ModelSpec.of(config.classifier, dataset).build(0)


def run(
    module: nn.Module, subset: Subset, dataset: Dataset, collect: Collect, numbers: range, seed: int = 0
) -> list[tuple[Tensor, list[Fact]]]:
    of_these = run_of(dataset, seed, collect=collect)
    start_CD = subset.take(module).expand(len(numbers), -1)
    return chains.run_chains(Tails.of(module, subset, of_these), start_CD, of_these, numbers)


def one(dataset: Dataset, chain: int, seed: int = 0) -> tuple[Tensor, list[Fact]]:
    module = built(dataset)
    (found,) = run(module, choose(module, "norm+head"), dataset, CONFIG.collect, range(chain, chain + 1), seed)
    return found


def test_chain_depends_on_seed_and_chain_alone(dataset: Dataset) -> None:
    first, facts = one(dataset, 1)
    torch.rand(7)  # what else drew from the global generator is no matter
    again, _ = one(dataset, 1)
    assert torch.equal(first, again) and first.shape[0] == CONFIG.collect.snapshots_per_chain
    assert not torch.equal(first, one(dataset, 2)[0]) and not torch.equal(first, one(dataset, 1, seed=1)[0])
    assert [fact.chain for fact in facts] == [1, 1] and facts[0].step < facts[1].step


def test_chains_start_at_the_base_or_anew_each_by_its_number(dataset: Dataset) -> None:
    module, description = built(dataset), ModelSpec.of(CONFIG.classifier, dataset)
    subset = choose(module, "last_block")

    def starts(init: str, numbers: range) -> Tensor:
        return chains.starts(module, subset, run_of(dataset, 5, collect=settings(init=init)), numbers)

    assert torch.equal(starts("base", range(2, 4)), subset.take(module).expand(2, -1))
    anew_CD = starts("fresh", range(2, 4))
    assert torch.equal(anew_CD[1], subset.take(description.build(seeds.seed_for(5, "chain", 3, "init"))))
    assert torch.equal(anew_CD[1:], starts("fresh", range(3, 4))) and not torch.equal(anew_CD[0], anew_CD[1])


@pytest.mark.parametrize("spec", ["head", "norm+head"])
def test_chains_leave_the_classifier_alone(dataset: Dataset, spec: str) -> None:
    module = built(dataset)
    subset = choose(module, spec)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ((theta_SD, _),) = run(module, subset, dataset, CONFIG.collect, range(1))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not torch.equal(theta_SD[0], subset.take(module))


def test_chain_that_diverges_says_what_to_lower(dataset: Dataset) -> None:
    module = built(dataset)
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match=r"chain 0: not finite .* lower collect\.lr"):
        run(module, choose(module, "head"), dataset, CONFIG.collect, range(1))


@pytest.mark.parametrize(
    ("config", "spec", "plan", "at_once", "optimizer", "smoothing"),
    [
        (CONFIG, "head", "vmap", 4, "adamw", 0.0),
        (CONFIG, "head", "vmap", 4, "adamw", 0.2),
        (CONFIG, "head", "vmap", 4, "sgd", 0.0),
        (CONFIG, "norm+head", "whole model", 1, "adamw", 0.0),
        (RESNET, "last_block", "loop", 1, "sgd", 0.0),
        (RESNET, "last_block", "loop", 1, "adamw", 0.2),
        (RESNET, "head", "vmap", 4, "adamw", 0.0),
        (RESNET, "norm+head", "whole model", 1, "adamw", 0.0),
    ],
)
def test_kept_features_give_the_chains_of_the_whole_model(
    dataset: Dataset, config: Any, spec: str, plan: str, at_once: int, optimizer: str, smoothing: float
) -> None:
    """The same batches, up to float rounding; what is said of validation rows as well."""
    module = built(dataset, config)
    collect = settings(at_once=4, optimizer=optimizer, label_smoothing=smoothing)
    subset = choose(module, spec)
    of_these = run_of(dataset, collect=collect)
    tails = Tails.of(module, subset, of_these)
    assert (tails.trunk.plan, tails.at_once) == (plan, at_once)
    start_CD = subset.take(module).expand(4, -1)
    found = [
        trained
        for first in range(0, 4, at_once)
        for trained in chains.run_chains(tails, start_CD[:at_once], of_these, range(first, first + at_once))
    ]
    for chain, (theta_SD, facts) in enumerate(found):
        wanted_SD, scores = train_chain(module, subset, dataset, collect, 0, chain)
        torch.testing.assert_close(theta_SD, wanted_SD, rtol=0, atol=1e-4)
        torch.testing.assert_close([fact.val_loss for fact in facts], [loss for loss, _ in scores], rtol=0, atol=1e-4)
        assert [fact.val_accuracy for fact in facts] == pytest.approx([right for _, right in scores], abs=0.02)
        assert [fact.chain for fact in facts] == [chain] * collect.snapshots_per_chain


def test_a_chain_is_the_same_in_any_company(dataset: Dataset) -> None:
    module, collect = built(dataset), settings(at_once=3)
    subset = choose(module, "head")
    together = run(module, subset, dataset, collect, range(3))
    ((alone_SD, _),) = run(module, subset, dataset, collect, range(2, 3))
    torch.testing.assert_close(together[2][0], alone_SD, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", ["head", "last_block"])
def test_features_beyond_the_memory_lie_in_a_file(
    dataset: Dataset, spec: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module = built(dataset, RESNET)
    subset = choose(module, spec)
    made: list[Rows] = []
    empty = Rows.empty

    def noted(*given: Any) -> Rows:
        made.append(empty(*given))
        return made[-1]

    monkeypatch.setattr(Rows, "empty", noted)
    in_memory, in_file = (run(module, subset, dataset, settings(max_memory=most), range(1))[0] for most in (1.0, 0.0))
    assert torch.equal(in_memory[0], in_file[0]) and in_memory[1] == in_file[1]
    assert [rows.data.is_shared() for rows in made] == [False, False, True, True]  # of training and validation rows
    assert not list(tmp_path.iterdir())  # it has no name any more


def test_features_in_fewer_bits_come_near(dataset: Dataset) -> None:
    module = built(dataset)
    subset = choose(module, "head")
    ((exact_SD, facts),) = run(module, subset, dataset, settings(features="float32"), range(1))
    for dtype, most in (("bfloat16", 0.02), ("uint8", 0.02)):
        ((theta_SD, again),) = run(module, subset, dataset, settings(features=dtype), range(1))
        assert 0 < (theta_SD - exact_SD).norm() / exact_SD.norm() < most
        assert again[-1].val_loss == pytest.approx(facts[-1].val_loss, abs=0.02)


def test_a_full_disk_is_named(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    module = built(dataset)
    with pytest.raises(ResourceError, match=r"collect\.max_memory: .*No space left on device"):
        Tails.of(module, choose(module, "head"), run_of(dataset, collect=settings(max_memory=0)))


def test_chains_see_changed_rows_and_run_the_whole_model_on_them(dataset: Dataset) -> None:
    module, changes = built(dataset), Augment(crop=2, flip=True)
    subset = choose(module, "head")
    of_these = run_of(dataset, augment=changes)
    tails = Tails.of(module, subset, of_these)
    assert (tails.trunk.plan, tails.at_once) == ("whole model", 1)
    start_CD, chain = subset.take(module)[None], range(3, 4)
    (first_SD, _), (again_SD, _) = (chains.run_chains(tails, start_CD, of_these, chain)[0] for _ in range(2))
    plain_SD, _ = run(module, subset, dataset, CONFIG.collect, chain)[0]
    assert torch.equal(first_SD, again_SD) and not torch.allclose(first_SD, plain_SD, atol=1e-3)
    index = torch.arange(6)
    (x,) = tails.train(index, seeds.generator_for(0, "x"))
    changed_images = augment(dataset.train.images[index], changes, seeds.generator_for(0, "x"))
    assert torch.equal(x, dataset.preprocess(changed_images))
    (x,) = tails.val(index, seeds.generator_for(0, "x"))  # those never change
    assert torch.equal(x, dataset.preprocess(dataset.val.images[index]))


def test_levels_are_off_by_half_a_level_at_most() -> None:
    value = torch.randn(5, 3, 4) * torch.tensor([0.0, 1e-3, 1.0, 30.0, 1e4])[:, None, None]
    rows = Rows.empty(value, 5, torch.uint8, torch.device("cpu"))
    rows.put(torch.arange(5), value)
    index = torch.tensor([[4, 0], [2, 3]])
    again = rows.take(index, torch.device("cpu"))
    level = (value.flatten(1).amax(1) - value.flatten(1).amin(1)) / 255
    assert again.shape == (2, 2, 3, 4) and again.dtype == torch.float32
    assert ((again - value[index]).abs().flatten(2) <= 0.501 * level[index][..., None] + 1e-6).all()
    whole = Rows.empty(torch.arange(6).reshape(3, 2), 3, torch.uint8, torch.device("cpu"))  # whole numbers stay
    whole.put(torch.arange(3), torch.arange(6).reshape(3, 2))
    assert torch.equal(whole.take(torch.tensor([1]), torch.device("cpu")), torch.tensor([[2, 3]]))


def test_cyclic_learning_rate_is_that_of_warm_restarts() -> None:
    collect = settings(schedule="cyclic", lr=0.3)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5)
    for step in range(15):
        assert chains.learning_rate(collect, step, [5, 10, 15]) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert {chains.learning_rate(settings(), step, [5, 10]) for step in range(10)} == {CONFIG.collect.lr}


def test_chains_follow_the_cyclic_learning_rate(dataset: Dataset) -> None:
    module, collect = built(dataset), settings(schedule="cyclic", epochs=1.2)
    subset = choose(module, "head")
    assert chains.steps_of(collect, len(dataset.train)) == 6
    ((theta_SD, _),) = run(module, subset, dataset, collect, range(1))
    wanted_SD, _ = train_chain(module, subset, dataset, collect, 0, 0)
    torch.testing.assert_close(theta_SD, wanted_SD, rtol=0, atol=1e-4)
    assert not torch.allclose(theta_SD, run(module, subset, dataset, settings(epochs=1.2), range(1))[0][0], atol=1e-4)


@pytest.mark.ray
def test_chains_train_on_images_as_they_are_where_the_base_alone_sees_changed_ones(
    ray_cluster: str, tmp_path: Path
) -> None:
    config = changed(
        augment={"crop": 1}, collect={"augment": False, "features": "float32", "subset": "head", "workers": 1}
    )
    folder, dataset = Folder(tmp_path), load_dataset(config.data, 0)
    stage.execute(Run(config, folder, loaded=dataset))
    module = bases.load(folder / "base", ModelSpec.of(config.classifier, dataset))
    expected = run(module, choose(module, "head"), dataset, config.collect, range(config.collect.chains))
    found_SD = parquet.read(folder / "snapshots", config.collect.chains).theta_SD
    torch.testing.assert_close(found_SD, torch.cat([theta_SD for theta_SD, _ in expected]), atol=1e-5, rtol=0)


@pytest.mark.ray
def test_chains_train_on_rows_that_the_base_has_not_seen(ray_cluster: str, tmp_path: Path) -> None:
    config = changed(collect={"unseen": 0.25, "subset": "head", "workers": 1}, base={"shards": 1})
    folder, dataset = Folder(tmp_path), load_dataset(config.data, 0)
    of_base, of_chains = dataset.divided(0.25, 1.0, config.seed)
    stage.execute(Run(config, folder, loaded=dataset))
    description = ModelSpec.of(config.classifier, dataset)
    module, alone = bases.load(folder / "base", description), description.build(config.seed)
    loop.train(alone, Run(config, loaded=of_base))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, atol=1e-5, rtol=0)
    expected = run(module, choose(module, "head"), of_chains, config.collect, range(config.collect.chains))
    found_SD = parquet.read(folder / "snapshots", config.collect.chains).theta_SD
    torch.testing.assert_close(found_SD, torch.cat([theta_SD for theta_SD, _ in expected]), atol=1e-5, rtol=0)
    with pytest.raises(ArtifactError, match=r"base: was made from another collect\.unseen"):
        stage.execute(Run(config.with_keys({"collect.unseen": 0.0}), folder, loaded=dataset))


@pytest.mark.ray
def test_groups_of_chains_are_the_same_on_any_number_of_workers(ray_cluster: str, tmp_path: Path) -> None:
    """One that lost a chain of a group trains the group again, and leaves the chains that were there."""
    config = changed(collect={"workers": 2, "subset": "head", "at_once": 2})
    run, dataset = Folder(tmp_path), load_dataset(config.data, 0)
    stage.execute(Run(config, run, loaded=dataset))
    folder, kept = run / "snapshots", [(tmp_path / "snapshots" / parquet.shard_name(chain)) for chain in (0, 4)]
    theta_SD, stamps = parquet.read(folder, 5).theta_SD, [path.stat() for path in kept]
    for name in (ARTIFACTS["snapshots"].manifest, *map(parquet.shard_name, (1, 2, 3))):
        folder.delete(name)
    stage.execute(Run(config.with_keys({"collect.workers": 1}), run, loaded=dataset))
    assert torch.equal(parquet.read(folder, 5).theta_SD, theta_SD)
    assert [path.stat() for path in kept] == stamps
