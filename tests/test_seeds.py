"""Whatever a user's code draws from torch, numpy or Python follows from the run's seed, and their states stay."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ranks
from bend_ray import seeds
from bend_ray.config import Classifier, Config, Data
from bend_ray.data.datasets import load_dataset
from bend_ray.models.base import ModelSpec
from bend_ray.models.partition import partition
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots import chains
from bend_ray.snapshots.features import Tails
from bend_ray.training import loop
from conftest import changed
from test_training_resume import data, same, state


def draws() -> tuple[float, float, float]:
    """One number of each generator."""
    return torch.rand(()).item(), np.random.rand(), random.random()


def twice(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What ``work`` gives with the generators wherever they are; they must be there afterwards."""
    given = []
    for junk in (1, 2):
        torch.manual_seed(junk)
        np.random.seed(junk)
        random.seed(junk)
        given.append(work())
        found = draws()
        torch.manual_seed(junk)
        np.random.seed(junk)
        random.seed(junk)
        assert found == draws()
    return given[0], given[1]


class Backward(torch.autograd.Function):
    """Noise on the gradient, of numpy's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float(np.random.uniform(0.9, 1.1))


class Drawing(nn.Module):
    """Draws of numpy's and Python's as it is made and as it runs, in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        with torch.no_grad():
            self.body.weight.add_(torch.from_numpy(np.random.randn(16, 64)).float() * 0.1)
            self.head.bias.add_(random.random())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.body(x.flatten(1)))) * random.uniform(0.5, 1.5)
        noisy: Tensor = Backward.apply(x)
        return self.head(noisy) + float(np.random.randn())


class Cuttable(Drawing):
    """One that torch can export."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x.flatten(1))) * random.uniform(0.5, 1.5)) + float(np.random.randn())


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    data()  # what it imports draws, once
    monkeypatch.setitem(sys.modules, "own_drawing", SimpleNamespace(Drawing=Drawing, Cuttable=Cuttable, rows=rows))


def config(target: str = "Drawing") -> Config:
    return changed(classifier={"name": None, "target": f"own_drawing:{target}", "kwargs": {}}, base={"epochs": 1})


def built(target: str = "Drawing", seed: int = 0) -> nn.Module:
    return ModelSpec.of(Classifier(target=f"own_drawing:{target}"), data()).build(seed)


def rows() -> tuple[np.ndarray, np.ndarray]:
    return np.random.randint(0, 256, (60, 8, 8)).astype(np.uint8), np.array([random.randrange(3) for _ in range(60)])


def test_all_three_are_seeded_inside_and_stay_outside() -> None:
    def inside() -> tuple[float, float, float]:
        with seeds.seeded(7, "name"):
            return draws()

    one, two = twice(inside)
    assert one == two
    with seeds.seeded(7, "other"):
        assert all(a != b for a, b in zip(draws(), one, strict=True))


def test_they_stay_where_the_code_inside_fails() -> None:
    def failing() -> None:
        with pytest.raises(ZeroDivisionError), seeds.seeded(0, "name"):
            draws()
            raise ZeroDivisionError

    twice(failing)


def test_a_classifier_that_draws_is_made_and_trained_to_the_same_bits() -> None:
    def trained() -> dict[str, Tensor]:
        module = built()
        loop.train(module, Run(config(), loaded=data()))
        return state(module)

    one, two = twice(trained)
    assert same(one, two)
    assert not torch.equal(state(built())["head.bias"], state(built(seed=1))["head.bias"])


def _rank(rank: int, where: Path) -> None:
    torch.set_num_threads(1)
    sys.modules["own_drawing"] = SimpleNamespace(Drawing=Drawing)  # type: ignore[assignment]  # as the fixture does
    np.random.seed(rank)
    module = built()
    loop.train(module, Run(config(), loaded=data()))
    torch.save(state(module), where / f"{rank}.pt")


@pytest.mark.slow
def test_it_has_the_same_bits_on_two_workers(tmp_path: Path) -> None:
    ranks.spawn(_rank, 2, tmp_path)
    module = built()
    loop.train(module, Run(config(), loaded=data()))
    assert all(same(torch.load(tmp_path / f"{rank}.pt"), state(module)) for rank in range(2))


def test_rows_that_a_callable_draws_are_the_same() -> None:
    one, two = twice(lambda: load_dataset(Data(target="own_drawing:rows"), 3).digest())
    assert one == two != load_dataset(Data(target="own_drawing:rows"), 4).digest()


def test_a_validation_of_it_is_the_same() -> None:
    module = built()
    one, two = twice(lambda: loop.validate(module, data().val, data().preprocess))
    assert one == two


@pytest.mark.filterwarnings("ignore:torch.export cannot cut")
@pytest.mark.parametrize("target", ["Drawing", "Cuttable"])
def test_its_chains_are_the_same(target: str) -> None:
    module, run = built(target), Run(config(target), loaded=data())
    subset = choose(module, "head")

    def chain() -> Tensor:
        start_CD = subset.take(module)[None]
        return chains.run_chains(Tails.of(module, subset, run), start_CD, run, range(1))[0][0]

    one, two = twice(chain)
    assert torch.equal(one, two)


def test_its_graph_is_the_same() -> None:
    module, x = built("Cuttable"), torch.randn(3, 1, 8, 8)
    subset = choose(module, "head")
    one, two = twice(lambda: partition(module, subset, x).logits(subset.take(module)[None], x))
    assert torch.equal(one, two)
