"""Statistics of frozen batch norms move with the batches, or stay, as the configuration says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.errors import ConfigError
from bend_ray.training import loop
from bend_ray.training.average import average
from conftest import changed, run_of
from test_training_resume import data, state

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Network(nn.Module):
    """A frozen batch norm, half of a frozen one, a trained one, one without parameters, and one kept in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
            self.frozen, self.partly, self.moving, self.kept = (nn.BatchNorm1d(16) for _ in range(4))
            self.plain = nn.BatchNorm1d(16, affine=False)
        self.frozen.requires_grad_(False)
        self.partly.bias.requires_grad_(False)
        for norm in (self.frozen, self.kept):
            assert norm.running_mean is not None
            norm.running_mean.fill_(0.25)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.kept.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x.flatten(1))
        return self.head(self.plain(x) + self.moving(x) + self.partly(x) + self.frozen(x) + self.kept(x))


def moved(after: nn.Module) -> set[str]:
    """Batch norms whose statistics are not those of a new network."""
    before, now = state(Network()), state(after)
    return {key.split(".")[0] for key in now if key.endswith(STATISTICS) and not torch.equal(before[key], now[key])}


@pytest.mark.parametrize("choice", ["move", "stay"])
@pytest.mark.parametrize("shards", [1, 3])
def test_frozen_batch_norms_move_or_stay(choice: str, shards: int) -> None:
    keys: dict[str, Any] = {"frozen_batch_norms": choice, "shards": shards, "ema": 0.5 * (shards - 1) / 2}
    run = run_of(data(), base=changed(base=keys).base)
    module = Network()
    loop.train(module, run)
    expected = {"partly", "moving", "plain"} | ({"frozen"} if choice == "move" else set())
    assert moved(module) == expected and not any(child.training for child in module.modules())
    average(module, iter([Network(), module]), run)
    assert moved(module) == expected


def test_one_that_stays_normalises_by_its_own_statistics() -> None:
    """Against a module that keeps it in eval mode itself: the same bits."""

    class Own(Network):
        def train(self, mode: bool = True) -> "Own":
            super().train(mode)
            self.frozen.eval()
            return self

    ours, own = Network(), Own()
    loop.train(ours, run_of(data(), base=changed(base={"frozen_batch_norms": "stay"}).base))
    loop.train(own, run_of(data(), base=changed().base))
    assert all(torch.equal(value, state(own)[key]) for key, value in state(ours).items())


def test_the_key_is_in_no_hash_where_it_changes_nothing() -> None:
    assert changed(base={"frozen_batch_norms": "move"}).hashed("base") == changed().hashed("base")
    assert changed(base={"frozen_batch_norms": "stay"}).hashed("base") != changed().hashed("base")
    with pytest.raises(ConfigError, match="frozen_batch_norms"):
        changed(base={"frozen_batch_norms": "melt"})
