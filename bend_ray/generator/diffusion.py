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
from bend_ray.errors import TrainingError
from bend_ray.generator import samplers
from bend_ray.generator.denoiser import Condition, Denoiser
from bend_ray.generator.samplers import Denoise
from bend_ray.progress import ProgressCallback

CONDITION_DROPOUT = 0.1
"""Share of the rows of a batch that are trained without their loss, without their chain, and without either (which is
what guidance starts from)."""
CLIP = 1.5
"""How far a guess of a clean latent may lie, times the largest one seen, where it comes from a division by almost
nothing."""


class Diffusion(nn.Module):
    """A denoiser, its path between latent and noise, and what it predicts."""

    clip: Tensor

    def __init__(self, latent: int, settings: Settings, chains: int = 0, trunks: int = 1) -> None:
        super().__init__()
        self.denoiser = Denoiser(
            latent,
            settings.hidden,
            settings.blocks,
            "val_loss" in settings.condition,
            chains if "chain" in settings.condition else 0,
            trunks,
        )
        flow = settings.objective == "flow"
        self.prediction = "velocity" if flow else settings.prediction
        self.min_snr = None if flow else settings.min_snr
        # Not buffers: they stay float64 on the CPU, and follow from the settings.
        self.alpha_T, self.sigma_T = samplers.schedule("flow" if flow else settings.schedule, settings.steps)
        self.register_buffer("clip", torch.tensor(math.inf))

    @property
    def conditional(self) -> bool:
        """Whether the denoiser takes conditions."""
        return any(told is not None for told in (self.denoiser.loss, self.denoiser.chain, self.denoiser.trunk))

    def denoise(self, steps: int, condition: Condition | None = None, guidance: float = 1.0) -> Denoise:
        """The guess that samplers ask for, on the path of so many ``steps``.

        ``guidance`` (classifier-free: Ho & Salimans 2022) goes so many times as far from the guess without a condition
        as the one with it lies.
        """
        times = samplers.timesteps(len(self.alpha_T), steps)

        def denoise(z_MZ: Tensor, n: int) -> Tensor:
            t = times[n]
            t_M = torch.full((len(z_MZ),), t, device=z_MZ.device)
            predicted_MZ = self.denoiser(z_MZ, t_M, condition)
            if condition is not None and guidance != 1:
                plain_MZ = self.denoiser(z_MZ, t_M, Condition.none(len(z_MZ), z_MZ.device, condition.trunk_B))
                predicted_MZ = plain_MZ + guidance * (predicted_MZ - plain_MZ)
            return self._clean(z_MZ, predicted_MZ, float(self.alpha_T[t]), float(self.sigma_T[t]))

        return denoise

    def _clean(self, z_MZ: Tensor, predicted_MZ: Tensor, alpha: float, sigma: float) -> Tensor:
        match self.prediction:
            case "x0":
                return predicted_MZ
            case "v":  # Salimans & Ho 2022, appendix D
                return alpha * z_MZ - sigma * predicted_MZ
            case "epsilon":
                return ((z_MZ - sigma * predicted_MZ) / alpha).clamp(-self.clip, self.clip)
        return z_MZ - sigma * predicted_MZ  # flow: alpha = 1 - sigma

    def loss(self, z_BZ: Tensor, t_B: Tensor, noise_BZ: Tensor, condition: Condition | None = None) -> Tensor:
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
        error_BZ = (self.denoiser(noisy_BZ, t_B, condition) - wanted_BZ).square()
        if self.min_snr is None:
            return error_BZ.mean()
        # The clean latent's squared error is this one over its unit; that is weighted by the SNR, at most gamma.
        weight_B = snr_B.clamp_max(self.min_snr) / unit_B
        return (weight_B.float() * error_BZ.mean(1)).mean()


def fit(
    z_SZ: Tensor,
    settings: Settings,
    seed: int,
    progress: ProgressCallback | None = None,
    callback: Callable[[Diffusion], object] | None = None,
    calls: int = 1,
    condition: Condition | None = None,
    trunks: int = 1,
) -> Diffusion:
    """Train a diffusion model on latents of snapshots (on their device); returned with its averaged (EMA) weights.

    ``condition`` holds what is known of each snapshot, for ``settings.condition``, and which of so many ``trunks`` it
    is of. ``callback`` is called with the model, with the averaged weights so far, after each of ``calls`` equal pieces
    of the training. Raises TrainingError if the loss is not finite.
    """
    S, Z = z_SZ.shape
    device = z_SZ.device
    chains = condition.chains if condition is not None else 0
    with seeds.seeded(seed, "diffusion"):
        model = Diffusion(Z, settings, chains, trunks)
    model = model.to(device)
    model.clip.fill_(CLIP * float(z_SZ.abs().max()))
    condition = condition.to(device) if condition is not None and model.conditional else None
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
        condition_B = None
        if condition is not None:
            loss_B, chain_B, both_B = (torch.rand(3, B, generator=generator) < CONDITION_DROPOUT).to(device)
            condition_B = condition.of(row_B).drop(loss_B | both_B, chain_B | both_B)
        loss = model.loss(z_SZ[row_B], t_B, noise_BZ, condition_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model.denoiser)
        if not torch.isfinite(loss):
            raise TrainingError(f"diffusion: the loss is not finite at step {step}; lower diffusion.lr")
        if progress is not None:
            progress(step + 1, settings.iterations)
        if callback is not None and (step + 1) * calls // settings.iterations > step * calls // settings.iterations:
            callback(_averaged(model, average))
    return _averaged(model, average)


def _averaged(model: Diffusion, average: AveragedModel) -> Diffusion:
    averaged = copy.deepcopy(model)
    averaged.denoiser.load_state_dict(average.module.state_dict())
    return averaged.eval().requires_grad_(False)
