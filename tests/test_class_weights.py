"""Rare classes: weights in the loss of whole trainings, and chains whose rows are drawn alike."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

import ranks
from bend_ray import seeds
from bend_ray.config import Base, Collect, loads
from bend_ray.data.datasets import Dataset
from bend_ray.data.images import Split
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import ConfigError, DataError
from bend_ray.snapshots import chains
from bend_ray.training import class_weights, loop
from conftest import run_of

COUNTS = (60, 30, 6)


def data(counts: Sequence[int] = COUNTS, names: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    """Images of 4x4 pixels, so many of each class; labels in a random order."""
    stream = torch.Generator().manual_seed(0)
    label_N = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    label_N = label_N[torch.randperm(len(label_N), generator=stream)]
    image_N = torch.randint(256, (len(label_N), 1, 4, 4), generator=stream, dtype=torch.uint8)
    rows = Split(image_N, label_N)
    return Dataset("odd", names, rows, rows, rows, Preprocess(1, 4, (0.5,), (0.3,)))


def network() -> nn.Module:
    with seeds.seeded(0, "network"):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def state(module: nn.Module) -> Tensor:
    return torch.cat([value.reshape(-1) for value in module.state_dict().values()])


def trained(**base: Any) -> nn.Module:
    torch.set_num_threads(1)
    module, dataset = network(), data()
    settings = {"epochs": 2, "batch_size": 32, "shards": 3, **base}
    loop.train(module, run_of(dataset, base=Base(**settings)))
    return module


def test_balanced_weights_are_scikit_learns() -> None:
    found_K = class_weights.of("balanced", data())
    wanted_K = compute_class_weight("balanced", classes=np.arange(3), y=data().train.labels.numpy())
    assert found_K is not None and found_K.tolist() == pytest.approx(wanted_K.tolist())
    assert class_weights.of("none", data()) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["balanced", (1.0, 2.5, 0.25)], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_step_is_that_of_torchs_weighted_loss(weights: Any, smoothing: float, shards: int) -> None:
    """Against the obvious step: all rows through the network, ``CrossEntropyLoss`` with these weights."""
    dataset, ours, plain = data(), network(), network()
    base = Base(
        epochs=1, batch_size=96, shards=shards, lr=0.1, class_weights=weights, label_smoothing=smoothing, cycles=0
    )
    loop.train(ours, run_of(dataset, base=base))
    weight_K = class_weights.of(weights, dataset)
    assert weight_K is not None
    criterion = nn.CrossEntropyLoss(weight=weight_K.float(), label_smoothing=smoothing)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=base.lr, weight_decay=base.weight_decay)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, base.lr, total_steps=2)
    criterion(plain(dataset.preprocess(dataset.train.images)), dataset.train.labels).backward()
    for gradient in [parameter.grad for parameter in plain.parameters()]:
        assert gradient is not None and gradient.abs().min() > 1e-5  # Adam's first step is near its sign alone
    for found, wanted in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, atol=1e-6, rtol=1e-4)
    optimizer.step()
    torch.testing.assert_close(state(ours), state(plain), atol=1e-4, rtol=1e-4)


def test_equal_weights_are_none_and_other_ones_are_not() -> None:
    none, equal, balanced = (state(trained(class_weights=one)) for one in ("none", (2.0, 2.0, 2.0), "balanced"))
    torch.testing.assert_close(none, equal)
    assert not torch.allclose(none, balanced, atol=1e-3)


def _rank(rank: int, where: Path) -> None:
    torch.save(state(trained(class_weights="balanced")), where / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_weights_leave_the_same_bits_on_any_number_of_workers(tmp_path: Path, world: int) -> None:
    ranks.spawn(_rank, world, tmp_path)
    alone = state(trained(class_weights="balanced"))
    assert all(torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone) for rank in range(world))


def test_rivals_and_cycles_are_weighted_as_the_base_is() -> None:
    """Whole trainings of all kinds are `loop.train` with the same section, on a bootstrap or not."""
    run = run_of(data(), base=Base(epochs=1, batch_size=32, shards=1, class_weights="balanced"))
    assert run.config.base.cycle.class_weights == "balanced"
    weighted, plain = network(), network()
    loop.train(weighted, run, "bagging", bootstrap=True)
    loop.train(plain, run_of(data(), base=Base(epochs=1, batch_size=32, shards=1)), "bagging", bootstrap=True)
    assert not torch.allclose(state(weighted), state(plain))


def test_what_does_not_suit_the_data_is_said() -> None:
    with pytest.raises(ConfigError, match=r"base\.class_weights: 2 weights for 3 classes; give one for each"):
        class_weights.of((1.0, 2.0), data())
    missing = data((5, 0, 9))
    with pytest.raises(DataError, match=r"base\.class_weights: balanced: no training rows of class b; give some"):
        class_weights.check(run_of(missing, base=Base(class_weights="balanced")))
    with pytest.raises(DataError, match=r"collect\.balanced: no training rows of class b"):
        class_weights.check(run_of(missing, collect=Collect(balanced=True)))
    assert class_weights.of((1.0, 2.0, 3.0), missing) is not None
    many = replace(missing, class_names=tuple("abcdefghij"))
    with pytest.raises(DataError, match=r"of class b, d, e, f, g and 3 more"):
        class_weights.of("balanced", many)
    for bad in ("most", (1.0, 0.0), (1.0, -2.0), (1.0, float("nan"))):
        with pytest.raises(ValidationError):
            Base(class_weights=bad)
    with pytest.raises(ValidationError, match=r"collect\.balanced: true with collect\.bootstrap: false"):
        Collect(balanced=True, bootstrap=False)


def test_keys_are_read_from_files_and_leave_older_runs_their_hashes() -> None:
    text = "data: {name: digits}\nclassifier: {name: mlp}\n"
    listed = loads(text + "base: {class_weights: [1, 2.5]}\n", "a.yaml")
    assert listed.base.class_weights == (1.0, 2.5)
    off = "base: {class_weights: none}\ncollect: {balanced: false}\n"
    plain, same, drawn = (loads(text + more, "a.yaml") for more in ("", off, "collect: {balanced: true}\n"))
    assert plain.hashed("base", "collect") == same.hashed("base", "collect")
    assert "class_weights" not in str(plain.hashed("base")) and listed.hashed("base") != plain.hashed("base")
    assert drawn.hashed("collect") != plain.hashed("collect")


def test_chains_draw_classes_alike_and_rows_of_a_class_alike() -> None:
    label_N = data((600, 300, 60)).train.labels
    row_N = torch.cat([class_weights.drawn_alike(label_N, torch.Generator().manual_seed(s)) for s in range(20)])
    share_K = label_N[row_N].bincount(minlength=3) / len(row_N)
    torch.testing.assert_close(share_K, torch.full((3,), 1 / 3), atol=0.015, rtol=0)  # 3.5 deviations
    rare = row_N[label_N[row_N] == 2].bincount(minlength=len(label_N))[label_N == 2]
    assert (rare > 0).all() and rare.max() < 2 * rare.double().mean()
    again_N = class_weights.drawn_alike(label_N, torch.Generator().manual_seed(0))
    assert torch.equal(again_N, row_N[: len(label_N)])
    sparse_N = class_weights.drawn_alike(torch.tensor([4, 9, 9, 9]), torch.Generator())
    assert sparse_N.shape == (4,) and set(sparse_N.tolist()) <= {0, 1, 2, 3}


def test_a_chains_order_is_a_balanced_bootstrap_of_its_own_and_plain_chains_are_as_they_were() -> None:
    label_N, size = data((600, 300, 60)).train.labels, 64

    def rows_of(collect: Collect, chain: int) -> Tensor:
        order = chains._order(label_N, collect, seeds.generator_for(0, "chain", chain))
        return torch.stack([next(order) for _ in range(len(label_N) // size)])

    balanced, plain = Collect(balanced=True, batch_size=size), Collect(batch_size=size)
    share_K = label_N[rows_of(balanced, 0).flatten()].bincount(minlength=3) / (15 * size)
    torch.testing.assert_close(share_K, torch.full((3,), 1 / 3), atol=0.06, rtol=0)
    assert not torch.equal(rows_of(balanced, 0), rows_of(balanced, 1))
    assert torch.equal(rows_of(balanced, 0), rows_of(balanced, 0))
    before = loop.batches(len(label_N), size, seeds.generator_for(0, "chain", 0), True)
    assert torch.equal(rows_of(plain, 0), torch.stack([next(before) for _ in range(15)]))
