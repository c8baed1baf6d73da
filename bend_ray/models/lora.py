"""Low-rank adapters (LoRA: Hu et al. 2022, arXiv 2106.09685): small changes of large weights, beside a frozen base.

A weight W (N, ...), flattened to (N, P), becomes W + alpha / rank B A, where A (rank, P) is drawn once for a run and
stays, and B (N, rank) starts at 0. Only B is trained, generated and put back. Weights are then linear in what members
differ in, so that the mean of members' parameters is that of their weights; over both factors it would not be.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bend_ray import seeds
from bend_ray.errors import ModelError

RULE = "lora"
"""What `collect.subset` calls it."""


class LowRank(nn.Module):
    """W to W + B A: a parametrization of torch, so that whatever reads the weight reads the adapted one."""

    A: Tensor

    def __init__(self, A_RP: Tensor, B_NR: nn.Parameter) -> None:
        super().__init__()
        self.register_buffer("A", A_RP, persistent=False)
        self.B = B_NR

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.B @ self.A).reshape(weight.shape)


@dataclass(frozen=True)
class Lora:
    """The adapters of a classifier."""

    weights: tuple[str, ...]
    """Names of the adapted weights in the plain classifier."""
    rank: int
    alpha: float
    seed: int
    """What A follows from, with the weight's name."""

    def attach(self, module: nn.Module) -> list[str]:
        """Adapt the weights of the plain ``module``, B = 0: it computes what it did. A tied weight is adapted wherever
        it is used. Returns the names of the factors B. Raises ModelError where ``module`` has no such weight."""
        for name in self.weights:
            weight = weight_of(module, name)
            A_RP, B_NR = self.first_factor(name, weight), nn.Parameter(weight.new_zeros(len(weight), self.rank))
            for owner, attribute in list(_owners(module, name)):
                adapter = LowRank(A_RP, B_NR).train(owner.training)
                parametrize.register_parametrization(owner, attribute, adapter)
        factors = {f"{path}.B" for path, child in module.named_modules() if isinstance(child, LowRank)}
        return [name for name, _ in module.named_parameters() if name in factors]  # a tied one once

    def first_factor(self, name: str, weight: Tensor) -> Tensor:
        """``A_RP``, times alpha / rank: uniform as the weight of a new linear layer with P inputs. NumPy promises that
        this generator of its draws the same for ever, so that members need not bring it along."""
        seed, inputs = seeds.seed_for(self.seed, RULE, name), weight[0].numel()
        drawn = np.random.RandomState([seed % 2**32, seed >> 32]).uniform(-1, 1, (self.rank, inputs))
        return torch.from_numpy(drawn * (self.alpha / self.rank / inputs**0.5)).to(weight)

    @torch.no_grad()
    def merge(self, adapted: nn.Module, plain: nn.Module) -> dict[str, Tensor]:
        """Write the weights of the ``adapted`` module into a ``plain`` one. Returns what of its state that changed, by
        name: a tied weight by all of its names."""
        changed: dict[str, Tensor] = {}
        parameters = list(plain.named_parameters(remove_duplicate=False))
        for name in self.weights:
            value, (owner, attribute) = weight_of(adapted, name).clone(), _owner(plain, name)
            if not parametrize.is_parametrized(owner, attribute):
                written = [weight_of(plain, name).copy_(value)]
            else:
                setattr(owner, attribute, value)
                written = list(cast(nn.ModuleDict, owner.parametrizations)[attribute].parameters())
            changed |= {key: part.clone() for key, part in parameters if any(part is one for one in written)}
        return changed

    def to_json(self) -> dict[str, Any]:
        return {"weights": list(self.weights), "rank": self.rank, "alpha": self.alpha, "seed": self.seed}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Lora":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        return Lora(tuple(data["weights"]), int(data["rank"]), float(data["alpha"]), int(data["seed"]))


def takes_values(module: nn.Module, name: str) -> bool:
    """Whether the weight of this ``name`` can be given any value, so that an adapter can be merged: where it is
    computed from others, a weight norm's can, and a spectral norm's cannot."""
    owner, attribute = _owner(module, name)
    if not parametrize.is_parametrized(owner, attribute):
        return True
    tried = copy.deepcopy(owner)
    with torch.no_grad():
        value = 2 * weight_of(module, name)
        try:
            setattr(tried, attribute, value)
        except (NotImplementedError, ValueError, RuntimeError):
            return False
        return torch.allclose(getattr(tried, attribute), value, rtol=1e-5, atol=1e-6)


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The weight of this ``name`` as the module's layers read it. Raises ModelError where there is none."""
    owner, attribute = _owner(module, name)
    weight: Tensor = getattr(owner, attribute)
    return weight


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        owner = None
    if owner is None or not isinstance(getattr(owner, attribute, None), Tensor):
        raise ModelError(f"the classifier has no weight {name!r}: it is not the one these adapters are of")
    return owner, attribute


def _owners(module: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """Modules that hold the weight of this ``name``, and what each calls it: a tied weight has several."""
    owner, attribute = _owner(module, name)
    if parametrize.is_parametrized(owner, attribute):
        yield owner, attribute
        return
    weight = getattr(owner, attribute)
    for child in module.modules():
        parameters = child.named_parameters(recurse=False, remove_duplicate=False)
        yield from ((child, key) for key, value in parameters if value is weight)
