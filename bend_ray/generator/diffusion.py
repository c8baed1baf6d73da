"""The diffusion model on normalised latents: a small network that tells latent from noise at any mixture.

Two objectives on the same network: DDPM (Ho et al. 2020) and rectified flow (Liu et al. 2023). They differ in the path
between latent and noise and in what the network is asked for.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bend_ray import seeds
from bend_ray.config import Diffusion as Settings
from bend_ray.data.training import Progress
from bend_ray.errors import TrainingError
from bend_ray.generator import samplers
from bend_ray.generator.samplers import Denoise

TIME_WIDTH = 64
FORGET = 0.1
"""Share of the rows of a batch that are trained without their loss, without their chain, and without either (which is
what guidance starts from)."""
REACH = 1.5
"""How far a guess of a clean latent may lie, times the largest one seen, where it comes from a division by almost
nothing."""


@dataclass(frozen=True)
class Condition:
    """What is asked of each latent: a validation loss, a chain, or nothing."""

    loss_B: Tensor
    """Standardised: 0 is the snapshots' mean, 1 a standard deviation worse; NaN: any."""
    chain_B: Tensor
    """Number of a chain among those that were seen; -1: any."""

    @property
    def chains(self) -> int:
        """How many chains were seen, where each row is told its own."""
        return int(self.chain_B.max()) + 1

    def of(self, row_b: Tensor) -> "Condition":
        return Condition(self.loss_B[row_b], self.chain_B[row_b])

    def forget(self, loss_B: Tensor, chain_B: Tensor) -> "Condition":
        """No loss asked where ``loss_B``, no chain where ``chain_B``."""
        return Condition(self.loss_B.masked_fill(loss_B, torch.nan), self.chain_B.masked_fill(chain_B, -1))

    def to(self, device: torch.device | str) -> "Condition":
        return Condition(self.loss_B.to(device), self.chain_B.to(device))

    @staticmethod
    def none(rows: int, device: torch.device | str = "cpu") -> "Condition":
        return Condition(torch.full((rows,), torch.nan, device=device), torch.full((rows,), -1, device=device))


class Denoiser(nn.Module):
    """What the diffusion model predicts, from noisy latents ``z_BZ`` and timesteps ``t_B``: residual blocks, each
    modulated by the time and, where it knows of them, by what is asked for."""

    def __init__(self, latent: int, hidden: int, blocks: int, asks_loss: bool = False, chains: int = 0) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, hidden), nn.SiLU())
        self.enter = nn.Linear(latent, hidden)
        self.blocks = nn.ModuleList([_Block(hidden) for _ in range(blocks)])
        self.leave = nn.Linear(hidden, latent)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.loss = nn.Sequential(nn.Linear(2, hidden), nn.SiLU(), nn.Linear(hidden, hidden)) if asks_loss else None
        self.chain = nn.Embedding(chains + 1, hidden) if chains else None

    def forward(self, z_BZ: Tensor, t_B: Tensor, asked: Condition | None = None) -> Tensor:
        time_BH = self.time(_embed(t_B))
        if asked is not None and self.loss is not None:
            known_B = ~asked.loss_B.isnan()
            time_BH = time_BH + self.loss(torch.stack([asked.loss_B.nan_to_num(), known_B.float()], dim=1))
        if asked is not None and self.chain is not None:
            time_BH = time_BH + self.chain(asked.chain_B + 1)
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
    """A denoiser, its path between latent and noise, and what it predicts."""

    reach: Tensor

    def __init__(self, latent: int, settings: Settings, chains: int = 0) -> None:
        super().__init__()
        self.denoiser = Denoiser(
            latent,
            settings.hidden,
            settings.blocks,
            "val_loss" in settings.condition,
            chains if "chain" in settings.condition else 0,
        )
        flow = settings.objective == "flow"
        self.prediction = "velocity" if flow else settings.prediction
        self.min_snr = None if flow else settings.min_snr
        # Not buffers: they stay float64 on the CPU, and follow from the settings.
        self.alpha_T, self.sigma_T = samplers.schedule("flow" if flow else settings.schedule, settings.steps)
        self.register_buffer("reach", torch.tensor(math.inf))

    @property
    def asks(self) -> bool:
        """Whether it knows of conditions."""
        return self.denoiser.loss is not None or self.denoiser.chain is not None

    def denoise(self, steps: int, asked: Condition | None = None, guidance: float = 1.0) -> Denoise:
        """The guess that samplers ask for, on the path of so many ``steps``.

        ``guidance`` (classifier-free: Ho & Salimans 2022) goes so many times as far from the guess without a condition
        as the one with it lies.
        """
        times = samplers.timesteps(len(self.alpha_T), steps)

        def denoise(z_MZ: Tensor, n: int) -> Tensor:
            t = times[n]
            t_M = torch.full((len(z_MZ),), t, device=z_MZ.device)
            found_MZ = self.denoiser(z_MZ, t_M, asked)
            if asked is not None and guidance != 1:
                plain_MZ = self.denoiser(z_MZ, t_M, Condition.none(len(z_MZ), z_MZ.device))
                found_MZ = plain_MZ + guidance * (found_MZ - plain_MZ)
            return self._clean(z_MZ, found_MZ, float(self.alpha_T[t]), float(self.sigma_T[t]))

        return denoise

    def _clean(self, z_MZ: Tensor, found_MZ: Tensor, alpha: float, sigma: float) -> Tensor:
        match self.prediction:
            case "x0":
                return found_MZ
            case "v":  # Salimans & Ho 2022, appendix D
                return alpha * z_MZ - sigma * found_MZ
            case "epsilon":
                return ((z_MZ - sigma * found_MZ) / alpha).clamp(-self.reach, self.reach)
        return z_MZ - sigma * found_MZ  # flow: alpha = 1 - sigma

    def loss(self, z_BZ: Tensor, t_B: Tensor, noise_BZ: Tensor, asked: Condition | None = None) -> Tensor:
        """Mean squared error of the prediction at timesteps ``t_B``, one for each row, weighted by min-SNR-gamma
        (Hang et al. 2023, arXiv 2303.09556) where asked for."""
        alpha_B1, sigma_B1 = (of_T[t_B.cpu()].to(z_BZ.device)[:, None] for of_T in (self.alpha_T, self.sigma_T))
        snr_B = (alpha_B1 / sigma_B1).square()[:, 0]
        alpha_B1, sigma_B1 = alpha_B1.float(), sigma_B1.float()
        noisy_BZ = alpha_B1 * z_BZ + sigma_B1 * noise_BZ
        match self.prediction:
            case "x0":
                wanted_BZ, unit_B = z_BZ, torch.ones_like(snr_B)
            case "v":
                wanted_BZ, unit_B = alpha_B1 * noise_BZ - sigma_B1 * z_BZ, snr_B + 1
            case "epsilon":
                wanted_BZ, unit_B = noise_BZ, snr_B
            case _:
                wanted_BZ, unit_B = noise_BZ - z_BZ, snr_B
        error_BZ = (self.denoiser(noisy_BZ, t_B, asked) - wanted_BZ).square()
        if self.min_snr is None:
            return error_BZ.mean()
        # The clean latent's squared error is this one over its unit; that is weighted by the SNR, at most gamma.
        weight_B = snr_B.clamp_max(self.min_snr) / unit_B
        return (weight_B.float() * error_BZ.mean(1)).mean()


def fit(
    z_SZ: Tensor,
    settings: Settings,
    seed: int,
    progress: Progress | None = None,
    look: Callable[[Diffusion], object] | None = None,
    looks: int = 1,
    asked: Condition | None = None,
) -> Diffusion:
    """Train a diffusion model on latents of snapshots (on their device); returned with its averaged (EMA) weights.

    ``asked`` holds what is known of each snapshot, for ``settings.condition``. ``look`` is shown the model, with the
    averaged weights so far, after each of ``looks`` equal parts of the training. Raises TrainingError if the loss is
    not finite.
    """
    S, Z = z_SZ.shape
    device = z_SZ.device
    chains = asked.chains if asked is not None else 0
    with seeds.seeded(seed, "diffusion"):
        model = Diffusion(Z, settings, chains)
    model = model.to(device)
    model.reach.fill_(REACH * float(z_SZ.abs().max()))
    asked = asked.to(device) if asked is not None and model.asks else None
    average = AveragedModel(model.denoiser, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    generator = seeds.generator_for(seed, "diffusion", "batches")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    B = settings.batch_size
    for step in range(settings.iterations):
        row_B = torch.randint(S, (B,), generator=generator)
        t_B = torch.randint(settings.steps, (B,), generator=generator)
        noise_BZ = torch.randn(B, Z, generator=generator)
        row_B, t_B, noise_BZ = row_B.to(device), t_B.to(device), noise_BZ.to(device)
        asked_B = None
        if asked is not None:
            loss_B, chain_B, both_B = (torch.rand(3, B, generator=generator) < FORGET).to(device)
            asked_B = asked.of(row_B).forget(loss_B | both_B, chain_B | both_B)
        loss = model.loss(z_SZ[row_B], t_B, noise_BZ, asked_B)
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
