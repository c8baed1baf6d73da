"""Training gives the same bits on any number of workers, and a chain depends on (seed, chain) alone."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from bend_ray.data import training
from bend_ray.data.base import Description
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.errors import ConfigError, TrainingError
from bend_ray.serving.front import free_port
from bend_ray.weights import chains
from bend_ray.weights.subset import choose
from conftest import changed

CONFIG = changed(base={"shards": 4})


def data() -> Dataset:
    return load_dataset(CONFIG.data, 0)


def state(module: nn.Module) -> Tensor:
    return torch.cat([value.reshape(-1).float() for value in module.state_dict().values()])


def trained(dataset: Dataset) -> nn.Module:
    torch.set_num_threads(1)
    module = Description.of(CONFIG.classifier, dataset).build(0)
    training.train(module, dataset.train, dataset.preprocess, CONFIG.base, 0)
    return module


def _rank(rank: int, world: int, port: int, where: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.save(state(trained(data())), f"{where}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_base_has_the_same_bits_on_any_number_of_workers(tmp_path: Path, world: int) -> None:
    mp.spawn(_rank, (world, free_port(), str(tmp_path)), nprocs=world)
    alone = state(trained(data()))
    for rank in range(world):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone)


def test_training_learns() -> None:
    dataset = data()
    module = Description.of(CONFIG.classifier, dataset).build(0)
    base = CONFIG.base.model_copy(update={"epochs": 5})
    training.train(module, dataset.train, dataset.preprocess, base, 0)
    loss, accuracy = training.validate(module, dataset.val, dataset.preprocess)
    assert accuracy > 0.4 and loss < 2.0  # five epochs on 340 rows, from 0.1 and 2.3


def test_one_shard_is_a_plain_training_step() -> None:
    """Against the obvious loop: the same batch through the whole model, one optimiser step."""
    dataset = data()
    base = CONFIG.base.model_copy(update={"shards": 1, "epochs": 1, "batch_size": len(dataset.train)})
    ours, plain = (Description.of(CONFIG.classifier, dataset).build(0) for _ in range(2))
    training.train(ours, dataset.train, dataset.preprocess, base, 0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=base.lr, weight_decay=base.weight_decay)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, base.lr, total_steps=2)
    output = plain.train()(dataset.preprocess(dataset.train.images))
    nn.functional.cross_entropy(output, dataset.train.labels).backward()
    optimizer.step()
    torch.testing.assert_close(state(ours), state(plain), atol=2e-4, rtol=1e-3)  # rows in another order


def test_shards_too_small_for_batch_norm_are_refused() -> None:
    dataset = data()
    base = CONFIG.base.model_copy(update={"shards": 20})
    with pytest.raises(ConfigError, match=r"base\.shards: 20"):
        training.train(nn.Linear(1, 1), dataset.train, dataset.preprocess, base, 0)


def test_loss_that_is_not_finite_says_what_to_lower() -> None:
    dataset = data()
    module = Description.of(CONFIG.classifier, dataset).build(0)
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match=r"lower base\.lr"):
        training.train(module, dataset.train, dataset.preprocess, CONFIG.base, 0)


def run_chain(chain: int, seed: int = 0) -> tuple[Tensor, list]:
    dataset = data()
    module = Description.of(CONFIG.classifier, dataset).build(0)
    return chains.run_chain(module, choose(module, "norm+head"), dataset, CONFIG.collect, seed, chain)


def test_chain_depends_on_seed_and_chain_alone() -> None:
    first, facts = run_chain(1)
    torch.rand(7)  # what else drew from the global generator is no matter
    again, _ = run_chain(1)
    assert torch.equal(first, again) and first.shape[0] == CONFIG.collect.snapshots_per_chain
    assert not torch.equal(first, run_chain(2)[0]) and not torch.equal(first, run_chain(1, seed=1)[0])
    assert [fact.chain for fact in facts] == [1, 1] and facts[0].step < facts[1].step


def test_chain_leaves_all_but_the_subset_alone() -> None:
    dataset = data()
    module = Description.of(CONFIG.classifier, dataset).build(0)
    subset = choose(module, "head")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    chains.run_chain(module, subset, dataset, CONFIG.collect, 0, 0)
    changed_names = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed_names == set(subset.names)


def test_chain_that_diverges_says_what_to_lower() -> None:
    dataset = data()
    module = Description.of(CONFIG.classifier, dataset).build(0)
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match=r"chain 0: not finite .* lower collect\.lr"):
        chains.run_chain(module, choose(module, "head"), dataset, CONFIG.collect, 0, 0)
