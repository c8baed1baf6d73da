"""The subset: which parameters of a classifier are collected, generated and put back; the rest stays frozen."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.config.choices import SUBSETS
from bend_ray.config.target import imported
from bend_ray.errors import ModelError
from bend_ray.models.lora import Lora

NAMED = tuple(SUBSETS)
"""Rules that go by a name."""

# By type, not by name: a user's module may call its norms anything.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


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


def choose(module: nn.Module, spec: str) -> Subset:
    """The subset that ``spec`` names.

    a name of `choices.SUBSETS`  what that rule chooses: see `head`, `norm`, `norm_and_head`, `last_block`, `auto`
    ``regex:...``                every parameter whose name the expression finds
    ``a,b,c``                    these parameters

    A parameter with several names (a tied one) is chosen by any of them, once, under its first.
    Raises ModelError when nothing is chosen, a name is unknown or a buffer's, or a chosen parameter is not float32.
    """
    parameters, chosen = dict(module.named_parameters()), _chosen(module, spec)
    names = tuple(name for name in parameters if name in chosen)
    if not names:
        raise ModelError(f"collect.subset: {spec!r} chooses no parameter of this classifier ({', '.join(parameters)})")
    for name in names:
        if parameters[name].dtype != torch.float32:
            raise ModelError(
                f"collect.subset: {name!r} is {parameters[name].dtype}; only float32 can be generated: leave it out, or"
                " make it float32"
            )
    return Subset(
        names,
        tuple(tuple(parameters[name].shape) for name in names),
        tuple(str(parameters[name].dtype).removeprefix("torch.") for name in names),
    )


def _chosen(module: nn.Module, spec: str) -> set[str]:
    """First names of the parameters that ``spec`` names."""
    first = _first_names(module)
    if spec in NAMED:
        rule = imported(SUBSETS[spec], "collect.subset", ModelError)
        return {first[name] for name in rule(module)}
    if spec.startswith("regex:"):
        try:
            pattern = re.compile(spec.removeprefix("regex:"))
        except re.error as error:
            raise ModelError(f"collect.subset: {spec!r} is not a regular expression ({error})") from None
        return {first[name] for name in first if pattern.search(name)}
    given = {name.strip() for name in spec.split(",")}
    for name in sorted(given - first.keys()):
        if name in dict(module.named_buffers()):
            raise ModelError(
                f"collect.subset: {name!r} is a buffer, which training does not change; name parameters"
                " (sample.reestimate_batch_norm gives members batch-norm statistics of their own)"
            )
        raise ModelError(
            f"collect.subset: the classifier has no parameter {name!r};"
            f" use one of {', '.join(NAMED)}, regex:..., or names among {', '.join(dict(module.named_parameters()))}"
        )
    return {first[name] for name in given}


def head(module: nn.Module) -> list[str]:
    """The last linear (or convolutional) layer."""
    return _under(module, _head(module))


def norm(module: nn.Module) -> list[str]:
    """Weights and biases of all normalisation layers."""
    return [n for path, child in module.named_modules() if isinstance(child, NORMS) for n in _under(module, path)]


def norm_and_head(module: nn.Module) -> list[str]:
    """Both."""
    return norm(module) + head(module)


def last_block(module: nn.Module) -> list[str]:
    """All parameters of the last child with parameters before the head, and the head."""
    blocks = [path for path, child in _blocks(module) if path != _head(module) and list(child.parameters())]
    return head(module) + (_under(module, blocks[-1]) if blocks else [])


def auto(module: nn.Module) -> list[str]:
    """`norm_and_head` where there are normalisation layers with parameters, else `last_block`."""
    return norm_and_head(module) if norm(module) else last_block(module)


def _head(module: nn.Module) -> str:
    layers = [path for path, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ModelError("collect.subset: the classifier has no linear or convolutional layer; name parameters instead")
    return layers[-1]


def _blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children one level down, containers (Sequential, ModuleList) opened, so that a "block" is what a reader sees."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            blocks += [(f"{name}.{path}", inner) for path, inner in _blocks(child)]
        else:
            blocks.append((name, child))
    return blocks


def _under(module: nn.Module, path: str) -> list[str]:
    """First names of the parameters of the child at ``path``, tied ones that begin elsewhere as well."""
    prefix = f"{path}." if path else ""
    return [first for name, first in _first_names(module).items() if name.startswith(prefix)]


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter, and the first one of the same parameter."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in module.named_parameters(remove_duplicate=False)}
