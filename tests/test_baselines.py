"""Baselines are what they are called: exact where they can be, else of the right mean and covariance."""

import pytest
import torch
from torch import Tensor

from bend_ray.config import BASELINES
from bend_ray.generator.baselines import Sampler, baselines
from bend_ray.generator.generator import Generator
from conftest import changed
from generator_helpers import SUBSET, fitted, snapshots

THETA = snapshots()
BASE = torch.arange(SUBSET.D, dtype=torch.float32)
EVALUATE = changed(evaluate={"noise": 0.1, "averaged": 4}).evaluate
MANY = 3000


@pytest.fixture(scope="module")
def generator() -> Generator:
    return fitted()


@pytest.fixture(scope="module")
def made(generator: Generator) -> dict[str, Sampler]:
    return baselines(BASELINES, THETA, BASE, generator, EVALUATE)


def covariance(theta_MD: Tensor) -> Tensor:
    """Of the tensor of large values alone: 30 x 30."""
    return theta_MD[:, 20:50].T.cov(correction=0)


@pytest.mark.parametrize("name", BASELINES)
def test_a_member_follows_from_seed_and_id_alone(made: dict[str, Sampler], name: str) -> None:
    few, more = made[name](range(3), 0), made[name](range(1, 5), 0)
    torch.testing.assert_close(few[1:], more[:2], atol=1e-5, rtol=1e-5)
    assert few.shape == (3, SUBSET.D) and bool(torch.isfinite(few).all())
    if name not in ("base_model", "weight_average"):
        assert not torch.allclose(few, made[name](range(3), 1)) and not torch.allclose(few[0], few[1])


def test_single_models(made: dict[str, Sampler]) -> None:
    assert torch.equal(made["base_model"]([0], 0)[0], BASE)
    torch.testing.assert_close(made["weight_average"]([0], 0)[0], THETA.mean(0))


def test_random_originals_come_once_each_before_any_twice(made: dict[str, Sampler]) -> None:
    S = len(THETA)
    drawn = made["random_originals"](range(2 * S), 0)
    rows = [int((theta_D == THETA).all(1).nonzero()[0, 0]) for theta_D in drawn]
    assert sorted(rows[:S]) == list(range(S)) and rows[S:] == rows[:S] and rows[:S] != list(range(S))


def test_noise_is_in_units_of_each_tensors_spread(made: dict[str, Sampler], generator: Generator) -> None:
    ids = range(200)
    noise_MD = (made["noised_originals"](ids, 0) - made["random_originals"](ids, 0)) / generator.span.scale_D
    for block in noise_MD[:, :50].split(SUBSET.sizes[:2], dim=1):
        assert block.std().item() == pytest.approx(0.1, rel=0.05) and block.mean().abs() < 0.01


def test_averages_are_of_as_many_different_snapshots(made: dict[str, Sampler]) -> None:
    theta_MD = made["averaged_originals"](range(MANY), 0)
    S, k = len(THETA), EVALUATE.averaged
    # Variance of a mean of k of S drawn without replacement.
    share = (S - k) / (S - 1) / k
    torch.testing.assert_close(
        covariance(theta_MD).diag().mean(), share * covariance(THETA).diag().mean(), rtol=0.1, atol=0
    )


def test_gaussian_has_the_variances_and_no_correlation(made: dict[str, Sampler]) -> None:
    found, wanted = covariance(made["gaussian"](range(MANY), 0)), covariance(THETA)
    torch.testing.assert_close(found.diag(), wanted.diag(), rtol=0.15, atol=0)
    scale = wanted.diag().sqrt()
    assert (found / scale / scale[:, None] - torch.eye(30)).abs().max() < 0.15


def test_swag_is_half_variance_half_covariance(made: dict[str, Sampler]) -> None:
    S = len(THETA)
    found, wanted = covariance(made["swag"](range(MANY), 0)), covariance(THETA)
    expected = 0.5 * wanted.diag().diag() + 0.5 * wanted * S / (S - 1)
    assert (found - expected).norm() < 0.12 * expected.norm()


def test_autoencoder_alone_has_the_latents_covariance(made: dict[str, Sampler], generator: Generator) -> None:
    z_SZ = generator.encode(THETA)
    z_MZ = generator.encode(made["autoencoder_only"](range(MANY), 0))
    # Through decoder and encoder again, so only roughly.
    torch.testing.assert_close(z_MZ.mean(0), z_SZ.mean(0), atol=0.15, rtol=0)
    assert (z_MZ.T.cov() - z_SZ.T.cov()).norm() < 0.25 * z_SZ.T.cov().norm()


def test_only_what_is_asked_for(generator: Generator) -> None:
    assert list(baselines(("swag",), THETA, BASE, generator, EVALUATE)) == ["swag"]
