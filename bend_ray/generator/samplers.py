"""Samplers: from noise to latents, as free functions on a whole block of members at once.

``velocity(z_MZ, t)`` is a model's guess of ``v = alpha * eps - sigma * z_0`` (Salimans & Ho 2022, appendix D), where
``z_t = alpha * z_0 + sigma * eps``, ``alpha^2 = alpha_bar[t]`` and ``sigma^2 = 1 - alpha_bar[t]``. The clean latent and
the noise both follow from it without a division, even where nothing of the latent is left.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, int], Tensor]


def timesteps(T: int, steps: int) -> list[int]:
    """``steps`` timesteps from T - 1 down, evenly spaced ("trailing": Lin et al. 2024, arXiv 2305.08891)."""
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def ddim(
    velocity: Velocity,
    z_MZ: Tensor,
    alpha_bar_T: Tensor,
    steps: int,
    eta: float = 0.0,
    noise_NMZ: Tensor | None = None,
) -> Tensor:
    """Latents from noise ``z_MZ`` in ``steps`` steps (DDIM: Song et al. 2021, equations 12 and 16).

        z_s = alpha_s z_0 + sqrt(sigma_s^2 - dev^2) eps + dev noise,    s the timestep after t
        dev = eta (sigma_s / sigma_t) sqrt(1 - alpha_bar_t / alpha_bar_s)

    ``eta`` = 0 is deterministic. Otherwise ``noise_NMZ`` holds the noise of each step but the last.
    """
    times = timesteps(len(alpha_bar_T), steps)
    alpha_bar = [float(alpha_bar_T[t]) for t in times] + [1.0]
    for i, t in enumerate(times):
        now, after = alpha_bar[i], alpha_bar[i + 1]
        v_MZ = velocity(z_MZ, t)
        clean_MZ = now**0.5 * z_MZ - (1 - now) ** 0.5 * v_MZ
        eps_MZ = (1 - now) ** 0.5 * z_MZ + now**0.5 * v_MZ
        dev = eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
        z_MZ = after**0.5 * clean_MZ + max(1 - after - dev**2, 0.0) ** 0.5 * eps_MZ
        if noise_NMZ is not None and dev > 0:
            z_MZ = z_MZ + dev * noise_NMZ[i]
    return z_MZ


def ddpm(velocity: Velocity, z_MZ: Tensor, alpha_bar_T: Tensor, steps: int, noise_NMZ: Tensor) -> Tensor:
    """Ancestral sampling (DDPM: Ho et al. 2020, algorithm 2, the smaller variance): DDIM with eta = 1."""
    return ddim(velocity, z_MZ, alpha_bar_T, steps, 1.0, noise_NMZ)


def alpha_bars(schedule: str, T: int) -> Tensor:
    """``alpha_bar_T``, float64: the share of a latent's variance left after each diffusion step.

    ``linear``: beta from 1e-4 to 0.02 for 1,000 steps (Ho et al. 2020), scaled for other T so that as little is left.
    ``cosine``: cos^2 of the time, beta at most 0.999 (Nichol & Dhariwal 2021, equation 17).
    """
    if schedule == "linear":
        beta_T = torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)
    else:
        time = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008
        left = (time * torch.pi / 2).cos() ** 2
        beta_T = 1 - left[1:] / left[:-1]
    return (1 - beta_T.clamp_max(0.999)).cumprod(0)
