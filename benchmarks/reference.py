"""The literature's generator, as the other side of comparisons: p-diff (arXiv 2402.13144), written anew.

From its paper and published settings: S = 200 snapshots of D = 2,048 parameters; an autoencoder of 1-D convolutions of
width 7 and stride 2 with 64, 128, 256, 256, 32 channels and back (ten in all), latents of 128, noise of 0.001 on its
input and 0.1 on its latents; a denoiser of eight 1-D convolutions of width 7, not strided, over the 128 latents as a
signal, with 1, 64, 128, 256, 512, 256, 128, 64, 1 channels, skips, and the time added at each level; DDPM of 1,000
steps, betas from 1e-4 to 0.02, the noise predicted; AdamW without weight decay, cosine, batches of 50, 500 + 1,000
iterations; members sampled one at a time by all steps.

Otherwise than published, each in its favour: latents are normalised; every row has its own timestep; norms do not look
at the batch; snapshots are encoded once, not at each iteration; learning rates are 1e-3 and 2e-4, for so few iterations
get nowhere with 2e-5 and 1e-4. No EMA.

    python benchmarks/reference.py [--iterations-scale 0.02] [--threads 2]
"""

import argparse
import itertools
import math
import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.generator.convolutional import ConvAutoencoder

SNAPSHOTS, SIZE, RANK = 200, 2048, 100
LATENT, FIRST, STEPS = 128, 64, 1000
INPUT_NOISE, LATENT_NOISE = 0.001, 0.1
CHANNELS, KERNEL = (1, 64, 128, 256, 512), 7
LR, DIFFUSION_LR = 1e-3, 2e-4
ABAR_T = (1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)).cumprod(0)


@dataclass
class Reference:
    autoencoder: ConvAutoencoder
    denoiser: "UNet"
    mean_D: Tensor
    std_D: Tensor
    """Of each parameter over the snapshots; 0 where it never moves."""
    autoencoder_losses: list[float] = field(default_factory=list)
    """Unexplained share of the variance, of each iteration."""
    diffusion_losses: list[float] = field(default_factory=list)
    """Mean squared error of the noise; 1: nothing learnt."""
    autoencoder_s: float = 0.0
    diffusion_s: float = 0.0

    def standardise(self, theta_SD: Tensor) -> Tensor:
        return (theta_SD - self.mean_D) / self.std_D.masked_fill(self.std_D == 0, math.inf)

    def theta(self, z_MZ: Tensor) -> Tensor:
        return self.mean_D + self.std_D * self.autoencoder.decode(z_MZ)


class UNet(nn.Module):
    """The noise in latents ``z_BZ`` at timesteps ``t_B``."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(256, latent), nn.SiLU(), nn.Linear(latent, latent))
        self.down = nn.ModuleList(_level(i, o) for i, o in itertools.pairwise(CHANNELS))
        self.up = nn.ModuleList(_level(i, o) for i, o in itertools.pairwise(CHANNELS[:0:-1]))
        self.leave = nn.Conv1d(CHANNELS[1], CHANNELS[0], KERNEL, padding=KERNEL // 2)
        nn.init.zeros_(self.leave.weight)

    def forward(self, z_BZ: Tensor, t_B: Tensor) -> Tensor:
        angles = t_B[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        # One value for each place in the signal: it tells the convolutions where they are, too.
        time_B1Z = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))[:, None]
        h, skips = z_BZ[:, None], []
        for level in self.down:
            skips.append(h)
            h = level(h + time_B1Z)
        for level in self.up:
            h = level(h + time_B1Z) + skips.pop()
        return self.leave(h + time_B1Z)[:, 0]


def _level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2), nn.GroupNorm(8, outputs), nn.SiLU())


def fit(
    theta_SD: Tensor,
    seed: int,
    autoencoder_iterations: int = 500,
    diffusion_iterations: int = 1000,
    batch: int = 50,
    progress: Callable[[int, int], object] | None = None,
) -> Reference:
    """Both trainings, one after the other; ``progress(done, total)`` counts the iterations of both."""
    S, D = theta_SD.shape
    mean_D, std_D = theta_SD.double().mean(0), theta_SD.double().std(0, correction=0)
    std_D[std_D <= 1e-7 * mean_D.abs()] = 0
    with seeds.seeded(seed, "reference"):
        autoencoder, denoiser = ConvAutoencoder(D, LATENT, FIRST), UNet(LATENT)
    fitted = Reference(autoencoder, denoiser, mean_D.float(), std_D.float())
    x_SD, draws = fitted.standardise(theta_SD), seeds.generator_for(seed, "reference", "batches")
    variance, done, total = x_SD.square().mean(), itertools.count(1), autoencoder_iterations + diffusion_iterations
    tick = (lambda: progress(next(done), total)) if progress is not None else lambda: None

    def unexplained() -> Tensor:
        x_BD = x_SD[torch.randperm(S, generator=draws)[:batch]]
        raw_BZ = autoencoder._raw(x_BD + INPUT_NOISE * torch.randn(x_BD.shape, generator=draws))
        noisy_BZ = raw_BZ + LATENT_NOISE * torch.randn(raw_BZ.shape, generator=draws)
        return (autoencoder._coordinates(noisy_BZ) - x_BD).square().mean() / variance

    def mistaken() -> Tensor:
        z_BZ = z_SZ[torch.randint(S, (batch,), generator=draws)]
        t_B = torch.randint(STEPS, (batch,), generator=draws)
        abar_B1, noise_BZ = ABAR_T[t_B, None].float(), torch.randn(z_BZ.shape, generator=draws)
        return F.mse_loss(denoiser(abar_B1.sqrt() * z_BZ + (1 - abar_B1).sqrt() * noise_BZ, t_B), noise_BZ)

    fitted.autoencoder_losses, fitted.autoencoder_s = _train(autoencoder, LR, autoencoder_iterations, unexplained, tick)
    with torch.no_grad():
        raw_SZ = autoencoder._raw(x_SD)
        autoencoder.mean_Z.copy_(raw_SZ.mean(0))
        autoencoder.std_Z.copy_(raw_SZ.std(0, correction=0).clamp_min(1e-6))
        z_SZ = autoencoder.encode(x_SD)
    fitted.diffusion_losses, fitted.diffusion_s = _train(denoiser, DIFFUSION_LR, diffusion_iterations, mistaken, tick)
    return fitted


def _train(
    model: nn.Module, lr: float, iterations: int, error: Callable[..., Any], tick: Callable[..., Any]
) -> tuple[list[float], float]:
    """Each iteration's loss, and the seconds of all."""
    losses, start = [], time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(iterations, 1))
    for step in range(iterations):
        loss = error()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        assert math.isfinite(losses[-1]), f"the loss is not finite at step {step}"
        tick()
    model.eval().requires_grad_(False)
    return losses, time.perf_counter() - start


@torch.no_grad()
def reconstruct(reference: Reference, theta_SD: Tensor) -> Tensor:
    return reference.theta(reference.autoencoder.encode(reference.standardise(theta_SD)))


@torch.no_grad()
def sample(
    reference: Reference, members: int | Sequence[int], seed: int, steps: int = STEPS, at_once: int = 1
) -> Tensor:
    """``theta_MD`` of so many members, or of these ids, by ancestral sampling (DDPM: Ho et al. 2020, algorithm 2).

        z_s = (z_t - beta / sqrt(1 - abar_t) eps) / sqrt(1 - beta) + sqrt(beta (1 - abar_s) / (1 - abar_t)) noise

    beta = 1 - abar_t / abar_s, s the point after t; fewer ``steps`` pass evenly through the 1,000 (Nichol & Dhariwal
    2021, equation 19). A member follows from its seed and id, however many go ``at_once``.
    """
    ids = range(members) if isinstance(members, int) else members
    t_N = [round(STEPS - n * STEPS / steps) - 1 for n in range(steps)]
    abar_N = [*ABAR_T[t_N].tolist(), 1.0]
    theta = []
    for first in range(0, len(ids), at_once):
        streams = [seeds.generator_for(seed, "reference", "member", i) for i in ids[first : first + at_once]]
        noise_NMZ = torch.stack([torch.randn(steps + 1, LATENT, generator=stream) for stream in streams], dim=1)
        z_MZ = noise_NMZ[-1]
        for n, t in enumerate(t_N):
            abar, after = abar_N[n], abar_N[n + 1]
            beta = 1 - abar / after
            eps_MZ = reference.denoiser(z_MZ, torch.full((len(z_MZ),), t))
            mean_MZ = (z_MZ - beta / math.sqrt(1 - abar) * eps_MZ) / math.sqrt(1 - beta)
            z_MZ = mean_MZ + math.sqrt(beta * (1 - after) / (1 - abar)) * noise_NMZ[n]
        theta.append(reference.theta(z_MZ))
    return torch.cat(theta)


def snapshots(S: int = SNAPSHOTS, D: int = SIZE, rank: int = RANK, seed: int = 0) -> Tensor:
    """Made up: S points about a mean in ``rank`` dimensions, and a tenth of noise; parameters of unlike spread."""
    stream = seeds.generator_for(seed, "reference", "snapshots")
    x_SD = torch.randn(S, rank, generator=stream) @ torch.randn(rank, D, generator=stream) / math.sqrt(rank)
    x_SD = x_SD + 0.1 * torch.randn(S, D, generator=stream)
    return torch.randn(D, generator=stream) + 0.01 * torch.rand(D, generator=stream) * x_SD


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--iterations-scale", type=float, default=1.0, help="share of all iterations and steps")
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    first, second = (max(5, round(args.iterations_scale * n)) for n in (500, 1000))
    steps = min(STEPS, max(20, round(args.iterations_scale * STEPS)))
    theta_SD, ticks = snapshots(), [time.perf_counter()]
    fitted = fit(theta_SD, 0, first, second, progress=lambda *_: ticks.append(time.perf_counter()))
    ms = [1e3 * (after - before) for before, after in itertools.pairwise(ticks)]
    print(f"S = {SNAPSHOTS}, D = {SIZE}, batch 50, {args.threads} threads")
    print(line("autoencoder", fitted.autoencoder, fitted.autoencoder_losses, ms[:first], fitted.autoencoder_s))
    print(line("denoiser", fitted.denoiser, fitted.diffusion_losses, ms[first:], fitted.diffusion_s))
    seconds = [s * STEPS / steps for s in timeit.repeat(lambda: sample(fitted, 1, 0, steps), number=1, repeat=3)]
    how = "" if steps == STEPS else f", extrapolated from {steps}"
    print(f"one member, {STEPS:,} steps{how}: {statistics.median(seconds):.2f} s (fastest of 3: {min(seconds):.2f} s)")


def line(name: str, model: nn.Module, losses: list[float], ms: list[float], seconds: float) -> str:
    """Its size and cost; the fastest iteration is what no neighbour on the machine slowed."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{name}: {count:,} parameters; {len(ms):,} iterations in {seconds:.1f} s, {len(ms) / seconds:.2f} a second, "
        f"{statistics.median(ms):.0f} ms each (fastest: {min(ms):.0f}); loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
