"""Exporting for the shared trunk: graphs with effects of their own, drawn networks, and what cannot be cut."""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.models import graph
from bend_ray.models.partition import partition
from bend_ray.models.subset import choose
from oracles import logits_of_whole_models
from trunk_networks import IMAGE, BranchOnTheInput, Flat, Tied, images, made, members, same


class BranchInTheGraph(Flat):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.flatten(1))
        return self.head(torch.cond(y.sum() > 0, lambda y: self.norm(y), lambda y: y * 2, (y,)))


class WritesIntoAPart(Flat):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.flatten(1))
        z = y.clone()
        z[:, 0] = self.norm(y)[:, 1]
        z[:, 2:].mul_(2)
        return self.head(z + y)


class WritesIntoItsInput(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class WritesIntoItsInputAndBranches(BranchOnTheInput):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class CountsItsCalls(Flat):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class FrozenBody(Flat):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.body(x.flatten(1))
        return self.head(self.norm(y))


class HalfPrecisionBody(Flat):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.body(x.flatten(1))
        return self.head(self.norm(y.float()))


class SelectsByMask(Flat):
    """What vmap has no rule for."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x.flatten(1)))
        y[y < 0] = 0
        return self.head(y)


class Constants(Flat):
    """Tensors that are neither parameters nor saved."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0, 1, 2]), persistent=False)
        self.plain = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x.flatten(1)) * self.mask + self.plain)
        return self.head(y + torch.tensor([1.0, 2, 3, 4, 5, 6]) * x.shape[0])


@pytest.mark.parametrize(
    "make",
    [BranchInTheGraph, WritesIntoAPart, WritesIntoItsInput, CountsItsCalls, FrozenBody, SelectsByMask, Constants],
)
@pytest.mark.parametrize("spec", ["norm", "body.bias"])
def test_graphs_with_effects_of_their_own(make: Callable[[], nn.Module], spec: str) -> None:
    module = made(make)
    subset = choose(module, spec)
    trunk = partition(module, subset, images(2))
    assert trunk.plan in ("vmap", "loop")
    theta_MD = members(module, subset, 3)
    for x in (images(5), -images(5), images(1)):  # the sum is above 0 for some, below for others
        before_x, buffers = x.clone(), copy.deepcopy(dict(module.named_buffers()))
        found_MBK = trunk.logits(theta_MD, x)
        assert torch.equal(x, before_x)
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())
        same(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))


def test_reduced_precision_in_the_trunk() -> None:
    module = made(HalfPrecisionBody)
    subset, x = choose(module, "norm"), images(5)
    trunk, theta_MD = partition(module, subset, images(2)), members(module, subset, 3)
    assert trunk.plan == "vmap"
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, subset, theta_MD, x))


class Drawn(nn.Module):
    """Layers in any order, some in place, each adding to what came before where it says so."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        make: dict[str, Callable[[], nn.Module]] = {
            "linear": lambda: nn.Linear(8, 8),
            "norm": lambda: nn.LayerNorm(8),
            "batch norm": lambda: nn.BatchNorm1d(8),
            "relu": lambda: nn.ReLU(inplace=True),
            "residual": lambda: nn.Linear(8, 8),
            "product": lambda: nn.Linear(8, 8),
        }
        self.layers = nn.ModuleList([make[kind]() for kind in kinds])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = x = x.flatten(1)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "residual":
                x = x.clone()
                x += layer(start)
            elif kind == "product":
                x = x * torch.sigmoid(layer(x))
            else:
                x = layer(x)
        return self.head(x + start)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_parameters_of_any_network(data: st.DataObject) -> None:
    kinds = st.lists(
        st.sampled_from(["linear", "norm", "batch norm", "relu", "residual", "product"]), min_size=1, max_size=5
    )
    module = made(functools.partial(Drawn, data.draw(kinds)))
    names = [name for name, _ in module.named_parameters()]
    subset = choose(module, ",".join(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))))
    trunk = partition(module, subset, torch.zeros(2, 1, 2, 4))
    theta_MD, x = members(module, subset, 3), torch.randn(5, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, subset, theta_MD, x))


@pytest.mark.parametrize("make", [BranchOnTheInput, WritesIntoItsInputAndBranches])
def test_what_cannot_be_exported_runs_whole(make: Callable[[], nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    module = made(make).train()
    subset = choose(module, "norm+head" if make is BranchOnTheInput else "norm")
    with pytest.warns(
        UserWarning, match=r"^torch\.export cannot cut this classifier, so every member runs it whole: ."
    ) as said:
        trunk = partition(module, subset, images(2))
    assert len(said) == 1 and "data-dependent" in str(said[0].message) and said[0].filename == __file__
    assert "def forward" not in capfd.readouterr().err  # torch prints the graph as far as it came
    assert trunk.plan == "whole model" and trunk.trunk_share == 0 and not module.training
    theta_MD = members(module, subset, 3)
    for x in (images(5), -images(5)):
        before_x = x.clone()
        found_MBK = trunk.logits(theta_MD, x)
        assert torch.equal(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))
        assert torch.equal(x, before_x) and not found_MBK.requires_grad


class CountsItsRows(Tied):
    """Python's own numbers of rows; the rest is what graphs may have besides: tied parameters, buffers, writes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        rows = x.reshape(len(x), 1, 8, 8).clone()
        rows[:, :, 0] = 0
        return super().forward(rows) + torch.zeros(int(x.shape[0]), 5)


class ViewsItsRows(Flat):
    """A number of rows that is not Python's own, and assertions that hold for any."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4 and x.shape[0] > 0 and x.size(1) == 1
        return super().forward(x.view(x.size(0), -1))


@pytest.mark.parametrize("make", [CountsItsRows, ViewsItsRows])
def test_a_forward_pass_may_ask_for_its_rows(make: Callable[[], nn.Module]) -> None:
    module = made(make)
    subset = choose(module, "head")
    before = copy.deepcopy(module.state_dict())
    trunk = partition(module, subset, images(2))
    assert trunk.plan in ("vmap", "loop") and trunk.trunk_share > 0.5
    theta_MD = members(module, subset, 3)
    found = [trunk.logits(theta_MD, x) for x in (images(1), images(5), images(7))]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for found_MBK, x in zip(found, (images(1), images(5), images(7)), strict=True):
        same(found_MBK, logits_of_whole_models(module, subset, theta_MD, x))


class GoesThroughItsRows(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(GoesThroughItsRows, self).forward(row[None])[0] for row in x])


class GoesThroughItsParts(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(GoesThroughItsParts, self).forward(part) for part in x.split(4)])


class RefusesManyRows(Flat):
    def forward(self, x: Tensor) -> Tensor:
        assert len(x) <= 64
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            GoesThroughItsRows,
            rf"your code specialized it to be a constant \(2\), at {re.escape(__file__)}, line \d+\)$",
        ),
        (GoesThroughItsParts, "Not all values of batch = .* satisfy the generated guard .* <= 4"),
        (RefusesManyRows, "Not all values of batch = .* satisfy the generated guard .* <= 64"),
    ],
)
def test_a_forward_pass_that_is_another_one_for_more_rows_is_named(
    make: Callable[[], nn.Module], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module = made(make)
    subset = choose(module, "head")
    said = rf"every member runs it whole: its forward pass is another one for another number of rows \(.*{why}"
    with pytest.warns(UserWarning, match=said) as warned:
        trunk = partition(module, subset, images(2))
    assert len(warned) == 1 and trunk.plan == "whole model" and capfd.readouterr().err == ""
    theta_MD, x = members(module, subset, 3), images(7)
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, subset, theta_MD, x))


def test_parameters_that_the_logits_do_not_depend_on() -> None:
    module = made(Flat)
    subset = choose(module, "regex:^unused")
    with pytest.warns(UserWarning, match=r"its logits do not depend on the chosen parameters$"):
        trunk = partition(module, subset, images(2))
    theta_MD, x = members(module, subset, 3), images(4)
    found_MBK = trunk.logits(theta_MD, x)
    with torch.no_grad():
        assert torch.equal(found_MBK, module(x).expand(3, -1, -1))
    some = choose(module, "norm.weight,unused.weight,head.bias")  # some of them are enough for a cut
    trunk, theta_MD = partition(module, some, images(2)), members(module, some, 3)
    assert trunk.plan == "vmap"
    same(trunk.logits(theta_MD, x), logits_of_whole_models(module, some, theta_MD, x))


class KeepsAResult(Tied):
    """As old weight norms do: a tensor with a history, which is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 2 * next(self.parameters())


def test_a_copy_on_the_cpu_is_the_same_network() -> None:
    module = KeepsAResult().eval()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    made: Any = graph.on_cpu(module)
    x = torch.randn(3, *IMAGE)
    assert torch.equal(made(x), module(x)) and torch.equal(made.kept, module.kept)
    assert [name for name, _ in made.named_parameters()] == [
        name for name, _ in module.named_parameters()
    ]  # still tied
