"""The diffusion model: each objective learns where latents lie, and gives what is asked for."""

from typing import Any

import pytest
import torch

from bend_ray.config import Diffusion
from bend_ray.generator import diffusion as diffusions
from bend_ray.generator import samplers
from bend_ray.generator.denoiser import Condition, Denoiser
from bend_ray.generator.samplers import Path
from generator_helpers import MODEL, R, coordinates

OBJECTIVES: list[dict[str, Any]] = [
    {"prediction": "v"},
    {"prediction": "epsilon", "schedule": "linear"},
    {"prediction": "epsilon"},
    {"prediction": "x0", "min_snr": 5.0},
    {"prediction": "v", "min_snr": 5.0},
    {"objective": "flow"},
]


def test_denoiser_knows_the_time() -> None:
    model = Denoiser(4, 16, 2)
    torch.nn.init.normal_(model.leave.weight)  # it starts at zero
    z_BZ = torch.randn(1, 4).expand(3, -1)
    out = model(z_BZ, torch.tensor([0, 1, 900]))
    assert not torch.allclose(out[0], out[2], atol=1e-3) and not torch.equal(out[0], out[1])


def test_each_row_has_its_own_timestep() -> None:
    """Rows of a batch are as each of them alone; and the loss is the mean of theirs."""
    model = diffusions.fit(coordinates(), MODEL, 0)
    z_BZ, noise_BZ = torch.randn(3, R), torch.randn(3, R)
    t_B = torch.tensor([0, 20, 39])
    together = model.denoiser(z_BZ, t_B)
    alone = torch.cat([model.denoiser(z_BZ[i : i + 1], t_B[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    losses = [model.loss(z_BZ[i : i + 1], t_B[i : i + 1], noise_BZ[i : i + 1]).item() for i in range(3)]
    assert model.loss(z_BZ, t_B, noise_BZ).item() == pytest.approx(sum(losses) / 3, rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_perfect_network_has_no_loss_and_gives_the_clean_latent(
    objective: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it predicts: what `loss` wants, put into `denoise`, gives the latent back."""
    model = diffusions.Diffusion(3, MODEL.model_copy(update=objective))
    z_BZ, noise_BZ = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    for n, t in enumerate(samplers.timesteps(MODEL.steps, 10)):
        alpha, sigma = float(model.alpha_T[t]), float(model.sigma_T[t])
        perfect = {
            "v": alpha * noise_BZ - sigma * z_BZ,
            "epsilon": noise_BZ,
            "x0": z_BZ,
            "velocity": noise_BZ - z_BZ,
        }[model.prediction]
        monkeypatch.setattr(model.denoiser, "forward", lambda *_, perfect=perfect: perfect)
        assert model.loss(z_BZ, torch.full((5,), t), noise_BZ).item() < 1e-10
        clean_BZ = model.denoise(10)(alpha * z_BZ + sigma * noise_BZ, n)
        torch.testing.assert_close(clean_BZ, z_BZ, atol=1e-4 / alpha, rtol=0)


def test_min_snr_weighs_the_clean_latents_error_by_at_most_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is predicted, the same error of the clean latent costs the same: its SNR, and no more than gamma."""
    z_BZ, noise_BZ = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    for prediction in ("v", "epsilon", "x0"):
        model = diffusions.Diffusion(3, MODEL.model_copy(update={"prediction": prediction, "min_snr": 5.0}))
        for n, t in list(enumerate(samplers.timesteps(MODEL.steps, 10)))[1:]:
            alpha, sigma = float(model.alpha_T[t]), float(model.sigma_T[t])
            guess = {"v": 0.3 * z_BZ, "epsilon": 0.7 * noise_BZ, "x0": 0.5 * z_BZ}[prediction]
            monkeypatch.setattr(model.denoiser, "forward", lambda *_, guess=guess: guess)
            clean_BZ = model.denoise(10)(alpha * z_BZ + sigma * noise_BZ, n)
            expected = min((alpha / sigma) ** 2, 5.0) * (clean_BZ - z_BZ).square().mean().item()
            assert model.loss(z_BZ, torch.full((5,), t), noise_BZ).item() == pytest.approx(expected, rel=1e-3)


def test_it_gives_what_is_asked_for() -> None:
    """Latents of two chains lie apart, and better ones further up: asked for either, samples are there."""
    stream = torch.Generator().manual_seed(0)
    chain_S, loss_S = torch.tensor([0, 1]).repeat(40), torch.randn(80, generator=stream)
    z_SZ = torch.stack([2.0 * chain_S - 1, -loss_S], dim=1) + 0.1 * torch.randn(80, 2, generator=stream)
    settings = Diffusion(steps=100, hidden=64, iterations=800, ema=0.98, condition=("val_loss", "chain"))
    model = diffusions.fit(z_SZ, settings, 0, condition=Condition(loss_S, chain_S))
    path, noise_MZ = Path.of(model.alpha_T, model.sigma_T, 20), torch.randn(200, 2, generator=stream)

    def mean(loss: float, chain: int, guidance: float = 1.0) -> list[float]:
        asked = Condition(torch.full((200,), loss), torch.full((200,), chain))
        return samplers.ddim(model.denoise(20, asked, guidance), noise_MZ, path).mean(0).tolist()

    nothing = float("nan")
    assert mean(-1.5, 0) == pytest.approx([-1, 1.5], abs=0.35) and mean(1.0, 1) == pytest.approx([1, -1], abs=0.35)
    assert abs(mean(nothing, -1)[0]) < 0.35 and mean(-1.5, -1)[1] == pytest.approx(1.5, abs=0.4)
    assert mean(nothing, 1, guidance=2.0)[0] > mean(nothing, 1)[0] > mean(nothing, 1, guidance=0.0)[0] + 0.5


def test_what_is_returned_is_the_moving_average() -> None:
    """With decay 0 it is the last step's weights, with much decay it stays near the start."""
    z_SZ = coordinates()
    last, slow = (diffusions.fit(z_SZ, MODEL.model_copy(update={"ema": ema}), 0) for ema in (0.0, 0.99))
    first = diffusions.fit(z_SZ, MODEL.model_copy(update={"iterations": 1, "lr": 1e-12}), 0)

    def distance(a: diffusions.Diffusion, b: diffusions.Diffusion) -> float:
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return sum((p - q).square().sum().item() for p, q in pairs) ** 0.5

    assert 0 < distance(slow, first) < 0.5 * distance(last, first)


@pytest.mark.parametrize("asked", OBJECTIVES, ids=str)
def test_two_separate_clusters_are_learnt(asked: dict[str, Any]) -> None:
    """Samples lie at the two places where the latents are, about as many at each: no Gaussian does that."""
    stream = torch.Generator().manual_seed(0)
    side = torch.tensor([-1.0, 1.0]).repeat(32)[:, None]
    z_SZ = torch.cat([side, 0.2 * torch.randn(64, 1, generator=stream)], dim=1)
    settings = Diffusion(steps=100, hidden=64, blocks=2, iterations=600, batch_size=128, ema=0.98, **asked)
    model = diffusions.fit(z_SZ, settings, 0)
    path = Path.of(model.alpha_T, model.sigma_T, 50)
    found = samplers.ddim(model.denoise(50), torch.randn(400, 2, generator=stream), path)[:, 0]
    assert (found.abs() - 1).abs().quantile(0.9) < 0.3
    assert 0.3 < (found > 0).float().mean() < 0.7
