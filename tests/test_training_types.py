"""Training leaves alone what is not trained, and tensors of any type keep it; or the dry run refuses them by name."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ranks
from bend_ray.errors import ModelError
from bend_ray.run import Run
from bend_ray.stages import pipeline
from bend_ray.store.folders import Folder
from bend_ray.training import loop, trained
from bend_ray.training.average import average
from bend_ray.training.checkpoint import Checkpoint
from conftest import changed, run_of
from test_training_resume import KilledError, data, killed_at, per_epoch, same, state

LARGE = 2**53 + 1  # no float holds it


class Network(nn.Module):
    """Parameters and buffers of many types, tied, frozen and unused ones, and some with a gradient now and then."""

    position: Tensor
    mean: Tensor
    sure: Tensor
    rough: Tensor
    low_mean: Tensor
    steps: Tensor
    small: Tensor
    seen: Tensor

    def __init__(self, chance: float = 0.5) -> None:
        super().__init__()
        self.chance = chance
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.frozen = nn.Linear(64, 16).requires_grad_(False)
            self.unused, self.seldom, self.one_shard = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.exact, self.low = nn.Linear(16, 16).double(), nn.Linear(16, 16).bfloat16()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight
            self.phase = nn.Parameter(torch.randn(16, dtype=torch.complex64))
            self.head = nn.Linear(16, 10)
            self.register_buffer("mean", torch.randn(16, dtype=torch.complex64))
            self.register_buffer("sure", torch.randn(16, dtype=torch.float64))
            self.register_buffer("rough", torch.zeros(16, dtype=torch.float16))
            self.register_buffer("low_mean", torch.zeros(16, dtype=torch.bfloat16))
            self.register_buffer("position", torch.rand(16) / 3)
            self.register_buffer("mask", torch.full((16,), -torch.inf))
            self.register_buffer("steps", torch.tensor(LARGE))
            self.register_buffer("small", torch.tensor(3, dtype=torch.uint8))
            self.register_buffer("seen", torch.zeros(16, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(x.flatten(1)))
        x = x + self.exact(x.double()).float() + self.low(x.bfloat16()).float()
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        x = x + (x * self.phase).abs() + (x * self.mean.clone()).real + self.position + self.sure.float()
        if self.training:
            with torch.no_grad():
                of_rows = torch.complex(x.mean(0), x.var(0))
                for buffer in (self.mean, self.sure, self.rough, self.low_mean):
                    buffer += (0.1 * (of_rows if buffer.is_complex() else of_rows.real)).to(buffer.dtype)
                self.steps += 1
                self.small += 1
                self.seen |= x.mean(0) > 0
            if int(self.steps) % 2:
                x = x + self.seldom(x)
            if torch.rand(()) < self.chance:  # seeded by the shard
                x = x + self.one_shard(x)
        return self.head(x)


def trained_network(shards: int = 2, seed: int = 0, **more: Any) -> nn.Module:
    base = changed(base={"shards": shards, "weight_decay": 0.5, **more}).base
    module = Network()
    loop.train(module, run_of(data(), seed, base=base))
    return module


@pytest.mark.parametrize(("shards", "ema"), [(1, 0.0), (2, 0.9), (3, 0.0), (3, 0.9)])
def test_what_is_not_trained_stays_to_the_bit_and_all_else_moves(shards: int, ema: float) -> None:
    before, after = state(Network()), state(trained_network(shards, ema=ema))
    stays = {key for key in before if key.startswith(("frozen", "unused")) or key in ("position", "mask")}
    assert len(stays) == 6 and {key for key in before if torch.equal(before[key], after[key])} == stays
    assert all(before[key].dtype == after[key].dtype and before[key].shape == after[key].shape for key in before)
    assert int(after["steps"]) == LARGE + 2 * per_epoch(changed()) and not (after["mean"].imag == 0).any()


def test_one_shard_of_any_type_is_a_plain_training_step() -> None:
    """Against the obvious loop, which has no gradient where nothing was used."""
    dataset = data()
    base = changed().base.model_copy(update={"shards": 1, "epochs": 1, "batch_size": len(dataset.train)})
    ours, plain = Network(chance=0), Network(chance=0)
    loop.train(ours, run_of(dataset, base=base))
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=base.lr)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, base.lr, total_steps=2)
    nn.functional.cross_entropy(
        plain.train()(dataset.preprocess(dataset.train.images)), dataset.train.labels
    ).backward()
    optimizer.step()
    for key, value in state(plain).items():  # rows in another order
        near = 1e-2 if value.dtype in (torch.bfloat16, torch.float16) else 3e-4
        torch.testing.assert_close(state(ours)[key], value, atol=near, rtol=near)


def test_a_parameter_moves_in_steps_that_use_it_alone() -> None:
    """Odd steps use `seldom`; `one_shard` moves where one of the shards has drawn it."""
    states: list[dict[str, Tensor]] = []
    module = Network()
    run = run_of(data(), base=changed(base={"weight_decay": 0.5}).base)
    loop.train(module, run.but(progress=lambda done, total: states.append(state(module))))
    moved = {
        name: [
            not torch.equal(one[name], two[name]) for one, two in zip([state(Network()), *states], states, strict=False)
        ]
        for name in ("seldom.weight", "one_shard.weight", "head.weight")
    }
    assert all(moved["head.weight"]) and moved["seldom.weight"] == [step % 2 == 1 for step in range(len(states))]
    assert 0.5 < sum(moved["one_shard.weight"]) / len(states) < 1  # three quarters of the steps


def test_goes_on_to_the_same_bits_with_tensors_of_all_types(tmp_path: Path) -> None:
    run = run_of(data(), base=changed(base={"ema": 0.9}).base)
    whole, again = Network(), Network()
    loop.train(whole, run)
    checkpoint = Checkpoint(Folder(tmp_path), "recipe")
    with pytest.raises(KilledError):
        loop.train(Network(), run.but(progress=killed_at(per_epoch(changed()) + 2)), checkpoint=checkpoint)
    assert checkpoint.epochs() == 1
    loop.train(again, run, checkpoint=checkpoint)
    assert same(state(whole), state(again))


def _rank(rank: int, where: Path) -> None:
    torch.set_num_threads(1)
    torch.save(state(trained_network(shards=4, ema=0.9)), where / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_same_bits_on_any_number_of_workers_with_tensors_of_all_types(tmp_path: Path, world: int) -> None:
    ranks.spawn(_rank, world, tmp_path)
    alone = state(trained_network(shards=4, ema=0.9))
    assert all(same(torch.load(tmp_path / f"{rank}.pt"), alone) for rank in range(world))


def test_an_average_keeps_types_and_what_is_the_same() -> None:
    ends = [trained_network(seed=seed) for seed in (0, 1, 2)]
    module = Network()
    average(module, iter(ends), run_of(data()))
    of_ends, found = [state(end) for end in ends], state(module)
    for name, _ in module.named_parameters():
        expected = torch.stack([one[name].to(torch.complex128) for one in of_ends]).mean(0)
        exact = name.startswith(("frozen", "unused"))
        near = 0 if exact else 1e-2 if found[name].dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found[name].to(torch.complex128), expected, atol=near, rtol=near)
        assert found[name].dtype == of_ends[0][name].dtype


def sparse(module: nn.Module) -> None:
    module.register_buffer("links", torch.eye(3).to_sparse())


def of_type(dtype: torch.dtype, frozen: bool = False) -> Any:
    def put(module: nn.Module) -> None:
        module.register_parameter("more", nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=not frozen))

    return put


REFUSED: dict[str, Any] = {
    r"parameter 'more' is torch\.float16, which is not trained": of_type(torch.float16),
    r"parameter 'more' is torch\.complex128, .* no file": of_type(torch.complex128),
    r"buffer 'links' is torch\.float32, torch\.sparse_coo, .* no file": sparse,
    r"buffer 'links' is on the meta device": lambda module: module.register_buffer(
        "links", torch.zeros(3, device="meta")
    ),
    r"buffer 'links' was expanded": lambda module: module.register_buffer("links", torch.zeros(1).expand(3)),
    r"parameter 'more\.weight' has no shape": lambda module: module.add_module("more", nn.LazyLinear(3)),
    r"no parameter that is trained": lambda module: module.requires_grad_(False),
}


class Plain(nn.Module):
    """A linear head on pixels, with what `REFUSED` gives it."""

    def __init__(self, case: str | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        if case is not None:
            REFUSED[case](self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("case", REFUSED)
def test_the_dry_run_refuses_by_name_what_cannot_be_trained_or_kept(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_types", SimpleNamespace(Plain=Plain))
    config = changed(
        classifier={"name": None, "target": "own_types:Plain", "kwargs": {"case": case}}, collect={"subset": "head"}
    )
    with pytest.raises(ModelError, match=case):
        pipeline.dry_run(Run(config, Folder(tmp_path), loaded=data()), ())


@pytest.mark.parametrize("dtype", sorted(trained.KEPT, key=str))
def test_frozen_parameters_of_all_types_that_a_file_holds_are_taken(dtype: torch.dtype) -> None:
    module = Plain()
    of_type(dtype, frozen=True)(module)
    loop.train(module, run_of(data(), base=changed(base={"epochs": 1}).base))
    assert module.get_parameter("more").dtype == dtype
