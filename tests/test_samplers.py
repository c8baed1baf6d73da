"""Samplers equal the reference library's on the same noise, and do what theory promises where the score is known."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library warns of its own dependencies as it loads
    from diffusers import DDIMScheduler, DDPMScheduler

from bend_ray.generator import samplers
from bend_ray.generator.samplers import Velocity, alpha_bars

T, M, Z = 200, 5, 7


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_velocity(z_MZ: Tensor, t: int) -> Tensor:
    """No model of anything, but it depends on both arguments."""
    return torch.tanh(z_MZ.flip(1) * 0.7 + t / T) + 0.1 * z_MZ


def scheduler(kind: Any, schedule: str, **options: Any) -> Any:
    """The reference with our timesteps and noise schedule; that in float64, for it keeps its own in float32."""
    made = kind(T, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, **options)
    made.alphas_cumprod = alpha_bars(schedule, T)
    return made


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 8, 50, T])  # the reference wants them to divide T
def test_ddim_equals_the_reference(schedule: str, eta: float, steps: int) -> None:
    reference = scheduler(DDIMScheduler, schedule)
    reference.set_timesteps(steps)
    assert reference.timesteps.tolist() == samplers.timesteps(T, steps)
    z_MZ, noise_NMZ = noise(M, Z).double(), noise(steps, M, Z, seed=1).double()
    expected = z_MZ
    for i, t in enumerate(reference.timesteps):
        own = {"variance_noise": noise_NMZ[i]} if eta > 0 else {}
        expected = reference.step(some_velocity(expected, int(t)), int(t), expected, eta=eta, **own).prev_sample
    ours = samplers.ddim(some_velocity, z_MZ, alpha_bars(schedule, T), steps, eta, noise_NMZ)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_equals_the_reference(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = scheduler(DDPMScheduler, schedule, variance_type="fixed_small")
    z_MZ, noise_NMZ = noise(M, Z).double(), noise(T, M, Z, seed=1).double()
    given = iter(noise_NMZ)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(given))
    expected = z_MZ
    for t in range(T - 1, -1, -1):
        expected = reference.step(some_velocity(expected, t), t, expected).prev_sample
    ours = samplers.ddpm(some_velocity, z_MZ, alpha_bars(schedule, T), T, noise_NMZ)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("total", "steps"), [(1000, 50), (1000, 1000), (50, 7), (10, 3), (2, 1), (999, 13)])
def test_timesteps_fall_evenly_from_the_last(total: int, steps: int) -> None:
    times = samplers.timesteps(total, steps)
    gaps = {a - b for a, b in itertools.pairwise(times)}
    assert times[0] == total - 1 and len(times) == len(set(times)) == steps and times[-1] >= 0
    assert not gaps or max(gaps) - min(gaps) <= 1


def gaussian_velocity(mean_Z: Tensor, std_Z: Tensor, alpha_bar_T: Tensor) -> Velocity:
    """The exact velocity where clean latents are normal: eps = sigma (z - alpha mean) / (alpha^2 std^2 + sigma^2)."""

    def velocity(z_MZ: Tensor, t: int) -> Tensor:
        alpha, sigma = float(alpha_bar_T[t]) ** 0.5, (1 - float(alpha_bar_T[t])) ** 0.5
        variance_Z = alpha**2 * std_Z**2 + sigma**2
        eps_MZ = sigma * (z_MZ - alpha * mean_Z) / variance_Z
        clean_MZ = mean_Z + alpha * std_Z**2 * (z_MZ - alpha * mean_Z) / variance_Z
        return alpha * eps_MZ - sigma * clean_MZ

    return velocity


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_gaussian_with_known_score_is_recovered(schedule: str, sampler: str) -> None:
    """4,000 draws know a mean to 0.016 deviations, a deviation to 1.1 %: thrice that, and the error of the steps."""
    draws, steps = 4000, 500
    mean_Z, std_Z = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.5, 0.1])
    alpha_bar_T = alpha_bars(schedule, 1000)
    velocity, z_MZ = gaussian_velocity(mean_Z, std_Z, alpha_bar_T), noise(draws, 3)
    if sampler == "ddim":
        z_MZ = samplers.ddim(velocity, z_MZ, alpha_bar_T, steps)
    else:
        z_MZ = samplers.ddpm(velocity, z_MZ, alpha_bar_T, steps, noise(steps, draws, 3, seed=1))
    torch.testing.assert_close(z_MZ.mean(0), mean_Z, atol=0.05, rtol=0)
    torch.testing.assert_close(z_MZ.std(0), std_Z, atol=0.005, rtol=0.035)
    off_diagonal = z_MZ.T.corrcoef() - torch.eye(3)
    assert off_diagonal.abs().max() < 0.05


def test_error_of_ddim_falls_with_order_1() -> None:
    """Twice the steps, half the error, against the exact map z -> mean + std z of the probability flow."""
    mean_Z, std_Z = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    alpha_bar_T = alpha_bars("cosine", 4096)
    z_MZ = noise(64, 1).double()
    exact = mean_Z + std_Z * z_MZ
    velocity = gaussian_velocity(mean_Z, std_Z, alpha_bar_T)
    errors = [(samplers.ddim(velocity, z_MZ, alpha_bar_T, n) - exact).abs().mean().item() for n in (16, 32, 64, 128)]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios), ratios


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("total", [2, 50, 1000])
def test_schedules_fall_from_nearly_all_to_nearly_nothing(schedule: str, total: int) -> None:
    alpha_bar_T = alpha_bars(schedule, total)
    assert alpha_bar_T.dtype == torch.float64 and len(alpha_bar_T) == total
    assert bool((alpha_bar_T.diff() < 0).all()) and bool(((alpha_bar_T > 0) & (alpha_bar_T < 1)).all())
    assert alpha_bar_T[-1] < 1e-3 and (total == 2 or alpha_bar_T[0] > 0.99)


def test_linear_schedule_is_the_papers_at_1000_steps() -> None:
    expected = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(alpha_bars("linear", 1000), expected)
