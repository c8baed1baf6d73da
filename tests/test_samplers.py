"""Samplers equal the reference library's on the same noise, and do what theory promises where the score is known."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library warns of its own dependencies as it loads
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        HeunDiscreteScheduler,
    )

from bend_ray.generator import samplers
from bend_ray.generator.samplers import Denoise, Path, schedule

T, M, Z = 200, 5, 7
DETERMINISTIC: dict[str, Callable[[Denoise, Tensor, Path], Tensor]] = {
    "ddim": samplers.ddim,
    "dpm++": samplers.dpm_solver,
    "heun": samplers.heun,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_velocity(z_MZ: Tensor, t: int) -> Tensor:
    """No model of anything, but it depends on both arguments."""
    return torch.tanh(z_MZ.flip(1) * 0.7 + t / T) + 0.1 * z_MZ


def path_of(name: str, steps: int, total: int = T) -> Path:
    return Path.of(*schedule(name, total), steps)


def denoise_by_velocity(name: str, steps: int) -> Denoise:
    (alpha_T, sigma_T), times = schedule(name, T), samplers.timesteps(T, steps)

    def denoise(z_MZ: Tensor, n: int) -> Tensor:
        t = times[n]
        return alpha_T[t] * z_MZ - sigma_T[t] * some_velocity(z_MZ, t)

    return denoise


def reference(kind: Any, name: str, **options: Any) -> Any:
    """The reference with our timesteps and noise schedule; that in float64, for it keeps its own in float32."""
    made = kind(T, prediction_type="v_prediction", timestep_spacing="trailing", **options)
    made.alphas_cumprod = schedule(name, T)[0].square()
    return made


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 8, 50, T])  # the reference wants them to divide T
def test_ddim_equals_the_reference(name: str, eta: float, steps: int) -> None:
    theirs = reference(DDIMScheduler, name, clip_sample=False)
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == samplers.timesteps(T, steps)
    z_MZ, noise_NMZ = noise(M, Z).double(), noise(steps, M, Z, seed=1).double()
    expected = z_MZ
    for i, t in enumerate(theirs.timesteps):
        own = {"variance_noise": noise_NMZ[i]} if eta > 0 else {}
        expected = theirs.step(some_velocity(expected, int(t)), int(t), expected, eta=eta, **own).prev_sample
    ours = samplers.ddim(denoise_by_velocity(name, steps), z_MZ, path_of(name, steps), eta, noise_NMZ)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddpm_equals_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = reference(DDPMScheduler, name, clip_sample=False, variance_type="fixed_small")
    z_MZ, noise_NMZ = noise(M, Z).double(), noise(T, M, Z, seed=1).double()
    given = iter(noise_NMZ)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(given))
    expected = z_MZ
    for t in range(T - 1, -1, -1):
        expected = theirs.step(some_velocity(expected, t), t, expected).prev_sample
    ours = samplers.ddpm(denoise_by_velocity(name, T), z_MZ, path_of(name, T), noise_NMZ)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def with_steps(kind: Any, steps: int, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, in the library
        made = kind(T, prediction_type="v_prediction", **options)
        made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_dpm_solver_equals_the_reference(name: str, steps: int) -> None:
    options: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    options |= {"timestep_spacing": "trailing", "lower_order_final": True}
    theirs = with_steps(DPMSolverMultistepScheduler, steps, **options)
    times, (alpha_T, sigma_T) = samplers.timesteps(T, steps), schedule(name, T)
    assert theirs.timesteps.tolist() == times
    theirs.sigmas = torch.tensor([*(float(sigma_T[t] / alpha_T[t]) for t in times), 0.0], dtype=torch.float64)
    z_MZ = noise(M, Z).double()
    expected = z_MZ
    for t in theirs.timesteps:
        expected = theirs.step(some_velocity(expected, int(t)), t, expected).prev_sample
    ours = samplers.dpm_solver(denoise_by_velocity(name, steps), z_MZ, path_of(name, steps))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_heun_equals_the_reference(steps: int) -> None:
    """It thinks in y = z / alpha; where it puts its timesteps is its own matter, so it is given ours. From the second
    point on, for ours goes the first step as DDIM does."""
    theirs = with_steps(HeunDiscreteScheduler, steps - 1)
    first, *times = samplers.timesteps(T, steps)
    alpha_T, sigma_T = schedule("linear", T)
    points = [float(sigma_T[t] / alpha_T[t]) for t in times]
    doubled = [points[0], *(point for point in points[1:] for _ in range(2)), 0.0]
    theirs.sigmas = torch.tensor(doubled, dtype=torch.float64)
    z_MZ, denoise = noise(M, Z).double(), denoise_by_velocity("linear", steps)
    clean_MZ = denoise(z_MZ, 0)
    expected = clean_MZ + points[0] * (z_MZ - alpha_T[first] * clean_MZ) / sigma_T[first]
    asked = [times[0], *(t for t in times[1:] for _ in range(2))]
    for t, label in zip(asked, theirs.timesteps, strict=True):
        expected = theirs.step(some_velocity(expected * alpha_T[t], t), label, expected).prev_sample
    ours = samplers.heun(denoise, z_MZ, path_of("linear", steps))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_flow_by_ddim_is_eulers_method_of_the_reference(steps: int) -> None:
    theirs: Any = FlowMatchEulerDiscreteScheduler()
    path = path_of("flow", steps)
    theirs.set_timesteps(sigmas=np.array(path.sigma[:-1]))
    z_MZ = noise(M, Z).double()
    expected = z_MZ
    for n, t in enumerate(theirs.timesteps):
        expected = theirs.step(some_velocity(expected, n), t, expected).prev_sample
    ours = samplers.ddim(lambda z_MZ, n: z_MZ - path.sigma[n] * some_velocity(z_MZ, n), z_MZ, path)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("total", "steps"), [(1000, 50), (1000, 1000), (50, 7), (10, 3), (2, 1), (999, 13)])
def test_timesteps_fall_evenly_from_the_last(total: int, steps: int) -> None:
    times = samplers.timesteps(total, steps)
    gaps = {a - b for a, b in itertools.pairwise(times)}
    assert times[0] == total - 1 and len(times) == len(set(times)) == steps and times[-1] >= 0
    assert not gaps or max(gaps) - min(gaps) <= 1


# --- where the score is known


def mixture_denoise(path: Path, mean_CZ: Tensor, std_Z: Tensor) -> Denoise:
    """The exact clean latent where latents are an even mixture of normals of the same deviations: each component's
    posterior mean, weighted by how likely it is."""

    def denoise(z_MZ: Tensor, n: int) -> Tensor:
        alpha, sigma = path.alpha[n], path.sigma[n]
        variance_Z = alpha**2 * std_Z**2 + sigma**2
        away_MCZ = z_MZ[:, None] - alpha * mean_CZ
        share_MC = (-0.5 * (away_MCZ.square() / variance_Z).sum(-1)).softmax(1)
        clean_MCZ = mean_CZ + alpha * std_Z**2 * away_MCZ / variance_Z
        return (share_MC[..., None] * clean_MCZ).sum(1)

    return denoise


def sampled(sampler: str, denoise: Denoise, path: Path, draws: int, size: int) -> Tensor:
    z_MZ = noise(draws, size).double()
    if sampler == "ddpm":
        return samplers.ddpm(denoise, z_MZ, path, noise(path.N, draws, size, seed=1).double())
    return DETERMINISTIC[sampler](denoise, z_MZ, path)


SCHEDULED = [(s, name) for s in ("ddim", "ddpm", "dpm++", "heun") for name in ("linear", "cosine")]
FLOWING = [(s, "flow") for s in DETERMINISTIC]


@pytest.mark.parametrize(("sampler", "name"), SCHEDULED + FLOWING)
def test_gaussian_with_known_score_is_recovered(sampler: str, name: str) -> None:
    """4,000 draws know a mean to 0.016 deviations, a deviation to 1.1 %: thrice that, and the error of the steps."""
    path = path_of(name, 500, 1000)
    mean_Z, std_Z = torch.tensor([0.0, 2.0, -1.0]).double(), torch.tensor([1.0, 0.5, 0.1]).double()
    z_MZ = sampled(sampler, mixture_denoise(path, mean_Z[None], std_Z), path, 4000, 3)
    torch.testing.assert_close(z_MZ.mean(0), mean_Z, atol=0.05, rtol=0)
    torch.testing.assert_close(z_MZ.std(0), std_Z, atol=0.005, rtol=0.035)
    off_diagonal = z_MZ.T.corrcoef() - torch.eye(3)
    assert off_diagonal.abs().max() < 0.05


@pytest.mark.parametrize("sampler", list(DETERMINISTIC))
@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("steps", [20, 50])
def test_few_steps_keep_the_spread(sampler: str, name: str, steps: int) -> None:
    """From where nothing of the latent is left, in steps as they are used: no solver may blow up in the first."""
    path = path_of(name, steps, 1000)
    z_MZ = sampled(sampler, mixture_denoise(path, torch.zeros(1, 2).double(), torch.ones(2).double()), path, 2000, 2)
    assert z_MZ.std().item() == pytest.approx(1, abs=0.15 if sampler == "ddim" else 0.08)


@pytest.mark.parametrize(("sampler", "name"), SCHEDULED + FLOWING)
def test_mixture_with_known_score_is_recovered(sampler: str, name: str) -> None:
    """Three narrow peaks: a third of the draws at each, of the right width, next to none between them."""
    path = path_of(name, 1000 if sampler == "ddpm" else 250, 1000)
    mean_CZ = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.5]]).double()
    z_MZ = sampled(sampler, mixture_denoise(path, mean_CZ, torch.tensor([0.1, 0.1]).double()), path, 3000, 2)
    distance_M, peak_M = torch.cdist(z_MZ, mean_CZ).min(1)
    assert distance_M.quantile(0.995) < 0.4
    assert distance_M.square().mean().sqrt().item() == pytest.approx(0.1 * 2**0.5, rel=0.1)
    for peak in range(3):  # 0.0086 is a standard deviation of a share of 3,000
        assert (peak_M == peak).double().mean().item() == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm++", 2), ("heun", 2)])
@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_error_falls_with_the_solvers_order(sampler: str, order: int, name: str) -> None:
    """Twice the steps, half the error or a quarter, against many steps of the same flow between two points of the path
    that both have noise: at its ends each solver takes a step of first order."""
    alpha_T, sigma_T = schedule(name, 8192)
    log_snr_T = (alpha_T / sigma_T).log()
    mean_CZ, std_Z = torch.tensor([[1.0], [-0.5]]).double(), torch.tensor([0.5]).double()

    def between(steps: int) -> Path:
        """Even in the logarithm of the signal-to-noise ratio, from -2.5 to 2."""
        wanted = torch.linspace(-2.5, 2.0, steps + 1, dtype=torch.float64)
        if name == "flow":  # alpha + sigma = 1
            alpha = wanted.sigmoid()
            return Path(tuple(alpha.tolist()), tuple((1 - alpha).tolist()))
        alpha = (2 * wanted).sigmoid().sqrt()
        return Path(tuple(alpha.tolist()), tuple((1 - alpha.square()).sqrt().tolist()))

    assert log_snr_T[0] > 2.0 and log_snr_T[-1] < -2.5  # a stretch that real paths have
    z_MZ = noise(64, 1).double()

    def end(steps: int, solver: str) -> Tensor:
        path = between(steps)
        return DETERMINISTIC[solver](mixture_denoise(path, mean_CZ, std_Z), z_MZ, path)

    exact = end(4096, "heun")
    errors = [(end(steps, sampler) - exact).abs().mean().item() for steps in (32, 64, 128, 256)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(found - order) < 0.25 for found in orders), orders


# --- schedules


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("total", [2, 50, 1000])
def test_schedules_go_from_nearly_all_to_nearly_nothing(name: str, total: int) -> None:
    alpha_T, sigma_T = schedule(name, total)
    assert alpha_T.dtype == sigma_T.dtype == torch.float64 and len(alpha_T) == len(sigma_T) == total
    assert bool((alpha_T.diff() < 0).all()) and bool((sigma_T.diff() > 0).all())
    assert bool(((alpha_T > 0) & (sigma_T > 0)).all())
    total_T = alpha_T + sigma_T if name == "flow" else alpha_T.square() + sigma_T.square()
    torch.testing.assert_close(total_T, torch.ones(total, dtype=torch.float64))
    if total > 2:
        assert alpha_T[-1] < 0.035 and sigma_T[0] < 0.1


def test_linear_schedule_is_the_papers_at_1000_steps() -> None:
    expected = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(schedule("linear", 1000)[0].square(), expected)
