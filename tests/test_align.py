"""Alignment: permutations of hidden units bring networks back into one mode."""

import itertools

import pytest
import torch
from torch import Tensor

from align_networks import EVERYTHING, built_in, found, inverse, made, of, shuffled
from bend_ray.alignment.matching import align, match
from bend_ray.alignment.symmetry import Symmetry
from bend_ray.errors import ModelError


def distance(symmetry: Symmetry, a_D: Tensor, b_D: Tensor) -> float:
    """What `match` lowers, for a network without batch norms."""
    pairs = zip(symmetry.subset.split(a_D).values(), symmetry.subset.split(b_D).values(), strict=True)
    return sum(float((a - b).square().sum() / b.square().mean()) for a, b in pairs)


RECOVERED = [
    ("mlp", EVERYTHING), ("mlp", "last_block"), ("convnet", EVERYTHING), ("convnet", "last_block"),
    ("resnet18", EVERYTHING), ("Flattened", EVERYTHING), ("ResidualMLP", EVERYTHING), ("Attention", EVERYTHING),
    ("Tied", EVERYTHING), ("Grouped", EVERYTHING), ("ViT", EVERYTHING), ("resnet34", EVERYTHING),
]  # fmt: skip


def copies(symmetry: Symmetry, theta_D: Tensor, C: int, noise: float) -> tuple[Tensor, list[list[Tensor]]]:
    """The network with every tensor noised in proportion, its units then permuted; the first row's are not."""
    generator = torch.Generator().manual_seed(5)
    rms = [value.square().mean().sqrt().expand(value.numel()) for value in symmetry.subset.split(theta_D).values()]
    scale_D = noise * torch.cat(rms)
    noisy_CD = theta_D + scale_D * torch.randn(C, len(theta_D), generator=generator)
    moves = [shuffled(symmetry, seed) for seed in range(C)]
    moves[0] = [torch.arange(group.size) for group in symmetry.groups]
    return noisy_CD, moves


@pytest.mark.parametrize(("model", "spec"), RECOVERED)
def test_a_match_recovers_what_was_permuted(model: str, spec: str) -> None:
    symmetry = found(model, spec)
    theta_D = symmetry.subset.take(made(model))
    noisy_CD, moves = copies(symmetry, theta_D, 3, 0.05)
    for c in (1, 2):
        moved_D = symmetry.permuted(noisy_CD[c], moves[c])
        # Heads, and what lies within all of them alike, may hold each other at a lesser optimum: not from every start.
        starts = range(4 if model in ("Attention", "ViT") else 1)
        matches = [match(symmetry, moved_D, theta_D, seed=seed) for seed in starts]
        best = min(matches, key=lambda match: distance(symmetry, symmetry.permuted(moved_D, match), theta_D))
        assert all(map(torch.equal, best, inverse(moves[c])))


@pytest.mark.parametrize(("model", "spec"), [("mlp", EVERYTHING), ("convnet", "last_block")])
def test_aligned_rows_differ_by_their_noise(model: str, spec: str) -> None:
    symmetry = found(model, spec)
    theta_D = symmetry.subset.take(made(model))
    noisy_CD, moves = copies(symmetry, theta_D, 5, 0.1)
    given_CD = torch.stack([symmetry.permuted(*row) for row in zip(noisy_CD, moves, strict=True)])
    aligned_CD, permutations = align(symmetry, given_CD)
    torch.testing.assert_close(aligned_CD, noisy_CD, atol=1e-5, rtol=1e-5)
    assert given_CD.var(0).mean() > 5 * aligned_CD.var(0).mean()
    for c in range(5):
        assert torch.equal(symmetry.permuted(given_CD[c], permutations[c]), aligned_CD[c])
    again_CD, _ = align(symmetry, given_CD)
    assert torch.equal(again_CD, aligned_CD)
    # Another reference: all rows come to it, the first as well.
    moved_D = symmetry.permuted(theta_D, moves[1])
    to_it_CD, _ = align(symmetry, given_CD, moved_D)
    expected_CD = torch.stack([symmetry.permuted(row, moves[1]) for row in noisy_CD])
    torch.testing.assert_close(to_it_CD, expected_CD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "ResidualMLP", "Attention", "Tied"])
def test_every_round_brings_unrelated_networks_closer(model: str) -> None:
    symmetry = found(model, EVERYTHING)
    theta_SD = torch.randn(2, symmetry.subset.D, generator=torch.Generator().manual_seed(0))
    if model == "Tied":  # its batch norm's coordinates are not the plain ones
        symmetry = found(model, "regex:stem|first")
    theta_SD = theta_SD[:, : symmetry.subset.D]
    reached = [
        distance(
            symmetry, symmetry.permuted(theta_SD[0], match(symmetry, theta_SD[0], theta_SD[1], rounds)), theta_SD[1]
        )
        for rounds in (0, 1, 2, 50)
    ]
    assert reached == sorted(reached, reverse=True) and (reached[1] < reached[0] or not symmetry.groups)
    assert distance(symmetry, theta_SD[0], theta_SD[1]) == reached[0]


def test_one_group_is_matched_as_well_as_can_be() -> None:
    symmetry = of(built_in("mlp", hidden=4, depth=1), EVERYTHING)
    theta_SD = torch.randn(2, symmetry.subset.D, generator=torch.Generator().manual_seed(1))
    every = [[torch.tensor(p)] for p in itertools.permutations(range(4))]
    best = min(every, key=lambda p: distance(symmetry, symmetry.permuted(theta_SD[0], p), theta_SD[1]))
    assert torch.equal(match(symmetry, theta_SD[0], theta_SD[1])[0], best[0])


def test_tensors_of_any_magnitude_count_alike() -> None:
    symmetry = found("mlp", EVERYTHING)
    theta_SD = torch.randn(2, symmetry.subset.D, generator=torch.Generator().manual_seed(2))
    scales = torch.logspace(-4, 4, len(symmetry.subset.sizes)).repeat_interleave(torch.tensor(symmetry.subset.sizes))
    plain = match(symmetry, theta_SD[0], theta_SD[1])
    scaled = match(symmetry, theta_SD[0] * scales, theta_SD[1] * scales)
    assert all(map(torch.equal, plain, scaled))


def test_networks_without_groups_and_layers_of_one_unit() -> None:
    for symmetry in (found("mlp", "head"), found("Branching", EVERYTHING), of(built_in("mlp", hidden=1), EVERYTHING)):
        assert symmetry.groups == ()
        theta_CD = torch.randn(3, symmetry.subset.D, generator=torch.Generator().manual_seed(0))
        aligned_CD, permutations = align(symmetry, theta_CD)
        assert torch.equal(aligned_CD, theta_CD) and permutations == [[], [], []]


def test_parameters_that_do_not_fit_or_are_not_finite() -> None:
    symmetry = found("mlp", EVERYTHING)
    theta_D = torch.zeros(symmetry.subset.D)
    with pytest.raises(ModelError, match=r"^parameters of length 3 given where this subset has D = "):
        symmetry.permuted(torch.zeros(3), shuffled(symmetry))
    theta_D[5] = torch.nan
    with pytest.raises(ModelError, match=r"^parameters that are not finite cannot be aligned$"):
        match(symmetry, theta_D, torch.zeros_like(theta_D))
