"""Alignment: networks are brought into one mode by letting hidden units change places, which changes no function.

Networks trained apart differ, besides all else, by a permutation of each hidden layer, and a model of their parameters
need not learn that. They are matched by their weights (Ainsworth et al. 2023, "Git Re-Basin", arXiv 2209.04836,
algorithm 1).
"""

import itertools
from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bend_ray import seeds
from bend_ray.alignment.symmetry import Group, Symmetry
from bend_ray.errors import ModelError
from bend_ray.progress import ProgressCallback

ROUNDS = 50
"""At most so many times over all groups; a match ends sooner, once no group changes."""


def match(
    symmetry: Symmetry, theta_D: Tensor, reference_D: Tensor, rounds: int = ROUNDS, seed: int = 0
) -> list[Tensor]:
    """Permutations for which ``permuted`` theta_D comes close to ``reference_D``: they lower

    sum over tensors t of |P t - t_ref|^2 / mean(t_ref^2),

    group by group in a random order, each by a linear assignment given the others, until none changes or
    ``rounds`` are over. Tensors of any magnitude thus count alike. For a batch norm with shared statistics t are
    its effective scale weight / r and shift bias - weight m / r, which move plainly. The optimum is a local one:
    with attention, where heads and what lies within them wait for each other, seeds differ.
    """
    ours, reference = _plain(symmetry, theta_D), _plain(symmetry, reference_D)
    theirs = {name: t / t.square().mean().clamp(min=1e-30) for name, t in reference.items()}
    permutations = [torch.arange(group.size) for group in symmetry.groups]
    generator = seeds.generator_for(seed, "align")
    for _ in range(rounds):
        changed = False
        for g in torch.randperm(len(symmetry.groups), generator=generator).tolist():
            gain_UU = _gain(symmetry.groups[g], ours, theirs)
            best = torch.as_tensor(linear_sum_assignment(gain_UU.numpy(), maximize=True)[1])
            moved = symmetry.groups[g].permute(ours, best)
            # Not the assignment's own gain: units on two axes of one tensor are assigned as if one of them stood.
            gains = [((moved[name] - ours[name]) * theirs[name]).sum() for name in moved]
            if sum(gains) > 1e-9 * gain_UU.abs().sum():
                ours |= moved
                permutations[g], changed = permutations[g][best], True
        if not changed:
            break
    return permutations


def _plain(symmetry: Symmetry, theta_D: Tensor) -> dict[str, Tensor]:
    """Coordinates in which every group moves plainly."""
    if not theta_D.isfinite().all():
        raise ModelError("parameters that are not finite cannot be aligned")
    values = symmetry.flat(theta_D.double())
    for norm in {norm.weight: norm for group in symmetry.groups for norm in group.norms}.values():
        values[norm.weight] = values[norm.weight] / norm.rms_C
        values[norm.bias] = values[norm.bias] - values[norm.weight] * norm.mean_C
    return values


def _gain(group: Group, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
    """``gain_UU[i, p]``: inner product of their unit i and our unit p, over all places where the units stand."""
    gain_UU = torch.zeros(group.size, group.size, dtype=torch.float64)
    for axis in group.axes:
        units = [
            values[axis.name].reshape(axis.outer, group.size, axis.inner).transpose(0, 1).flatten(1)
            for values in (theirs, ours)
        ]
        gain_UU += units[0] @ units[1].T
    return gain_UU


def align(
    symmetry: Symmetry,
    theta_CD: Tensor,
    reference_D: Tensor | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """``theta_CD``, each row matched to ``reference_D`` (row 0 where None), then to the mean of the rows so aligned;
    and the permutations of each row. ``progress`` counts matches, two a row."""
    reference_D = theta_CD[0] if reference_D is None else reference_D
    done = itertools.count(1)

    def matched(rows_CD: Tensor, to_D: Tensor) -> Iterator[list[Tensor]]:
        for theta_D in rows_CD:
            yield match(symmetry, theta_D, to_D, rounds, seed)
            if progress is not None:
                progress(next(done), 2 * len(theta_CD))

    first = list(matched(theta_CD, reference_D))
    aligned_CD = torch.stack([symmetry.permuted(*row) for row in zip(theta_CD, first, strict=True)])
    second = list(matched(aligned_CD, aligned_CD.double().mean(0)))
    permutations = [[p[q] for p, q in zip(*row, strict=True)] for row in zip(first, second, strict=True)]
    return torch.stack([symmetry.permuted(*row) for row in zip(theta_CD, permutations, strict=True)]), permutations
