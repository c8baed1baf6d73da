"""What trainings and answers cost, in floating-point operations: the same on every machine, as seconds are not.

Operations of matrix products and convolutions are counted, by torch. A backward pass counts as two forward passes; what
is frozen before the subset takes one pass in all, or one each step where its features are not kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.config import Base, Config
from bend_ray.generator.generator import Generator
from bend_ray.models.trunk import SharedTrunk
from bend_ray.snapshots import chains, features
from bend_ray.training import loop

STEP = 3
"""Forward passes that a training step is worth."""


@dataclass(frozen=True)
class Flops:
    """Of one row through the classifier, by piece, and of the whole generator."""

    trunk: float
    """What members share."""
    tail: float
    """The rest, once a member."""
    head: float
    """The last linear layer; 0 where there is none."""
    kept: bool
    """Whether chains train on kept features."""
    generator: float
    """Its fit, search and sampling, in all."""
    trunks: int = 1
    """How many of them members stand on."""

    @property
    def forward(self) -> float:
        """The whole classifier."""
        return self.trunk + self.tail or 1.0

    def answer(self, members: int) -> float:
        """An answer of so many tails on all trunks, in forward passes of one network."""
        return (self.trunks * self.trunk + members * self.tail) / self.forward if members > 1 else 1.0

    def answer_of_heads(self, heads: int) -> float:
        """An answer of so many last layers on all that comes before, in forward passes of one network."""
        return (self.forward + (heads - 1) * self.head) / self.forward

    def training(self, base: Base, rows: int) -> float:
        """A whole training on so many rows."""
        return loop.steps_of(base, rows) * min(base.batch_size, rows) * STEP * self.forward

    def cycles(self, config: Config, rows: int) -> float:
        """All cycles after one base, on so many rows."""
        return config.cycles * self.training(config.base.cycle, rows)

    def trunks_made(self, config: Config, rows: int) -> float:
        """What is trained for the networks that members stand on, on so many rows, beyond the first base."""
        count, cycles = config.base.count, 0.0 if config.collect.trunk == "base" else self.cycles(config, rows)
        return (count - 1) * self.training(config.base, rows) + count * cycles

    def chains(self, config: Config, rows: int, val_rows: int) -> float:
        """All chains, each on so many rows."""
        collect = config.collect
        steps = collect.chains * chains.steps_of(collect, rows) * min(collect.batch_size, rows)
        trunk = self.trunks * (rows + val_rows) * self.trunk if self.kept else steps * self.trunk
        return steps * STEP * self.tail + trunk


def keeps_features(trunk: SharedTrunk, theta_D: Tensor, x: Tensor, config: Config) -> bool:
    """Whether chains of this configuration train on kept features."""
    collect = config.collect
    if collect.features == "none" or config.changes_for_chains != features.OFF:
        return False
    return features.worth_it(trunk, theta_D, x, collect)


@torch.no_grad()
def of_generator(generator: Generator, config: Config, snapshots: int) -> float:
    """Operations of fitting (each trial of a search counts as a whole fit) and of sampling all members."""
    coder, diffusion, sample = config.autoencoder, config.diffusion, config.sample
    device = next(generator.diffusion.parameters()).device
    with FlopCounterMode(display=False) as of_coder:
        c_BR = torch.zeros(min(coder.batch_size, snapshots), generator.span.R, device=device)
        generator.autoencoder.decode(generator.autoencoder.encode(c_BR))
    with FlopCounterMode(display=False) as of_denoiser:
        z_BZ = generator.autoencoder.encode(c_BR[:1]).expand(diffusion.batch_size, -1)
        generator.diffusion.denoiser(z_BZ, torch.zeros(len(z_BZ), dtype=torch.int64, device=device), None)
    with FlopCounterMode(display=False) as of_sampling:
        generator.sample(range(sample.block), config.seed, sample.model_copy(update={"spread": 1.0}))
    steps = STEP * (
        coder.iterations * of_coder.get_total_flops() + diffusion.iterations * of_denoiser.get_total_flops()
    )
    gram = 2.0 * snapshots**2 * generator.subset.D
    return (1 + config.search.trials) * steps + gram + of_sampling.get_total_flops() * sample.made / sample.block
