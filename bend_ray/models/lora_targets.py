"""Which weights of a classifier get low-rank adapters (`collect.lora_targets`), and the subset that these are."""

import re
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from bend_ray.config import Config
from bend_ray.errors import ModelError
from bend_ray.models import subset as subsets
from bend_ray.models.lora import RULE, Lora, takes_values, weight_of
from bend_ray.models.reach import Reach, by_definition
from bend_ray.models.subset import Choice, Subset

ATTENTION = re.compile(r"(attention|attn)(v?\d+d?)?$", re.IGNORECASE)
"""How the class or the name of a module ends whose linear and convolutional layers are the projections of attention."""
LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
IN_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Weights that `nn.MultiheadAttention` holds itself."""


def settle(module: nn.Module, rule: str, config: Config, reach: Reach | None = None) -> Choice:
    """The subset that ``rule`` names, as `subset.settle`; for `lora`, ``module`` has adapters from then on.

    Raises ModelError, naming the key, where ``config`` asks for adapters of no layer, or of one that can have none.
    """
    return Choice(choose(module, rule, config, reach)) if rule == RULE else subsets.settle(module, rule, reach)


def choose(module: nn.Module, rule: str, config: Config, reach: Reach | None = None) -> Subset:
    """The subset alone."""
    if rule != RULE:
        return subsets.choose(module, rule, reach)
    collect, targets = config.collect, config.collect.lora_targets
    named = targets not in ("auto", "attention", "all")
    reach = by_definition(module) if reach is None else reach
    left_out: set[str] = set()
    if not named:
        idle = {name for name, _ in module.named_parameters() if name not in reach.places}
        left_out = {*subsets.choose(module, "head", reach).names} | idle
    weights = tuple(_chosen(module, targets, left_out))
    for name in weights:
        _check(module, name, collect.lora_rank)
    lora = Lora(weights, collect.lora_rank, collect.lora_alpha, config.seed)
    names = tuple(lora.attach(module))
    parameters = dict(module.named_parameters())
    shapes = tuple(tuple(parameters[name].shape) for name in names)
    return Subset(names, shapes, ("float32",) * len(names), lora)


def _check(module: nn.Module, name: str, rank: int) -> None:
    """Raises ModelError where the weight of this ``name`` cannot have an adapter of this ``rank``."""
    weight = weight_of(module, name)
    if weight.dtype != torch.float32:
        raise ModelError(
            f"collect.lora_targets: {name!r} is {weight.dtype}; only float32 can be generated: leave its layer out, or"
            " make it float32"
        )
    if not takes_values(module, name):
        raise ModelError(
            f"collect.lora_targets: {name!r} is computed from others (a spectral norm?), so that an adapter could not"
            " be merged; leave its layer out"
        )
    if rank > (most := min(len(weight), weight[0].numel())):
        raise ModelError(
            f"collect.lora_rank: {rank} is more than the rank of {name!r}, which is at most {most}; give that or less,"
            " or leave its layer out of collect.lora_targets"
        )


def _chosen(module: nn.Module, targets: str, left_out: Collection[str]) -> list[str]:
    """Names of the weights that ``targets`` asks for, in the module's order. ``left_out``: names that no rule takes,
    the head's and those that reach no logits."""
    layers = list(_weights(module))
    body = [name for name in layers if name not in left_out]
    attention = [name for name in body if _is_attention(module, name)]
    if targets == "auto":
        rule = attention or body
        chosen = [name for name in rule if _block(module, name) == _block(module, rule[-1])]
    elif targets in ("attention", "all"):
        chosen = attention if targets == "attention" else body
    elif targets.startswith("regex:"):
        try:
            pattern = re.compile(targets.removeprefix("regex:"))
        except re.error as error:
            raise ModelError(f"collect.lora_targets: {targets!r} is not a regular expression ({error})") from None
        chosen = [name for name in layers if pattern.search(_layer(name))]
    else:
        given = [target.strip() for target in targets.split(",")]
        for target in given:
            if not any(_is_called(name, target) for name in layers):
                raise ModelError(_nothing(target, layers))
        chosen = [name for name in layers if any(_is_called(name, target) for target in given)]
    if not chosen:
        raise ModelError(_nothing(targets, layers))
    return chosen


def _nothing(target: str, layers: list[str]) -> str:
    return (
        f"collect.lora_targets: {target!r} chooses no linear, convolutional or attention layer; use auto, attention,"
        f" all, regex:..., or names among {', '.join(dict.fromkeys(map(_layer, layers)))}"
    )


def _is_called(name: str, target: str) -> bool:
    """Whether ``target`` is the layer of the weight ``name``, or how its name ends, as in peft's ``target_modules``."""
    return f".{_layer(name)}".endswith(f".{target}")


def _layer(name: str) -> str:
    """The layer of the weight of this ``name``."""
    return name.rpartition(".")[0]


def _weights(module: nn.Module) -> Iterator[str]:
    """Names of all weights that can have adapters; a tied one, once. A weight that a hook writes before each pass is
    none: what it is computed from is not it."""
    seen: set[int] = set()
    for path, child in module.named_modules():
        is_layer, is_attention = isinstance(child, LAYERS), isinstance(child, nn.MultiheadAttention)
        for attribute in IN_PROJECTIONS * is_attention + ("weight",) * is_layer:
            weight = dict(child.named_parameters(recurse=False)).get(attribute)
            if parametrize.is_parametrized(child, attribute):
                yield f"{path}.{attribute}".removeprefix(".")
            elif weight is not None and id(weight) not in seen:
                seen.add(id(weight))
                yield f"{path}.{attribute}".removeprefix(".")


def _is_attention(module: nn.Module, name: str) -> bool:
    """Whether the layer of the weight ``name`` is, or lies in, a module that is called attention, or whose class is."""
    parts = _layer(name).split(".")
    return any(
        ATTENTION.search(part) or ATTENTION.search(_class(module.get_submodule(".".join(parts[: i + 1]))).__name__)
        for i, part in enumerate(parts)
        if part
    )


def _block(module: nn.Module, name: str) -> str:
    """The innermost module around the layer of the weight ``name`` that has a sibling of its kind; where there is
    none, what the layer is part of."""
    parent = around = _layer(_layer(name))
    while around:
        one, siblings = module.get_submodule(around), module.get_submodule(_layer(around)).children()
        if any(
            other is not one and (isinstance(other, _class(one)) or isinstance(one, _class(other)))
            for other in siblings
        ):
            return around
        around = _layer(around)
    return parent or _layer(name)


def _class(module: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(module)
