"""Baselines: cheap ways to new parameters. What they do as well as the diffusion model is not its merit.

Each is a function ``(seen, ids, seed) -> theta_MD``; a member follows from (seed, its id) alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.config import BASELINES, Evaluate
from bend_ray.config.target import imported
from bend_ray.errors import ConfigError
from bend_ray.generator.generator import Generator

Sampler = Callable[[Sequence[int], int], Tensor]
"""``(ids, seed) -> theta_MD``, like `Generator.sample`."""


@dataclass(frozen=True)
class Seen:
    """What baselines are made from: the snapshots that the generator saw, the base, and the generator itself."""

    theta_SD: Tensor
    base_theta_D: Tensor
    generator: Generator
    evaluate: Evaluate
    trunk: int = 0
    """Number of the trunk that all of this is of."""

    @cached_property
    def mean_D(self) -> Tensor:
        return self.theta_SD.mean(0)

    @cached_property
    def std_D(self) -> Tensor:
        return self.theta_SD.std(0, correction=0)

    @cached_property
    def deviation_SD(self) -> Tensor:
        """Of each snapshot from their mean."""
        return self.theta_SD - self.mean_D

    @cached_property
    def scale_D(self) -> Tensor:
        """Each tensor's spread over the snapshots."""
        blocks = self.deviation_SD.split(self.generator.subset.sizes, dim=1)
        return torch.cat([block.square().mean().sqrt().expand(block.shape[1]) for block in blocks])

    @cached_property
    def z_SZ(self) -> Tensor:
        """The snapshots' latents."""
        return self.generator.encode(self.theta_SD, self.trunk_of(self.theta_SD))

    def trunk_of(self, rows_XD: Tensor) -> Tensor:
        """The number of the trunk, once a row."""
        return torch.full((len(rows_XD),), self.trunk)

    def noise(self, stream: torch.Generator) -> Tensor:
        """``noise_D``, standard normal."""
        return torch.randn(len(self.mean_D), generator=stream)


def baselines(
    names: Iterable[str],
    theta_SD: Tensor,
    base_theta_D: Tensor,
    generator: Generator,
    evaluate: Evaluate,
    trunk: int = 0,
) -> dict[str, Sampler]:
    """The baselines ``names``, over the snapshots ``theta_SD`` on one trunk that the generator saw."""
    seen = Seen(theta_SD, base_theta_D, generator, evaluate, trunk)
    return {name: partial(imported(BASELINES[name].make, "evaluate.baselines", ConfigError), seen) for name in names}


def of_trunks(
    names: Sequence[str],
    theta_SD: Tensor,
    trunk_S: Tensor,
    trunk_TD: Sequence[Tensor],
    generator: Generator,
    evaluate: Evaluate,
) -> dict[str, Sampler]:
    """The baselines ``names``, on each trunk over its own snapshots."""
    return on_trunks(
        [
            baselines(names, theta_SD[trunk_S == trunk], theta_D, generator, evaluate, trunk)
            for trunk, theta_D in enumerate(trunk_TD)
        ]
    )


def on_trunks(of_trunks: Sequence[dict[str, Sampler]]) -> dict[str, Sampler]:
    """Baselines of several trunks, each over its own snapshots, as one: member i is number i // T of trunk i modulo T.

    They know of a member's trunk what the generator is told.
    """
    T = len(of_trunks)
    if T == 1:
        return of_trunks[0]

    def sampler(name: str) -> Sampler:
        def sample(ids: Sequence[int], seed: int) -> Tensor:
            made: dict[int, Tensor] = {}
            for trunk, samplers in enumerate(of_trunks):
                if of_this := [i for i in ids if i % T == trunk]:
                    rows_MD = samplers[name]([i // T for i in of_this], seeds.seed_for(seed, "trunk", trunk))
                    made |= dict(zip(of_this, rows_MD, strict=True))
            return torch.stack([made[i] for i in ids])

        return sample

    return {name: sampler(name) for name in of_trunks[0]}


def base_model(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """The base's own parameters."""
    return seen.base_theta_D.expand(len(ids), -1)


def weight_average(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """The mean of the snapshots (SWA: Izmailov et al. 2018)."""
    return seen.mean_D.expand(len(ids), -1)


def random_originals(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """Snapshots in random order, none twice before all were there."""
    S = len(seen.theta_SD)
    order = torch.randperm(S, generator=seeds.generator_for(seed, "random_originals"))
    return torch.stack([seen.theta_SD[order[i % S]] for i in ids])


def noised_originals(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """Those plus noise, in units of each tensor's spread."""
    noise_MD = torch.stack([seen.noise(seeds.generator_for(seed, "noised_originals", i)) for i in ids])
    return random_originals(seen, ids, seed) + seen.evaluate.noise * seen.scale_D * noise_MD


def averaged_originals(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """Averages of a few random snapshots."""

    def member(stream: torch.Generator) -> Tensor:
        order = torch.randperm(len(seen.theta_SD), generator=stream)
        return seen.theta_SD[order[: seen.evaluate.averaged]].mean(0)

    return torch.stack([member(seeds.generator_for(seed, "averaged_originals", i)) for i in ids])


def gaussian(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """Each parameter normal, on its own."""
    noise_MD = torch.stack([seen.noise(seeds.generator_for(seed, "gaussian", i)) for i in ids])
    return seen.mean_D + seen.std_D * noise_MD


def swag(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """Half that variance, half the snapshots' covariance (Maddox et al. 2019, equation 1)."""

    def member(stream: torch.Generator) -> Tensor:
        alone_D = seen.std_D * seen.noise(stream)
        return seen.mean_D + (alone_D + _correlated(seen.deviation_SD, stream)) / 2**0.5

    return torch.stack([member(seeds.generator_for(seed, "swag", i)) for i in ids])


def autoencoder_only(seen: Seen, ids: Sequence[int], seed: int) -> Tensor:
    """Normal latents with the covariance of the snapshots' latents, decoded."""
    mean_Z = seen.z_SZ.mean(0)
    streams = [seeds.generator_for(seed, "autoencoder_only", i) for i in ids]
    z_MZ = torch.stack([mean_Z + _correlated(seen.z_SZ - mean_Z, s) for s in streams])
    return seen.generator.decode(z_MZ, seen.trunk_of(z_MZ))


def _correlated(deviation_SD: Tensor, stream: torch.Generator) -> Tensor:
    """A normal draw with the covariance of rows whose deviations from their mean are given."""
    S = len(deviation_SD)
    return torch.randn(S, generator=stream) @ deviation_SD / (S - 1) ** 0.5
