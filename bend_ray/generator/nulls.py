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
    S = len(theta_SD)
    mean_D, deviation_SD = theta_SD.mean(0), theta_SD - theta_SD.mean(0)
    std_D = theta_SD.std(0, correction=0)
    blocks = deviation_SD.split(generator.subset.sizes, dim=1)
    scale_D = torch.cat([block.square().mean().sqrt().expand(block.shape[1]) for block in blocks])
    z_SZ = generator.encode(theta_SD)

    def original(member: int, seed: int) -> Tensor:
        order = torch.randperm(S, generator=seeds.generator_for(seed, "random_originals"))
        return theta_SD[order[member % S]]

    def noised(member: int, seed: int) -> Tensor:
        noise_D = torch.randn(len(mean_D), generator=seeds.generator_for(seed, "noised_originals", member))
        return original(member, seed) + evaluate.noise * scale_D * noise_D

    def averaged(member: int, seed: int) -> Tensor:
        order = torch.randperm(S, generator=seeds.generator_for(seed, "averaged_originals", member))
        return theta_SD[order[: evaluate.averaged]].mean(0)

    def gaussian(member: int, seed: int) -> Tensor:
        return mean_D + std_D * torch.randn(len(mean_D), generator=seeds.generator_for(seed, "gaussian", member))

    def swag(member: int, seed: int) -> Tensor:
        stream = seeds.generator_for(seed, "swag", member)
        own_D = std_D * torch.randn(len(mean_D), generator=stream)
        return mean_D + (own_D + _correlated(deviation_SD, stream)) / 2**0.5

    def latent(member: int, seed: int) -> Tensor:
        stream = seeds.generator_for(seed, "autoencoder_only", member)
        return z_SZ.mean(0) + _correlated(z_SZ - z_SZ.mean(0), stream)

    every: dict[str, Sampler] = {
        "base_model": lambda ids, seed: base_theta_D.expand(len(ids), -1),
        "weight_average": lambda ids, seed: mean_D.expand(len(ids), -1),
        "autoencoder_only": lambda ids, seed: generator.decode(torch.stack([latent(i, seed) for i in ids])),
    }
    one_by_one = {
        "random_originals": original,
        "noised_originals": noised,
        "averaged_originals": averaged,
        "gaussian": gaussian,
        "swag": swag,
    }
    every |= {name: _stacked(member) for name, member in one_by_one.items()}
    return {name: every[name] for name in names}


def _stacked(member: Callable[[int, int], Tensor]) -> Sampler:
    return lambda ids, seed: torch.stack([member(i, seed) for i in ids])


def _correlated(deviation_SD: Tensor, stream: torch.Generator) -> Tensor:
    """A normal draw with the covariance of rows whose deviations from their mean are given."""
    S = len(deviation_SD)
    return torch.randn(S, generator=stream) @ deviation_SD / (S - 1) ** 0.5
