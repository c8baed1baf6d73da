"""Training gives the same bits on any number of workers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ranks
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ConfigError, TrainingError
from bend_ray.models.base import ModelSpec
from bend_ray.run import Run
from bend_ray.training import loop, optimizer
from conftest import changed, run_of

CONFIG = changed(base={"shards": 4})


def data() -> Dataset:
    return load_dataset(CONFIG.data, 0)


def state(module: nn.Module) -> Tensor:
    return torch.cat([value.reshape(-1).float() for value in module.state_dict().values()])


def trained(dataset: Dataset) -> nn.Module:
    torch.set_num_threads(1)
    module = ModelSpec.of(CONFIG.classifier, dataset).build(0)
    loop.train(module, Run(CONFIG, loaded=dataset))
    return module


def _rank(rank: int, where: Path) -> None:
    torch.save(state(trained(data())), where / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_base_has_the_same_bits_on_any_number_of_workers(tmp_path: Path, world: int) -> None:
    ranks.spawn(_rank, world, tmp_path)
    alone = state(trained(data()))
    for rank in range(world):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone)


def test_training_learns() -> None:
    dataset = data()
    module = ModelSpec.of(CONFIG.classifier, dataset).build(0)
    base = CONFIG.base.model_copy(update={"epochs": 5})
    loop.train(module, run_of(dataset, base=base))
    loss, accuracy = loop.validate(module, dataset.val, dataset.preprocess)
    assert accuracy > 0.4 and loss < 2.0  # five epochs on 340 rows, from 0.1 and 2.3


def test_one_shard_is_a_plain_training_step() -> None:
    """Against the obvious loop: the same batch through the whole model, one optimiser step."""
    dataset = data()
    base = CONFIG.base.model_copy(update={"shards": 1, "epochs": 1, "batch_size": len(dataset.train)})
    ours, plain = (ModelSpec.of(CONFIG.classifier, dataset).build(0) for _ in range(2))
    loop.train(ours, run_of(dataset, base=base))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=base.lr, weight_decay=base.weight_decay)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, base.lr, total_steps=2)
    output = plain.train()(dataset.preprocess(dataset.train.images))
    nn.functional.cross_entropy(output, dataset.train.labels).backward()
    optimizer.step()
    torch.testing.assert_close(state(ours), state(plain), atol=2e-4, rtol=1e-3)  # rows in another order


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("onecycle", 0.85, 0.95), ("cosine", 0.9, 0.9), ("falling", 0.9, 0.9)]
)
def test_beta1_moves_in_one_cycle_alone(name: str, lowest: float, highest: float) -> None:
    base = CONFIG.base.model_copy(update={"schedule": name})
    adamw = optimizer.adamw(nn.Linear(1, 1), base)
    rates = optimizer.schedule(adamw, base, 30)
    seen = []
    for _ in range(30):
        seen.append((adamw.param_groups[0]["lr"], adamw.param_groups[0]["betas"][0]))
        adamw.step()
        rates.step()
    betas = [beta for _, beta in seen]
    assert min(betas) == pytest.approx(lowest, abs=1e-3) and max(betas) == pytest.approx(highest)
    assert max(seen)[1] == min(betas)  # where the rate is highest


def test_shards_too_small_for_batch_norm_are_refused() -> None:
    dataset = data()
    base = CONFIG.base.model_copy(update={"shards": 20})
    with pytest.raises(ConfigError, match=r"base\.shards: 20"):
        loop.train(nn.Linear(1, 1), run_of(dataset, base=base))


def test_loss_that_is_not_finite_says_what_to_lower() -> None:
    dataset = data()
    module = ModelSpec.of(CONFIG.classifier, dataset).build(0)
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match=r"lower base\.lr"):
        loop.train(module, Run(CONFIG, loaded=dataset))
