"""From snapshots to latents: exact coordinates, and an autoencoder no worse than principal components."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bend_ray.config import Autoencoder
from bend_ray.errors import TrainingError
from bend_ray.generator import autoencoder as autoencoders
from bend_ray.generator import diffusion as diffusions
from bend_ray.generator import span as spans
from bend_ray.generator.gram import Gram
from bend_ray.generator.span import FullSpace
from generator_helpers import CODER, MODEL, SAMPLE, SUBSET, R, S, coordinates, fitted, held, snapshots, span_of

# --- the span


def test_coordinates_are_exact_and_of_the_right_number() -> None:
    theta_SD = snapshots()
    span = span_of(theta_SD)
    assert span.R == R
    torch.testing.assert_close(span.decode(span.encode(theta_SD)), theta_SD, atol=1e-4, rtol=1e-4)
    assert span.residual(theta_SD).max() < 1e-3 * span.standardise(theta_SD).norm(dim=1).mean()


def test_span_is_that_of_a_plain_svd() -> None:
    """Against the obvious way, all of theta_SD at once: the same subspace, the same variances."""
    theta_SD = snapshots()
    span = span_of(theta_SD)
    x_SD = span.standardise(theta_SD).double()
    _, values, vectors_RD = torch.linalg.svd(x_SD, full_matrices=False)
    overlap_RR = span.standardise(span.decode(torch.eye(R))).double() @ vectors_RD[:R].T
    torch.testing.assert_close(overlap_RR.abs(), torch.eye(R, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(span.encode(theta_SD).double().norm(dim=0), values[:R], atol=1e-3, rtol=1e-4)


def test_basis_is_orthonormal_and_distances_are_kept() -> None:
    theta_SD = snapshots()
    span = span_of(theta_SD)
    basis_RD = span.standardise(span.decode(torch.eye(R)))
    torch.testing.assert_close(basis_RD @ basis_RD.T, torch.eye(R), atol=1e-4, rtol=0)
    c_SR, x_SD = span.encode(theta_SD), span.standardise(theta_SD)
    torch.testing.assert_close(torch.pdist(c_SR), torch.pdist(x_SD), atol=1e-3, rtol=1e-3)


def test_every_tensor_counts_alike_and_one_that_never_moves_stays() -> None:
    theta_SD = snapshots()
    span = span_of(theta_SD)
    small, large, still = span.standardise(theta_SD).split(SUBSET.sizes, dim=1)
    assert small.square().mean().item() == pytest.approx(1, abs=1e-4)
    assert large.square().mean().item() == pytest.approx(1, abs=1e-4)
    assert not still.any()
    elsewhere = span.decode(torch.randn(5, R, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(elsewhere[:, 50:], theta_SD[:5, 50:])


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_rank_is_the_smallest_that_explains_enough(share: float) -> None:
    theta_SD = snapshots()
    span = span_of(theta_SD, share)
    every = span_of(theta_SD).encode(theta_SD).square().sum(0)
    kept = (every.cumsum(0) / every.sum()).tolist()
    assert kept[span.R - 1] >= share and (span.R == 1 or kept[span.R - 2] < share)


def test_snapshots_that_do_not_differ_say_what_to_raise() -> None:
    with pytest.raises(TrainingError, match=r"all the same; raise collect\.lr"):
        span_of(snapshots()[:1].expand(S, -1))


def test_each_parameter_counts_alike_where_asked_for() -> None:
    theta_SD = snapshots()
    span = span_of(theta_SD, scaling="parameter")
    x_SD = span.standardise(theta_SD)
    torch.testing.assert_close(x_SD[:, :50].square().mean(0), torch.ones(50), atol=1e-3, rtol=0)
    torch.testing.assert_close(span.decode(span.encode(theta_SD)), theta_SD, atol=1e-3, rtol=1e-4)
    plain = span_of(theta_SD, scaling="none")
    torch.testing.assert_close(plain.standardise(theta_SD), theta_SD - theta_SD.mean(0), atol=1e-5, rtol=1e-5)


def test_a_parameter_that_never_moved_has_no_spread() -> None:
    """Whatever its value: the mean of equal float32 numbers need not be that number."""
    theta_SD = snapshots()
    theta_SD[:, 20:50:2] = 0.1 + torch.arange(15) / 7
    span = span_of(theta_SD, scaling="parameter")
    assert bool((span.scale_D[20:50:2] == 1).all()) and bool(
        (span.standardise(theta_SD)[:, 20:50:2].abs() < 1e-6).all()
    )


def test_one_pass_gives_withheld_snapshots_their_place_as_well() -> None:
    """Coordinates and lengths, without a second look at any parameter."""
    theta_SD, withheld = snapshots(), snapshots(1) + 0.1 * torch.randn(S, SUBSET.D)
    gram = Gram.of(held(torch.cat([theta_SD, withheld])), S)
    span, c_XR = gram.span(held(theta_SD), 1.0)
    torch.testing.assert_close(c_XR[:S], span.encode(theta_SD), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(c_XR[S:], span.encode(withheld), atol=1e-2, rtol=1e-3)
    length_X = span.standardise(torch.cat([theta_SD, withheld])).double().square().sum(1)
    torch.testing.assert_close(gram.length_X, length_X, atol=1e-2, rtol=1e-4)


def test_pieces_of_a_tensor_are_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor too large for one piece, and a piece too large for one product, change no more than rounding."""
    theta_SD = snapshots()
    whole = span_of(theta_SD)
    monkeypatch.setattr("bend_ray.snapshots.snapshots.PIECE", 7)
    monkeypatch.setattr(spans, "COLUMNS", 3)
    cut = span_of(theta_SD)
    torch.testing.assert_close(cut.scale_D, whole.scale_D, rtol=1e-5, atol=0)
    c_MR = torch.randn(5, R, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut.encode(theta_SD).square(), whole.encode(theta_SD).square(), atol=1e-2, rtol=1e-3)
    assert cut.decode(c_MR).shape == (5, SUBSET.D)


def test_noise_outside_the_span_is_in_units_of_each_parameters_deviation() -> None:
    theta_SD = snapshots()
    span, rows = span_of(theta_SD), 400
    noise = tuple(torch.Generator().manual_seed(i) for i in range(rows))
    found = span.decode(torch.zeros(rows, R), 0.5, noise) - span.decode(torch.zeros(rows, R))
    torch.testing.assert_close(found[:, :50].std(0) / theta_SD[:, :50].std(0, correction=0), torch.full((50,), 0.5),
                               atol=0.1, rtol=0)  # fmt: skip
    assert not found[:, 50:].any() and span.residual(span.decode(torch.zeros(rows, R)) + found).min() > 1


# --- the autoencoder


def unexplained(model: autoencoders.Autoencoder, c_SR: Tensor) -> float:
    return ((model.decode(model.encode(c_SR)) - c_SR).square().sum() / c_SR.square().sum()).item()


@pytest.mark.parametrize("latent", [1, 3, R])
def test_autoencoder_starts_as_principal_components(latent: int) -> None:
    c_SR = coordinates()
    model = autoencoders.fit(c_SR, Autoencoder(latent=latent, iterations=0), 0)
    lost = c_SR[:, latent:].square().sum() / c_SR.square().sum()
    assert unexplained(model, c_SR) == pytest.approx(lost.item(), abs=1e-5)


def test_training_improves_on_principal_components() -> None:
    c_SR = coordinates()
    before, after = (autoencoders.fit(c_SR, Autoencoder(latent=3, iterations=n, noise=0.0), 0) for n in (0, 400))
    assert unexplained(after, c_SR) < 0.5 * unexplained(before, c_SR)


@pytest.mark.parametrize("changes", [{"input_noise": 0.3}, {"kl": 0.1}, {"noise": 0.5}])
def test_noise_and_divergence_are_paid_for_in_variance(changes: dict[str, Any]) -> None:
    """They ask for a smoother map than the best one for the snapshots alone, and get it."""
    c_SR, settings = coordinates(), Autoencoder(latent=R, iterations=200, noise=0.0)
    plain, asked = (autoencoders.fit(c_SR, settings.model_copy(update=more), 0) for more in ({}, changes))
    assert unexplained(plain, c_SR) < 1e-3 < unexplained(asked, c_SR) < 0.5


def test_a_variational_one_spreads_its_latents_as_a_standard_normal() -> None:
    c_SR, settings = coordinates(), Autoencoder(latent=R, iterations=400, noise=0.0)
    loose, tight = (autoencoders.fit(c_SR, settings.model_copy(update={"kl": kl}), 0) for kl in (1e-4, 1.0))
    assert tight.std_Z.mean() < 0.2 < loose.std_Z.mean()  # all the weight on the prior: nothing passes


def test_a_convolutional_one_learns_in_full_space() -> None:
    wide = fitted(kind="conv", channels=8, latent=16, iterations=150)
    assert isinstance(wide.span, FullSpace) and wide.facts["rank"] == SUBSET.D
    assert wide.facts["unexplained_train"] < 0.5
    assert wide.sample(range(3), 0, SAMPLE).shape == (3, SUBSET.D)


def test_latents_are_normalised() -> None:
    c_SR = coordinates()
    z_SZ = autoencoders.fit(c_SR, CODER, 0).encode(c_SR)
    torch.testing.assert_close(z_SZ.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_SZ.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_latent_is_cut_to_the_rank() -> None:
    c_SR = coordinates()
    assert autoencoders.fit(c_SR, Autoencoder(latent=100, iterations=1), 0).encode(c_SR).shape == (S, R)


@pytest.mark.parametrize("part", ["autoencoder", "diffusion"])
def test_divergence_names_the_key(part: str) -> None:
    bad = coordinates() * torch.inf
    with pytest.raises(TrainingError, match=rf"lower {part}\.lr"):
        if part == "autoencoder":
            autoencoders.fit(bad, CODER, 0)
        else:
            diffusions.fit(bad, MODEL, 0)
