"""Samplers: from noise to latents, as free functions on a whole block of members at once.

A path says how much of a latent and how much noise there is at each point from noise (n = 0) to the latent (n = N):
``z_n = alpha_n z_clean + sigma_n eps``, with sigma_N = 0. ``denoise(z_MZ, n)`` is a model's guess of the clean latent.
DDPM and flow matching differ in their paths alone, so every sampler serves both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, int], Tensor]
"""(z_MZ, n) -> the clean latents."""


@dataclass(frozen=True)
class Path:
    """Points of a reverse process, from noise to the clean latent, N steps."""

    alpha: tuple[float, ...]
    """N + 1 values, growing to 1."""
    sigma: tuple[float, ...]
    """N + 1 values, falling to 0."""

    @property
    def N(self) -> int:
        """Steps."""
        return len(self.alpha) - 1

    @staticmethod
    def of(alpha_T: Tensor, sigma_T: Tensor, steps: int) -> "Path":
        """The path through ``steps`` of a schedule's T points (from little noise to much), and on to the latent."""
        times = timesteps(len(alpha_T), steps)
        return Path((*(float(alpha_T[t]) for t in times), 1.0), (*(float(sigma_T[t]) for t in times), 0.0))


def timesteps(T: int, steps: int) -> list[int]:
    """``steps`` timesteps from T - 1 down, evenly spaced ("trailing": Lin et al. 2024, arXiv 2305.08891)."""
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def ddim(denoise: Denoise, z_MZ: Tensor, path: Path, eta: float = 0.0, noise_NMZ: Tensor | None = None) -> Tensor:
    """Latents from noise ``z_MZ``, one evaluation a step (DDIM: Song et al. 2021, equations 12 and 16).

        z_s = alpha_s clean + sqrt(sigma_s^2 - dev^2) eps + dev noise,    s the point after t
        dev = eta (sigma_s / sigma_t) sqrt(1 - (alpha_t / alpha_s)^2)

    ``eta`` = 0 is deterministic, and on flow matching's path Euler's method. Otherwise ``noise_NMZ`` holds the noise of
    each step but the last.
    """
    for n in range(path.N):
        alpha, sigma, after, left = path.alpha[n], path.sigma[n], path.alpha[n + 1], path.sigma[n + 1]
        clean_MZ = denoise(z_MZ, n)
        eps_MZ = (z_MZ - alpha * clean_MZ) / sigma
        dev = eta * left / sigma * math.sqrt(max(1 - (alpha / after) ** 2, 0.0))
        z_MZ = after * clean_MZ + math.sqrt(max(left**2 - dev**2, 0.0)) * eps_MZ
        if noise_NMZ is not None and dev > 0:
            z_MZ = z_MZ + dev * noise_NMZ[n]
    return z_MZ


def ddpm(denoise: Denoise, z_MZ: Tensor, path: Path, noise_NMZ: Tensor) -> Tensor:
    """Ancestral sampling (DDPM: Ho et al. 2020, algorithm 2, the smaller variance): on a path with
    alpha^2 + sigma^2 = 1, DDIM with eta = 1."""
    return ddim(denoise, z_MZ, path, 1.0, noise_NMZ)


def dpm_solver(denoise: Denoise, z_MZ: Tensor, path: Path) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one evaluation a step.

        z_s = (sigma_s / sigma_t) z_t - alpha_s (exp(-h) - 1) D,   h = lambda_s - lambda_t, lambda = log(alpha / sigma)
        D = clean_t + (clean_t - clean_before) / (2 r),            r = h_before / h

    The first step and the last are of first order: one has nothing before it, and to the other's end h is infinite.
    """
    before_MZ, h_before = None, math.inf
    for n in range(path.N):
        alpha, sigma, after, left = path.alpha[n], path.sigma[n], path.alpha[n + 1], path.sigma[n + 1]
        clean_MZ = denoise(z_MZ, n)
        if left == 0:
            return after * clean_MZ
        h = math.log(after / left) - math.log(alpha / sigma)
        ahead_MZ = clean_MZ if before_MZ is None else clean_MZ + (clean_MZ - before_MZ) * (h / (2 * h_before))
        z_MZ = (left / sigma) * z_MZ - after * math.expm1(-h) * ahead_MZ
        before_MZ, h_before = clean_MZ, h
    return z_MZ


def heun(denoise: Denoise, z_MZ: Tensor, path: Path) -> Tensor:
    """Heun's method on the probability flow (Karras et al. 2022, algorithm 1): second order, two evaluations a step but
    the first and the last.

        dy / ds = (y - clean) / s,    y = z / alpha,  s = sigma / alpha

    The first step is Euler's: where nothing of the latent is left s is almost infinite, and a trapezoid over that gap
    would be far off, while the clean guess hardly changes there.
    """
    for n in range(path.N):
        alpha, sigma, after, left = path.alpha[n], path.sigma[n], path.alpha[n + 1], path.sigma[n + 1]
        clean_MZ = denoise(z_MZ, n)
        eps_MZ = (z_MZ - alpha * clean_MZ) / sigma
        next_MZ = after * clean_MZ + left * eps_MZ  # Euler: the same step as DDIM's
        if n > 0 and left > 0:
            second_MZ = (next_MZ - after * denoise(next_MZ, n + 1)) / left
            next_MZ = next_MZ + (after * sigma / alpha - left) * (eps_MZ - second_MZ) / 2
        z_MZ = next_MZ
    return z_MZ


def schedule(name: str, T: int) -> tuple[Tensor, Tensor]:
    """``alpha_T, sigma_T``, float64: how much of a latent and how much noise there is at each diffusion step.

    ``linear``  beta from 1e-4 to 0.02 for 1,000 steps (Ho et al. 2020), scaled for other T so that as little is left
    ``cosine``  cos^2 of the time, beta at most 0.999 (Nichol & Dhariwal 2021, equation 17)
    ``flow``    a straight line from latent to noise (rectified flow: Liu et al. 2023, arXiv 2209.03003)

    On the first two alpha^2 is the product of 1 - beta, and alpha^2 + sigma^2 = 1; on the last alpha + sigma = 1.
    """
    if name == "flow":
        sigma_T = torch.arange(1, T + 1, dtype=torch.float64) / (T + 1)
        return 1 - sigma_T, sigma_T
    if name == "linear":
        beta_T = torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)
    else:
        time = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008
        left = (time * torch.pi / 2).cos() ** 2
        beta_T = 1 - left[1:] / left[:-1]
    alpha_bar_T = (1 - beta_T.clamp_max(0.999)).cumprod(0)
    return alpha_bar_T.sqrt(), (1 - alpha_bar_T).sqrt()
