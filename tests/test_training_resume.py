"""The base's training: learning rates, moving average, precision; and after a kill it goes on to the same bits."""

import functools
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ranks
from bend_ray.config import Base, Config, dump
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ArtifactError, ConfigError
from bend_ray.models.base import ModelSpec
from bend_ray.progress import ProgressCallback
from bend_ray.run import Run
from bend_ray.stages import show
from bend_ray.store import lineage
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors, write_tensors
from bend_ray.training import loop
from bend_ray.training import optimizer as optimizers
from bend_ray.training.checkpoint import Checkpoint
from conftest import TWO, changed
from processes import Start, count, kill, start, wait_for, workers

__all__ = ["start"]

EPOCHS = 3
EVERYTHING: dict[str, Any] = {
    "base": {"epochs": EPOCHS, "schedule": "cosine", "ema": 0.9, "label_smoothing": 0.1, "precision": "bfloat16"},
    "augment": {"crop": 1, "flip": True, "cutout": 3},
}


class KilledError(Exception):
    """In place of a signal."""


@functools.cache
def data() -> Dataset:
    return load_dataset(changed().data, 0)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in optimizers.named(module).items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def killed_at(step: int) -> ProgressCallback:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise KilledError

    return progress


def trained(
    config: Config,
    checkpoint: Checkpoint | None = None,
    progress: ProgressCallback | None = None,
    bootstrap: bool = False,
) -> dict[str, Tensor]:
    """What a training ends with."""
    dataset = data()
    module = ModelSpec.of(config.classifier, dataset).build(0)
    loop.train(module, Run(config, progress=progress, loaded=dataset), "base", bootstrap, checkpoint)
    return state(module)


def per_epoch(config: Config) -> int:
    return len(data().train) // config.base.batch_size


@pytest.mark.parametrize("bootstrap", [False, True])
def test_goes_on_from_any_epoch_to_the_same_bits(tmp_path: Path, bootstrap: bool) -> None:
    config, checkpoint = changed(base={"epochs": EPOCHS}), Checkpoint(Folder(tmp_path / "now"), "recipe")

    def keep(done: int, total: int) -> None:
        if done % per_epoch(config) == 1 and done > 1:
            shutil.copytree(tmp_path / "now", tmp_path / str(done // per_epoch(config)))

    whole = trained(config, checkpoint, keep, bootstrap=bootstrap)
    assert same(whole, trained(config, bootstrap=bootstrap))
    for epoch in range(1, EPOCHS):
        seen: list[int] = []
        begun = Checkpoint(Folder(tmp_path / str(epoch)), "recipe")
        found = trained(config, begun, lambda done, total: seen.append(done), bootstrap=bootstrap)  # noqa: B023
        assert same(found, whole) and seen[0] == epoch * per_epoch(config) + 1  # nothing is done twice


def test_killed_in_each_epoch(tmp_path: Path) -> None:
    config, checkpoint = changed(**EVERYTHING), Checkpoint(Folder(tmp_path), "recipe")
    for epoch in range(EPOCHS):
        with pytest.raises(KilledError):
            trained(config, checkpoint, killed_at(epoch * per_epoch(config) + 3))
        assert checkpoint.epochs() == epoch and len(list(tmp_path.iterdir())) == min(epoch, 1)
    assert same(trained(config, checkpoint), trained(config))
    checkpoint.clear()
    assert list(tmp_path.iterdir()) == []


def test_seconds_go_on_too(tmp_path: Path) -> None:
    config, checkpoint = changed(), Checkpoint(Folder(tmp_path), "recipe")
    with pytest.raises(KilledError):
        trained(config, checkpoint, killed_at(per_epoch(config) + 1))
    name = "epoch-00001.safetensors"
    tensors, note = read_tensors(Folder(tmp_path), name)
    assert tensors["seconds"] > 0
    write_tensors(Folder(tmp_path), name, tensors | {"seconds": tensors["seconds"] + 1000}, note)
    dataset = data()
    module = ModelSpec.of(config.classifier, dataset).build(0)
    assert loop.train(module, Run(config, loaded=dataset), checkpoint=checkpoint) > 1000


def _rank(rank: int, where: Path) -> None:
    torch.set_num_threads(1)
    # Only the first knows the folder: what others would read there is no matter.
    checkpoint = Checkpoint(Folder(where / ("nothing" if rank else "checkpoint")), "recipe")
    seen: list[int] = []
    found = trained(changed(**EVERYTHING), checkpoint, lambda done, total: seen.append(done))
    torch.save((found, seen), where / f"{rank}.pt")


@pytest.mark.slow
def test_all_workers_go_on_from_what_the_first_has_read(tmp_path: Path) -> None:
    config = changed(**EVERYTHING)
    with pytest.raises(KilledError):
        trained(config, Checkpoint(Folder(tmp_path / "checkpoint"), "recipe"), killed_at(2 * per_epoch(config) + 1))
    ranks.spawn(_rank, 3, tmp_path)
    alone = trained(config)
    for rank in range(3):
        found, seen = torch.load(tmp_path / f"{rank}.pt")
        assert same(found, alone) and seen[0] == 2 * per_epoch(config) + 1
    assert not (tmp_path / "nothing").exists()


def test_checkpoint_of_another_recipe_or_classifier_is_refused(tmp_path: Path) -> None:
    config, folder = changed(), Folder(tmp_path)
    with pytest.raises(KilledError):
        trained(config, Checkpoint(folder, "recipe"), killed_at(per_epoch(config) + 2))
    with pytest.raises(ArtifactError, match=r"epoch-00001\.safetensors: was made by another configuration"):
        trained(config, Checkpoint(folder, "other"))
    with pytest.raises(ArtifactError, match=r"epoch-00001\.safetensors: '\S+' does not fit the classifier"):
        trained(changed(classifier={"kwargs": {"width": 4}}), Checkpoint(folder, "recipe"))
    path = tmp_path / "epoch-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"epoch-00001\.safetensors: is not a whole"):
        trained(config, Checkpoint(folder, "recipe"))


def test_begun_base_of_another_configuration_is_named_and_shown(
    tmp_path: Path, toy: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Folder(tmp_path)
    run.write("config.yaml", dump(toy).encode())
    Checkpoint(run / "base", "recipe").save(3, {"x": torch.zeros(1)})
    lineage.check_run(run, toy)
    with pytest.raises(ArtifactError, match=r"augment\.crop: 0 there, 1 here"):
        lineage.check_run(run, changed(augment={"crop": 1}))
    show.execute(str(run), {})
    assert "not there, 3 epochs done" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 2, 19, 40, 101])
def test_cosine_is_the_formula(steps: int) -> None:
    base, warm = Base(schedule="cosine", lr=0.1), max(1, steps // 20)
    optimizer = optimizers.adamw(nn.Linear(1, 1), base)
    rates = optimizers.schedule(optimizer, base, steps)
    optimizer.step()
    for i in range(steps):
        down = (1 + math.cos(math.pi * (i - warm) / max(1, steps - warm))) / 2
        expected = 0.1 * ((i + 1) / (warm + 1) if i < warm else down)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-9)
        rates.step()


@pytest.mark.parametrize("name", ["onecycle", "cosine", "falling"])
def test_rates_go_on_where_they_were(name: str) -> None:
    base, steps = Base.model_validate({"schedule": name}), 50
    told: list[list[Any]] = []
    for done in (0, 17):
        optimizer = optimizers.adamw(nn.Linear(1, 1), base)
        rates = optimizers.schedule(optimizer, base, steps, done)
        optimizer.step()
        told.append([])
        for _ in range(done, steps):
            told[-1].append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
            rates.step()
    assert told[0][17:] == told[1]


def test_average_is_the_formula() -> None:
    decay, config = 0.8, changed(base={"epochs": 1})
    states: list[dict[str, Tensor]] = []
    dataset = data()
    module = ModelSpec.of(config.classifier, dataset).build(0)
    loop.train(module, Run(config, progress=lambda done, total: states.append(state(module)), loaded=dataset))
    found = trained(changed(base={"epochs": 1, "ema": decay}))
    for key, value in found.items():
        expected = states[0][key].double()
        for one in states[1:]:
            expected = decay * expected + (1 - decay) * one[key].double()
        if not value.is_floating_point():
            expected = states[-1][key].double()  # a counter is no mean
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)
    assert len(states) == per_epoch(config) and not same(found, states[-1])


def test_bfloat16_is_near_float32_and_weights_stay_float32() -> None:
    plain, low = (trained(changed(base={"epochs": 1, "precision": kind})) for kind in ("float32", "bfloat16"))
    assert same(plain, trained(changed(base={"epochs": 1})))  # auto, on a CPU
    assert all(low[key].dtype == plain[key].dtype for key in plain) and not same(plain, low)
    exact_D, low_D = (torch.cat([value.flatten().double() for value in one.values()]) for one in (plain, low))
    assert nn.functional.cosine_similarity(exact_D, low_D, dim=0) > 0.98


def test_augmented_training_learns_and_is_seeded() -> None:
    settings = {"base": {"epochs": 5, "schedule": "cosine"}, "augment": {"crop": 1, "cutout": 2}}
    dataset, config = data(), changed(**settings)
    module = ModelSpec.of(config.classifier, dataset).build(0)
    loop.train(module, Run(config, loaded=dataset))
    assert same(state(module), trained(config)) and not same(state(module), trained(changed(base=settings["base"])))
    loss, accuracy = loop.validate(module, dataset.val, dataset.preprocess)
    assert accuracy > 0.3 and loss < 2.2  # from 0.1 and 2.3


def test_augmentation_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment\.crop: 8 pixels of images of 8x8"):
        trained(changed(augment={"crop": 8}))


@pytest.mark.ray
@pytest.mark.slow
def test_killed_workers_and_driver_go_on_with_the_base(start: Start, tmp_path: Path) -> None:
    config = TWO | {"base": TWO["base"] | {"epochs": 60, "ema": 0.9}, "augment": {"crop": 1}}
    run = tmp_path / "run"

    def behind(epochs: int) -> bool:
        return Checkpoint(Folder(run / "base"), "").epochs() >= epochs

    process = start("collect", config=config)
    wait_for(lambda: behind(3) and workers("RayTrainWorker"), process)
    kill(workers("RayTrainWorker")[0], process)
    wait_for(lambda: behind(12), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start("collect", config=config)
    wait_for(lambda: count(run, "snapshots/chain-00000.parquet"), process)  # by the worker that clears up
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    assert " of 60 epochs behind it" in said
    assert not count(run, "base/epoch-*")
    found, _ = read_tensors(Folder(run / "base"), "model.safetensors")
    assert same(found, trained(changed(base=config["base"], augment=config["augment"])))
