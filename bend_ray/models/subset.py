"""The subset: which parameters of a classifier are collected, generated and put back; the rest stays frozen."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.config.choices import SUBSETS
from bend_ray.config.target import imported
from bend_ray.errors import ModelError
from bend_ray.models.lora import Lora
from bend_ray.models.reach import Reach, by_definition

NAMED = tuple(SUBSETS)
"""Rules that go by a name."""


@dataclass(frozen=True)
class Subset:
    """Names, shapes and dtypes of the chosen parameters, in the module's order; D values in all.

    Buffers may follow: members whose batch norm was re-estimated have statistics of their own.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    lora: Lora | None = None
    """Adapters that the parameters belong to: a module must have them before anything is taken or put."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def D(self) -> int:
        """Number of values in all."""
        return sum(self.sizes)

    @property
    def is_one_layer(self) -> bool:
        """Whether these are the parameters of one layer with a matrix, as those of a head are."""
        layers = {name.rpartition(".")[0] for name in self.names}
        return self.lora is None and len(layers) == 1 and max(map(len, self.shapes)) > 1

    def take(self, module: nn.Module) -> Tensor:
        """``theta_D``: the chosen parameters of ``module``, flattened and joined, float32, a copy on the CPU.

        Raises ModelError where ``module`` has no parameter of such a name.
        """
        values = _values(module)
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ModelError(f"the classifier has no parameter {missing[0]!r}: it is not the one this subset is of")
        flat = [values[name].detach().reshape(-1).to("cpu", torch.float32) for name in self.names]
        return torch.cat(flat)

    def put(self, module: nn.Module, theta_D: Tensor) -> None:
        """Write ``theta_D`` into ``module`` in place. Raises ModelError where its length is not D, or ``module`` has no
        parameter of such a name and shape."""
        values = _values(module)
        with torch.no_grad():
            for name, value in self.split(theta_D).items():
                if name not in values or values[name].shape != value.shape:
                    raise ModelError(f"the classifier has no parameter {name!r} of shape {tuple(value.shape)}")
                values[name].copy_(value)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Named views of ``theta``: (..., D) becomes one (..., *shape) for each parameter.

        Raises ModelError where its last axis is not of length D.
        """
        if theta.shape[-1] != self.D:
            raise ModelError(f"parameters of length {theta.shape[-1]} given where this subset has D = {self.D}")
        lead = theta.shape[:-1]
        pieces = theta.split(self.sizes, dim=-1)
        return {
            name: piece.reshape(*lead, *shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        plain = {"names": list(self.names), "shapes": [list(s) for s in self.shapes], "dtypes": list(self.dtypes)}
        return plain | ({"lora": self.lora.to_json()} if self.lora else {})

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Subset":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        shapes = tuple(tuple(int(n) for n in shape) for shape in data["shapes"])
        lora = Lora.from_json(data["lora"]) if "lora" in data else None
        return Subset(tuple(data["names"]), shapes, tuple(data["dtypes"]), lora)


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@dataclass(frozen=True)
class Choice:
    """A subset, and what a user should hear of it."""

    subset: Subset
    frozen: tuple[str, ...] = ()
    """Parameters that were left out for they are frozen (``requires_grad``)."""
    unreached: tuple[str, ...] = ()
    """Parameters that were left out for they cannot reach the logits."""
    warnings: tuple[str, ...] = ()


def choose(module: nn.Module, spec: str, reach: Reach | None = None) -> Subset:
    """The subset that ``spec`` names: see `settle`."""
    return settle(module, spec, reach).subset


def settle(module: nn.Module, spec: str, reach: Reach | None = None) -> Choice:
    """The subset that ``spec`` names, and what is to be said of it.

    a name of `choices.SUBSETS`  what that rule chooses, see `models/subset_rules.py`
    ``regex:...``                every parameter whose name the expression finds
    ``a,b,c``                    these parameters

    ``reach`` (`reading.reach_of`) is how parameters reach the logits; without it the order of definition stands for
    that. A parameter with several names (a tied one) is chosen by any of them, once, under its first. Frozen ones
    are never chosen, unless all are (a network ready for inference); nor are those that cannot reach the logits.
    Raises ModelError when nothing is chosen, a name is unknown, frozen or a buffer's, or a chosen parameter is not
    float32.
    """
    reach = by_definition(module) if reach is None else reach
    parameters, chosen = dict(module.named_parameters()), _chosen(module, spec, reach)
    trained = {name for name, value in parameters.items() if value.requires_grad} or parameters.keys()
    frozen = tuple(name for name in parameters if name in chosen and name not in trained)
    unreached = tuple(name for name in parameters if name in chosen & trained and name not in reach.places)
    names = tuple(name for name in parameters if name in chosen & trained and name in reach.places)
    if not names:
        raise ModelError(_nothing(spec, tuple(parameters), frozen, unreached))
    for name in names:
        if parameters[name].dtype != torch.float32:
            raise ModelError(
                f"collect.subset: {name!r} is {parameters[name].dtype}; only float32 can be generated: leave it out, or"
                " make it float32"
            )
    subset = Subset(
        names,
        tuple(tuple(parameters[name].shape) for name in names),
        tuple(str(parameters[name].dtype).removeprefix("torch.") for name in names),
    )
    total = sum(value.numel() for value in parameters.values())
    return Choice(subset, frozen, unreached, tuple(_warnings(spec, subset, total, reach)))


def notes(module: nn.Module, choice: Choice, reach: Reach) -> Iterator[str]:
    """What a user should hear of a choice: what was left out, of it and on the way to the logits, and warnings."""
    idle = [name for name, value in module.named_parameters() if name not in reach.places and value.requires_grad]
    for names, why in ((choice.frozen, "frozen"), (tuple(idle), "on no way to the logits")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"left out: {len(names)} {why} ({', '.join(names[:3])}{more})"
    for warning in choice.warnings:
        yield f"warning: {warning}"


def _nothing(spec: str, parameters: tuple[str, ...], frozen: tuple[str, ...], unreached: tuple[str, ...]) -> str:
    """Why nothing is chosen."""
    if frozen or unreached:
        parts = [f"{', '.join(frozen)}: frozen (requires_grad is False), so no chain may change it"] if frozen else []
        parts += [f"{', '.join(unreached)}: not on any way to the logits"] if unreached else []
        return f"collect.subset: {spec!r} chooses no parameter that can vary ({'; '.join(parts)}); choose others"
    return f"collect.subset: {spec!r} chooses no parameter of this classifier ({', '.join(parameters)})"


def _warnings(spec: str, subset: Subset, total: int, reach: Reach) -> Iterator[str]:
    if reach.why and spec in NAMED:
        way = "what gradients reach" if reach.steps else "the order of definition"
        yield f"collect.subset: {spec} follows from {way}, see that it is right: {reach.why}"
    if spec in NAMED and total < 2 * subset.D:
        yield (
            f"collect.subset: {spec} is {subset.D / total:.0%} of all parameters; members share little where it begins"
            " early, and head is far smaller"
        )


def _chosen(module: nn.Module, spec: str, reach: Reach) -> set[str]:
    """First names of the parameters that ``spec`` names."""
    first = first_names(module)
    if spec in NAMED:
        rule = imported(SUBSETS[spec], "collect.subset", ModelError)
        return {first[name] for name in rule(module, reach)}
    if spec.startswith("regex:"):
        try:
            pattern = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise ModelError(f"collect.subset: {spec!r} is not a regular expression ({error})") from None
        return {first[name] for name in first if pattern.search(name)}
    given = {name.strip() for name in spec.split(",")}
    _check_names(module, given)
    return {first[name] for name in given}


def _check_names(module: nn.Module, given: set[str]) -> None:
    """Raises ModelError for names that no chain may change."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    some_trained = any(value.requires_grad for value in parameters.values())
    for name in sorted(given):
        if name in dict(module.named_buffers()):
            raise ModelError(
                f"collect.subset: {name!r} is a buffer, which training does not change; name parameters"
                " (sample.reestimate_batch_norm gives members batch-norm statistics of their own)"
            )
        if name not in parameters:
            raise ModelError(
                f"collect.subset: the classifier has no parameter {name!r}; use one of {', '.join(NAMED)}, regex:...,"
                f" or names among {', '.join(dict(module.named_parameters()))}"
            )
        if some_trained and not parameters[name].requires_grad:
            raise ModelError(
                f"collect.subset: {name!r} is frozen (requires_grad is False), so it is the same in all members; leave"
                " it out, or let the classifier train it"
            )


def first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter, and the first one of the same parameter."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in module.named_parameters(remove_duplicate=False)}
