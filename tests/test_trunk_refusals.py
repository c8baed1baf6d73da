"""The shared trunk: inputs, parameters and classifiers that do not fit are refused with one clear error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.errors import ModelError
from bend_ray.models.subset import Subset, choose
from bend_ray.models.trunk import SharedTrunk
from trunk_networks import MAKE, BranchOnTheInput, Flat, cut, images, made, members, quietly_split


class GivesAList(Flat):
    def forward(self, x: Tensor) -> Any:
        return [super().forward(x)]


def test_what_gives_no_logits_is_refused() -> None:
    module = made(GivesAList)
    subset = choose(module, "head")
    trunk = quietly_split(module, subset)
    with pytest.raises(
        ModelError,
        match=r"^the classifier returns a list of \(2, 5\); expected a tensor or an object with \.logits, or a dict",
    ):
        trunk.logits(members(module, subset, 2), images(2))


def whole() -> tuple[nn.Module, Subset, SharedTrunk]:
    module = made(BranchOnTheInput)
    subset = choose(module, "norm")
    return module, subset, quietly_split(module, subset)


TRUNKS: dict[str, Callable[[], tuple[nn.Module, Subset, SharedTrunk]]] = {
    "vmap": lambda: cut("mlp", "norm+head"),
    "loop": lambda: cut("convnet", "norm+head"),
    "whole model": whole,
}


@pytest.mark.parametrize("plan", TRUNKS)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(8),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.float64),
    ],
    ids=lambda x: f"{tuple(x.shape)}-{x.dtype}",
)
def test_inputs_that_do_not_fit(plan: str, x: Tensor) -> None:
    _, subset, trunk = TRUNKS[plan]()
    assert trunk.plan == plan
    with pytest.raises(ModelError, match=r"^the classifier fails on inputs of shape \(.*\) with 2 members \(.+\)"):
        trunk.logits(torch.zeros(2, subset.D), x)


@pytest.mark.parametrize("plan", TRUNKS)
def test_parameters_that_do_not_fit(plan: str) -> None:
    _, subset, trunk = TRUNKS[plan]()
    D, x = subset.D, images(2)
    for wrong in (D - 1, D + 1, 0):
        with pytest.raises(ModelError, match=rf"^parameters of length {wrong} given where this subset has D = {D}$"):
            trunk.logits(torch.zeros(2, wrong), x)
    for shape in ((D,), (0, D), (2, 1, D), ()):
        with pytest.raises(ModelError, match=rf"^parameters of shape \(.*\); expected \(members, {D}\)$"):
            trunk.logits(torch.zeros(shape), x)


def test_a_subset_of_another_classifier() -> None:
    other = choose(made(MAKE["mlp"]), "head")
    module = made(Flat)
    trunk = quietly_split(module, other)
    with pytest.raises(ModelError):
        trunk.logits(torch.zeros(2, other.D), images(2))
