"""Null models: cheap ways to new parameters. What they do as well as the diffusion model is not its merit.

Each is a function ``(ids, seed) -> theta_MD`` like `Generator.sample`; a member follows from (seed, its id) alone.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.config import Evaluate
from bend_ray.generator.generator import Generator

Sampler = Callable[[Sequence[int], int], Tensor]


def null_generators(
    names: Iterable[str], theta_SD: Tensor, base_theta_D: Tensor, generator: Generator, evaluate: Evaluate
) -> dict[str, Sampler]:
    """The null models ``names``, over the snapshots ``theta_SD`` that the generator saw.

    ``base_model``          the base's own parameters
    ``weight_average``      the mean of the snapshots (SWA: Izmailov et al. 2018)
    ``random_originals``    snapshots in random order, none twice before all were there
    ``noised_originals``    those plus noise, in units of each tensor's spread
    ``averaged_originals``  averages of a few random snapshots
    ``gaussian``            each parameter normal, on its own
    ``swag``                half that variance, half the snapshots' covariance (Maddox et al. 2019, equation 1)
    ``autoencoder_only``    normal latents with the covariance of the snapshots' latents, decoded
    """
    own = _Nulls(theta_SD, generator, evaluate)
    every: dict[str, Sampler] = {
        "base_model": lambda ids, seed: base_theta_D.expand(len(ids), -1),
        "weight_average": lambda ids, seed: own.mean_D.expand(len(ids), -1),
        "random_originals": _stacked(own.original),
        "noised_originals": _stacked(own.noised),
        "averaged_originals": _stacked(own.averaged),
        "gaussian": _stacked(own.gaussian),
        "swag": _stacked(own.swag),
        "autoencoder_only": lambda ids, seed: generator.decode(_stacked(own.latent)(ids, seed)),
    }
    return {name: every[name] for name in names}


class _Nulls:
    """One member at a time, from its number and the seed."""

    def __init__(self, theta_SD: Tensor, generator: Generator, evaluate: Evaluate) -> None:
        self.theta_SD, self.evaluate = theta_SD, evaluate
        self.mean_D, self.std_D = theta_SD.mean(0), theta_SD.std(0, correction=0)
        self.deviation_SD = theta_SD - self.mean_D
        blocks = self.deviation_SD.split(generator.subset.sizes, dim=1)
        self.scale_D = torch.cat([block.square().mean().sqrt().expand(block.shape[1]) for block in blocks])
        self.z_SZ = generator.encode(theta_SD)

    def original(self, member: int, seed: int) -> Tensor:
        S = len(self.theta_SD)
        order = torch.randperm(S, generator=seeds.generator_for(seed, "random_originals"))
        return self.theta_SD[order[member % S]]

    def noised(self, member: int, seed: int) -> Tensor:
        noise_D = self._noise(seeds.generator_for(seed, "noised_originals", member))
        return self.original(member, seed) + self.evaluate.noise * self.scale_D * noise_D

    def averaged(self, member: int, seed: int) -> Tensor:
        stream = seeds.generator_for(seed, "averaged_originals", member)
        order = torch.randperm(len(self.theta_SD), generator=stream)
        return self.theta_SD[order[: self.evaluate.averaged]].mean(0)

    def gaussian(self, member: int, seed: int) -> Tensor:
        return self.mean_D + self.std_D * self._noise(seeds.generator_for(seed, "gaussian", member))

    def swag(self, member: int, seed: int) -> Tensor:
        stream = seeds.generator_for(seed, "swag", member)
        own_D = self.std_D * self._noise(stream)
        return self.mean_D + (own_D + _correlated(self.deviation_SD, stream)) / 2**0.5

    def latent(self, member: int, seed: int) -> Tensor:
        stream, mean_Z = seeds.generator_for(seed, "autoencoder_only", member), self.z_SZ.mean(0)
        return mean_Z + _correlated(self.z_SZ - mean_Z, stream)

    def _noise(self, stream: torch.Generator) -> Tensor:
        return torch.randn(len(self.mean_D), generator=stream)


def _stacked(member: Callable[[int, int], Tensor]) -> Sampler:
    return lambda ids, seed: torch.stack([member(i, seed) for i in ids])


def _correlated(deviation_SD: Tensor, stream: torch.Generator) -> Tensor:
    """A normal draw with the covariance of rows whose deviations from their mean are given."""
    S = len(deviation_SD)
    return torch.randn(S, generator=stream) @ deviation_SD / (S - 1) ** 0.5
