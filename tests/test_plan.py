"""Plans change how members are run, never what they say; memory is bounded by what the graph says it takes."""

import dataclasses
import functools
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bend_ray.config import Ensemble as Settings
from bend_ray.ensemble import plan
from bend_ray.models.partition import partition
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk

K, FEATURES = 5, 6 * 36
same_logits = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


def net(spec: str = "head", M: int = 40) -> tuple[SharedTrunk, Subset, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(FEATURES, K)
    ).eval()
    subset = choose(module, spec)
    theta_MD = subset.take(module) + 0.1 * torch.randn(M, subset.D)
    return partition(module, subset, torch.zeros(2, 1, 8, 8)), subset, theta_MD


def images(rows: int) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("spec", ["head", "norm+head", "regex:."])
def test_a_measured_plan_gives_the_same_logits(spec: str) -> None:
    cut, _, theta_MD = net(spec)
    x = images(9)
    planned = plan.measured(cut, theta_MD, x)
    same_logits(planned.logits(theta_MD, x), cut.logits(theta_MD, x))


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
    cut = partition(module, subset, torch.zeros(2, 1, 8, 8))
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


@pytest.mark.parametrize(("asked", "plan_of_head"), [("graph", "vmap"), ("measured", "vmap"), ("loop", "loop")])
def test_settings_pin_the_plan(asked: Any, plan_of_head: str) -> None:
    cut, _, theta_MD = net()
    settings = Settings(plan=asked, chunk=3, max_memory=0.5)
    pinned = plan.pinned(cut, settings)
    assert (pinned.plan, pinned.chunk, pinned.max_memory) == (plan_of_head, 3, 1 << 29)
    same_logits(pinned.logits(theta_MD, images(5)), cut.logits(theta_MD, images(5)))


def test_what_is_not_cut_stays_whole() -> None:
    cut = dataclasses.replace(net()[0], plan="whole model")
    assert plan.pinned(cut, Settings(plan="vmap")).plan == "whole model"


def test_automatic_precision_is_full_on_a_cpu() -> None:
    assert plan.precision(Settings(), torch.device("cpu")) == torch.float32
    assert plan.precision(Settings(precision="bfloat16"), torch.device("cpu")) == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["head", "norm+head"])
def test_compiled_gives_the_same_logits(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, _, theta_MD = net(spec)
    x = images(9)
    times = iter([9.0, 9.0, 2.0, 1.0, 2.0, 1.0])
    timed = plan._timed
    monkeypatch.setattr(plan, "_timed", lambda run: (timed(run), next(times))[1])  # compiled wins
    found = plan.compiled(cut, theta_MD, x)
    assert found.compiled is not None
    same_logits(found.logits(theta_MD, x), cut.logits(theta_MD, x))
    same_logits(found.logits(theta_MD[:3], images(4)), cut.logits(theta_MD[:3], images(4)))


@pytest.mark.slow
def test_compiled_is_kept_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, _, theta_MD = net()
    times = iter([9.0, 9.0, 1.0, 2.0, 1.0, 2.0])
    timed = plan._timed
    monkeypatch.setattr(plan, "_timed", lambda run: (timed(run), next(times))[1])
    assert plan.chosen(cut, Settings(compile=True), theta_MD, images(3)) is cut


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, _, theta_MD = net()
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/compiler",))
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=r"ensemble\.compile: torch cannot compile"):
        assert plan.compiled(cut, theta_MD, images(3)) is cut


def test_a_linear_tail_is_one_batched_product() -> None:
    """Where only a linear layer is left behind the trunk, members at once are one matrix product."""
    cut, _, theta_MD = net(M=16)

    class Products(TorchDispatchMode):
        seen: ClassVar[list[tuple[str, tuple[int, ...]]]] = []

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = op(*args, **(kwargs or {}))
            if "mm" in str(op) or "linear" in str(op) or "matmul" in str(op):
                self.seen.append((str(op), tuple(found.shape)))
            return found

    with torch.no_grad():
        shared = cut.trunk(images(9))
        with Products() as products:
            cut.members(theta_MD, shared)
    assert len(products.seen) == 1, products.seen
