"""The diffusion model (DDPM) on normalised latents: a small network that tells latent from noise at any mixture."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bend_ray import seeds
from bend_ray.config import Diffusion as Settings
from bend_ray.data.training import Progress
from bend_ray.errors import TrainingError
from bend_ray.generator.samplers import alpha_bars

TIME_WIDTH = 64


class Denoiser(nn.Module):
    """``v_BZ`` from noisy latents ``z_BZ`` and timesteps ``t_B``: residual blocks, each modulated by the time."""

    def __init__(self, latent: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, hidden), nn.SiLU())
        self.enter = nn.Linear(latent, hidden)
        self.blocks = nn.ModuleList([_Block(hidden) for _ in range(blocks)])
        self.leave = nn.Linear(hidden, latent)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, z_BZ: Tensor, t_B: Tensor) -> Tensor:
        time_BH = self.time(_embed(t_B))
        h_BH = self.enter(z_BZ)
        for block in self.blocks:
            h_BH = block(h_BH, time_BH)
        return self.leave(F.silu(h_BH))


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, h_BH: Tensor, time_BH: Tensor) -> Tensor:
        scale_BH, shift_BH = self.modulate(time_BH).chunk(2, dim=-1)
        inner_BH = self.first(self.norm(h_BH) * (1 + scale_BH) + shift_BH)
        return h_BH + self.second(F.silu(inner_BH))


def _embed(t_B: Tensor) -> Tensor:
    """Sinusoids of the timestep (Vaswani et al. 2017), periods from 2 pi to 2 pi times 10,000."""
    half = torch.arange(TIME_WIDTH // 2, device=t_B.device) / (TIME_WIDTH // 2)
    angles = t_B.float()[:, None] * torch.exp(-math.log(10_000) * half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Diffusion(nn.Module):
    """A denoiser and its noise schedule."""

    def __init__(self, latent: int, hidden: int, blocks: int, schedule: str, steps: int) -> None:
        super().__init__()
        self.denoiser = Denoiser(latent, hidden, blocks)
        self.alpha_bar_T = alpha_bars(schedule, steps)
        """Not a buffer: it stays float64 on the CPU, and follows from the settings."""

    def velocity(self, z_MZ: Tensor, t: int) -> Tensor:
        """The estimate that samplers ask for, one timestep for all of ``z_MZ``."""
        return self.denoiser(z_MZ, torch.full((len(z_MZ),), t, device=z_MZ.device))

    def loss(self, z_BZ: Tensor, t_B: Tensor, noise_BZ: Tensor) -> Tensor:
        """Mean squared error of the velocity at timesteps ``t_B``, one for each row."""
        left_B1 = self.alpha_bar_T[t_B.cpu()].to(z_BZ.device)[:, None]
        alpha_B1, sigma_B1 = left_B1.sqrt().float(), (1 - left_B1).sqrt().float()
        noisy_BZ = alpha_B1 * z_BZ + sigma_B1 * noise_BZ
        wanted_BZ = alpha_B1 * noise_BZ - sigma_B1 * z_BZ
        return F.mse_loss(self.denoiser(noisy_BZ, t_B), wanted_BZ)


def fit(
    z_SZ: Tensor,
    settings: Settings,
    seed: int,
    progress: Progress | None = None,
    look: Callable[[Diffusion], object] | None = None,
    looks: int = 1,
) -> Diffusion:
    """Train a diffusion model on latents of snapshots (on their device); returned with its averaged (EMA) weights.

    ``look`` is shown the model, with the averaged weights so far, after each of ``looks`` equal parts of the training.
    Raises TrainingError if the loss is not finite.
    """
    S, Z = z_SZ.shape
    with seeds.seeded(seed, "diffusion"):
        model = Diffusion(Z, settings.hidden, settings.blocks, settings.schedule, settings.steps)
    model = model.to(z_SZ.device)
    average = AveragedModel(model.denoiser, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    generator = seeds.generator_for(seed, "diffusion", "batches")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    for step in range(settings.iterations):
        row_B = torch.randint(S, (settings.batch_size,), generator=generator)
        t_B = torch.randint(settings.steps, (settings.batch_size,), generator=generator)
        noise_BZ = torch.randn(settings.batch_size, Z, generator=generator)
        loss = model.loss(z_SZ[row_B.to(z_SZ.device)], t_B.to(z_SZ.device), noise_BZ.to(z_SZ.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model.denoiser)
        if not torch.isfinite(loss):
            raise TrainingError(f"diffusion: the loss is not finite at step {step}; lower diffusion.lr")
        if progress is not None:
            progress(step + 1, settings.iterations)
        if look is not None and (step + 1) * looks // settings.iterations > step * looks // settings.iterations:
            look(_averaged(model, average))
    return _averaged(model, average)


def _averaged(model: Diffusion, average: AveragedModel) -> Diffusion:
    found = copy.deepcopy(model)
    found.denoiser.load_state_dict(average.module.state_dict())
    return found.eval().requires_grad_(False)
