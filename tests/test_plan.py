"""Plans change how members are run, never what they say; memory is bounded by what the graph says it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.ensemble import plan
from bend_ray.ensemble.trunk import SharedTrunk, split
from bend_ray.weights.subset import Subset, choose

K, FEATURES = 5, 6 * 36


def net(spec: str = "head", M: int = 40) -> tuple[SharedTrunk, Subset, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(FEATURES, K)
    ).eval()
    subset = choose(module, spec)
    theta_MD = subset.take(module) + 0.1 * torch.randn(M, subset.D)
    return split(module, subset, torch.zeros(2, 1, 8, 8)), subset, theta_MD


def images(rows: int) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("spec", ["head", "norm+head", "regex:."])
def test_a_measured_plan_gives_the_same_logits(spec: str) -> None:
    cut, _, theta_MD = net(spec)
    x = images(9)
    planned = plan.measured(cut, theta_MD, x)
    torch.testing.assert_close(planned.logits(theta_MD, x), cut.logits(theta_MD, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("loop", "vmap", "chosen"),
    [
        (1.0, {4: 9.0}, ("loop", 16)),
        (1.0, {4: 0.9, 16: 0.5, 40: 0.6}, ("vmap", 16)),
        (1.0, {4: 0.9, 16: 0.5, 40: 0.1}, ("vmap", 40)),  # as many as there are
        (1.0, {4: 1.5, 16: 0.5, 40: 2.0}, ("vmap", 16)),
    ],
)
def test_the_fastest_is_chosen(
    monkeypatch: pytest.MonkeyPatch, loop: float, vmap: dict[int, float], chosen: tuple[str, int]
) -> None:
    cut, _, theta_MD = net()
    monkeypatch.setattr(plan, "_seconds", lambda tried, *_: loop if tried.plan == "loop" else vmap[tried.chunk])
    found = plan.measured(cut, theta_MD, images(3))
    assert (found.plan, found.chunk) == chosen


def test_what_vmap_cannot_run_is_looped() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, K)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x.flatten(1)).clone()
            y[y < 0] = 0
            return y

    module = Masked().eval()
    subset = choose(module, "head")
    cut = split(module, subset, torch.zeros(2, 1, 8, 8))
    assert plan.measured(cut, subset.take(module).expand(8, -1), images(3)).plan == "loop"


@pytest.mark.parametrize("rows", [1, 7, 256])
def test_memory_of_a_linear_tail_is_that_of_its_logits(rows: int) -> None:
    assert net()[0].tail_bytes(rows) == 4 * rows * K


def test_memory_of_all_parameters_is_more_than_two_neighbours() -> None:
    """A convolution's output (6 of 6x6 a row) and what is made of it are there at once."""
    cut, _, _ = net("regex:.")
    assert cut.tail_bytes(1) >= 2 * 4 * FEATURES and cut.tail_bytes(64) == 64 * cut.tail_bytes(1)


def test_no_more_members_at_once_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, _, theta_MD = net()
    small = SharedTrunk(**(vars(cut) | {"max_memory": 3 * cut.tail_bytes(10)}))
    asked: list[int] = []
    members = SharedTrunk.members

    def watched(self: SharedTrunk, theta_MD: Tensor, shared: tuple[Any, ...]) -> Tensor:
        asked.append(len(theta_MD))
        return members(self, theta_MD, shared)

    monkeypatch.setattr(SharedTrunk, "members", watched)
    torch.testing.assert_close(small.logits(theta_MD, images(10)), cut.logits(theta_MD, images(10)), atol=1e-5, rtol=0)
    assert asked[:14] == [3] * 13 + [1] and asked[14:] == [16, 16, 8]
    assert small.at_once(10_000) == 1 and small.at_once(1) == 16


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (256, 256), (257, 512)])
def test_batches_share_a_plan_up_to_the_next_power_of_two(rows: int, size: int) -> None:
    assert plan.bucket(rows) == size
