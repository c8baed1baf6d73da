"""Chains that start anew (`collect.init: fresh`), also behind a classifier that loads trained weights as it is made."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.errors import ModelError
from bend_ray.models import private
from bend_ray.models.subset import Subset
from bend_ray.run import Run


def starts(run: Run, subset: Subset, chains: Iterable[int]) -> Tensor:
    """``start_CD``: the parameters ``subset`` of a module made for (seed, chain), of each of these ``chains``.

    What a target loads, or seeds itself, is the same in all of them: the layers that hold such parameters are
    initialised again by their own rule (``reset_parameters``). Raises ModelError, which names the parameter, where that
    cannot be done.
    """
    loaded = _the_same(_made(run, 0), _made(run, 1), subset)
    if loaded and (stays := _the_same(_made(run, 0, loaded), _made(run, 1, loaded), subset)):
        raise ModelError(
            f"collect.init: fresh: parameter {stays[0]!r} has the same values whatever the seed, so that all chains"
            " would start alike, and no module that holds it has a reset_parameters() that changes it; write one, leave"
            " the parameter out of collect.subset, or use collect.init: base"
        )
    start_CD = [subset.take(_made(run, chain, loaded)) for chain in chains]
    return torch.stack(start_CD) if start_CD else torch.empty(0, subset.D)


def _made(run: Run, chain: int, loaded: Iterable[str] = ()) -> nn.Module:
    """The module for (seed, chain), the layers of the parameters ``loaded`` initialised again."""
    module = run.spec.build(seeds.seed_for(run.seed, "chain", chain, "init"))
    with seeds.seeded(run.seed, "chain", chain, "reset"):
        for reset in dict.fromkeys(_rule(module, name) for name in loaded):
            if reset is not None:
                reset()
    return module


def _rule(module: nn.Module, name: str) -> Callable[[], Any] | None:
    """What initialises the parameter of this ``name`` again: the rule of the nearest module around it that has one."""
    while name:
        name = name.rpartition(".")[0]
        if (rule := private.initialiser(module.get_submodule(name))) is not None:
            return rule
    return None


def _the_same(one: nn.Module, two: nn.Module, subset: Subset) -> list[str]:
    """Names of parameters that two seeds give the same values. Not those of one value alone (zeros, ones): that is how
    norms and biases are initialised, and what was trained has many."""
    first, second = (subset.split(subset.take(module)) for module in (one, two))
    return [
        name
        for name, value in first.items()
        if torch.equal(value, second[name]) and value.numel() and value.min() != value.max()
    ]
