"""Whether members follow the parameters that are put into them: the cut is compared with a network that holds them.

A member is the cut classifier with other values in the place of some parameters. What a forward pass reads from
somewhere else (a list that holds the parameter as well, a copy of it, something worked out when ``eval()`` was called)
stays behind without a word, and so does every member.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.errors import ModelError
from bend_ray.models import faults
from bend_ray.models.copies import fill, tensors
from bend_ray.models.output import logits
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import SharedTrunk

TOLERANCE = 1e-5
"""Of the largest logit: what float32 rounding leaves in operations of another order. Types of fewer bits have more."""
ROUNDINGS = 16
"""Roundings of the coarsest type in a network that are no difference."""
SMALL = 1e-3
"""Of a tensor whose mean square is the square of this, changes by a factor would not show."""


@torch.no_grad()
def check_still(module: nn.Module, x: Tensor) -> None:
    """Raises ModelError where ``module`` changes as it answers for ``x`` in eval mode; names what changes."""
    settle(module)
    before = values_of(module)
    answer(module, x)
    if changed := changes(before, module):
        kind = "buffer" if changed[0] in dict(module.named_buffers()) else "parameter"
        raise ModelError(
            f"the classifier's {kind} {changed[0]!r} changes as it answers in eval mode, so that an answer would depend"
            " on those before it; write to it only where self.training is true (quantisation observers:"
            " module.apply(torch.ao.quantization.disable_observer) once they have seen some rows)"
        )


@torch.no_grad()
def check(module: nn.Module, cut: SharedTrunk, make: Callable[[], nn.Module], x: Tensor) -> None:
    """Raises ModelError where ``cut``, made of ``module``, gives other logits for ``x`` than the plain forward pass, or
    than that of another one, which ``make`` makes anew, into which all chosen parameters were put with other values;
    names those that it does not follow."""
    subset, most = cut.subset, tolerance(module)
    settle(module)
    theta_D, plain_BK = subset.take(module), answer(module, x)
    if (apart := difference(_cut_answer(cut, theta_D, x), plain_BK)) > most:
        raise ModelError(
            f"the classifier, taken apart for its members ({cut.plan}), gives other logits than its own forward pass"
            f" (by {apart:.1%} of the largest): what it computes follows from more than parameters, buffers and images"
            " (from chance, or from calls before); let it follow from these alone in eval mode"
        )
    moved, theta = subset.split(_moved(subset, theta_D)), subset.split(theta_D)

    def left_behind(names: Iterable[str]) -> float:
        """How far the cut is from a network that holds other values of these."""
        changed_D = torch.cat([(moved if name in names else theta)[name].reshape(-1) for name in subset.names])
        other = make()
        fill(other, module)
        subset.put(other, changed_D)
        settle(other)
        return difference(_cut_answer(cut, changed_D, x), answer(other, x))

    def culprits(names: tuple[str, ...]) -> list[str]:
        if left_behind(names) <= most:
            return []
        half = len(names) // 2
        return [*names] if not half else culprits(names[:half]) + culprits(names[half:]) or [*names]

    if (apart := left_behind(subset.names)) > most:
        raise ModelError(
            f"collect.subset: the classifier does not follow {', '.join(map(repr, culprits(subset.names)))}: it reads"
            " these values somewhere else as well (a list, a copy, something worked out when eval() is called or at the"
            f" first forward pass), and members would answer by the old ones (logits differ by {apart:.1%}); leave it"
            " out, or read it from the parameter in each forward pass"
        )


def settle(module: nn.Module) -> None:
    """Put ``module`` in training mode and back in eval mode: what it works out of its parameters when it changes
    between them is then of those that it holds."""
    with faults.said("train(), then eval()"):
        module.train()
        module.eval()


def check_read_back(module: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Raises ModelError where ``module`` gives other logits for ``x`` than ``other``, made from another seed, once that
    has its parameters and buffers, which is how a run reads a network."""
    fill(other, module)
    settle(other)
    if (apart := difference(answer(other, x), answer(module, x))) > tolerance(module):
        kept = ", ".join(_unlike(module, other)) or "a cache, a plain attribute"
        raise ModelError(
            f"the classifier, read back from its parameters and buffers, gives other logits (by {apart:.1%} of the"
            f" largest): it answers by something that neither of them holds ({kept}); register it (register_buffer), or"
            " work it out in each forward pass"
        )


def _unlike(module: nn.Module, other: nn.Module) -> list[str]:
    """Names of plain attributes of modules that are not the same in both."""
    names = []
    for path, child in module.named_modules():
        of_other = vars(other.get_submodule(path))
        for key, value in vars(child).items():
            plain = isinstance(value, Tensor | np.ndarray | int | float | list | tuple) and not key.startswith("_")
            if plain and repr(value) != repr(of_other.get(key)):
                names.append(f"{path}.{key}".removeprefix("."))
    return names


@seeds.seeded(0, "faithful")
@torch.no_grad()
def answer(module: nn.Module, x: Tensor) -> Tensor:
    """``logits_BK`` of the plain forward pass of ``module`` as it is."""
    with faults.said("a forward pass in eval mode"):
        return logits(module(x)).float()


@seeds.seeded(0, "faithful")
def _cut_answer(cut: SharedTrunk, theta_D: Tensor, x: Tensor) -> Tensor:
    return cut.logits(theta_D[None], x)[0]


def values_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {name: value.detach().clone() for name, value in tensors(module)}


def changes(before: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Names of the parameters and buffers of ``module`` that are not as they were, or were not there."""
    after = {name: value.detach() for name, value in tensors(module)}

    def same(one: Tensor, other: Tensor) -> bool:
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(*(value.reshape(-1).view(torch.uint8) for value in (one, other)))

    both = [*before, *(name for name in after if name not in before)]
    return [name for name in both if not (name in before and name in after and same(before[name], after[name]))]


def tolerance(module: nn.Module) -> float:
    """What is no difference between two ways to the same logits, as a share of the largest one."""
    types = {value.dtype for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()}
    return max([TOLERANCE, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in types if dtype.itemsize == 2)])


def _moved(subset: Subset, theta_D: Tensor) -> Tensor:
    """``theta_D`` with each value changed: by a factor from 0.5 to 1.5, signs staying, or, where a tensor is about 0,
    by up to 0.1."""
    draws = seeds.generator_for(0, "faithful", "moves")
    moved = []
    for value in subset.split(theta_D).values():
        u = torch.rand(value.shape, generator=draws)
        small = value.square().mean().sqrt() < SMALL
        moved.append((value + 0.1 * u if small else value * (0.5 + u)).reshape(-1))
    return torch.cat(moved)


def difference(one_BK: Tensor, other_BK: Tensor) -> float:
    """Largest difference of two sets of logits, as a share of the largest logit; of both not finite, none."""
    apart = (one_BK - other_BK).abs()
    apart[~one_BK.isfinite() & ~other_BK.isfinite()] = 0
    largest = other_BK[other_BK.isfinite()].abs().max() if other_BK.isfinite().any() else torch.tensor(1.0)
    return float(
        apart.nan_to_num(torch.inf, posinf=torch.inf).max() / largest.clamp_min(torch.finfo(torch.float32).tiny)
    )
