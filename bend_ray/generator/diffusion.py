"""The diffusion model on normalised latents: a denoiser, and how it is trained to tell latent from noise.

Two objectives on the same network: DDPM (Ho et al. 2020) and rectified flow (Liu et al. 2023). They differ in the path
between latent and noise and in what the network is asked for.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bend_ray import seeds
from bend_ray.config import Diffusion as Settings
from bend_ray.data.training import Progress
from bend_ray.errors import TrainingError
from bend_ray.generator import samplers
from bend_ray.generator.denoiser import Condition, Denoiser
from bend_ray.generator.samplers import Denoise

FORGET = 0.1
"""Share of the rows of a batch that are trained without their loss, without their chain, and without either (which is
what guidance starts from)."""
REACH = 1.5
"""How far a guess of a clean latent may lie, times the largest one seen, where it comes from a division by almost
nothing."""


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
