"""The generator: exact coordinates, an autoencoder no worse than principal components, seeds that name members."""

import dataclasses
import json
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import Tensor

from bend_ray import artifacts
from bend_ray.config import Autoencoder, Diffusion, Sample
from bend_ray.errors import ArtifactError, TrainingError
from bend_ray.folders import Folder
from bend_ray.generator import autoencoder as autoencoders
from bend_ray.generator import diffusion as diffusions
from bend_ray.generator import samplers
from bend_ray.generator import span as spans
from bend_ray.generator.denoiser import Condition, Denoiser
from bend_ray.generator.generator import FILE, Generator
from bend_ray.generator.samplers import Path
from bend_ray.generator.span import FullSpace, Scaling, Span
from bend_ray.tensors import write_tensors
from bend_ray.weights import parts
from bend_ray.weights.snapshots import Fact, Held
from bend_ray.weights.subset import Subset
from conftest import changed

SUBSET = Subset(("small.weight", "large.weight", "still.bias"), ((4, 5), (30,), (3,)), ("float32",) * 3)
S, R = 24, 6
CODER = Autoencoder(explained=1.0, latent=4, hidden=16, iterations=20)
MODEL = Diffusion(steps=40, hidden=16, blocks=2, iterations=30, batch_size=16)
SAMPLE = Sample(steps=10)
OBJECTIVES: list[dict[str, Any]] = [
    {"prediction": "v"},
    {"prediction": "epsilon", "schedule": "linear"},
    {"prediction": "epsilon"},
    {"prediction": "x0", "min_snr": 5.0},
    {"prediction": "v", "min_snr": 5.0},
    {"objective": "flow"},
]


def snapshots(seed: int = 0) -> Tensor:
    """``theta_SD`` in a space of R dimensions; tensors of very different size, one that never moves."""
    stream = torch.Generator().manual_seed(seed)
    plane = torch.Generator().manual_seed(99)
    theta_SD = torch.randn(S, R, generator=stream) @ torch.randn(R, SUBSET.D, generator=plane)
    theta_SD[:, :20] *= 1e-3
    theta_SD[:, 50:] = torch.tensor([1.0, -2.0, 0.0])
    return theta_SD


def held(theta_SD: Tensor) -> Held:
    return Held(SUBSET, theta_SD)


def span_of(theta_SD: Tensor, explained: float = 1.0, scaling: Scaling = "tensor") -> Span:
    return spans.gram(held(theta_SD), len(theta_SD), scaling).span(held(theta_SD), explained)[0]


def facts(rows: int = 2 * S) -> list[Fact]:
    """Two snapshots a chain, the later chains the better."""
    return [Fact(chain=i // 2, step=i % 2, seed=0, val_loss=1 / (1 + i), val_accuracy=0.5) for i in range(rows)]


def fitted(seed: int = 0, model: Diffusion = MODEL, **changes: Any) -> Generator:
    """On 24 snapshots, with as many withheld."""
    both = held(torch.cat([snapshots(), snapshots(1)]))
    return Generator.fit(SUBSET, both, facts(), S, CODER.model_copy(update=changes), model, seed)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return fitted()


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
    gram = spans.gram(held(torch.cat([theta_SD, withheld])), S)
    span, c_XR = gram.span(held(theta_SD), 1.0)
    torch.testing.assert_close(c_XR[:S], span.encode(theta_SD), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(c_XR[S:], span.encode(withheld), atol=1e-2, rtol=1e-3)
    length_X = span.standardise(torch.cat([theta_SD, withheld])).double().square().sum(1)
    torch.testing.assert_close(gram.length_X, length_X, atol=1e-2, rtol=1e-4)


def test_pieces_of_a_tensor_are_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor too large for one piece, and a piece too large for one product, change no more than rounding."""
    theta_SD = snapshots()
    whole = span_of(theta_SD)
    monkeypatch.setattr("bend_ray.weights.snapshots.PIECE", 7)
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


def coordinates() -> Tensor:
    theta_SD = snapshots()
    return span_of(theta_SD).encode(theta_SD)


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


# --- the diffusion model


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
def test_a_perfect_network_has_no_loss_and_gives_the_clean_latent(objective: dict[str, Any]) -> None:
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
        model.denoiser.forward = lambda *_, perfect=perfect: perfect  # type: ignore[method-assign]
        assert model.loss(z_BZ, torch.full((5,), t), noise_BZ).item() < 1e-10
        clean_BZ = model.denoise(10)(alpha * z_BZ + sigma * noise_BZ, n)
        torch.testing.assert_close(clean_BZ, z_BZ, atol=1e-4 / alpha, rtol=0)


def test_min_snr_weighs_the_clean_latents_error_by_at_most_gamma() -> None:
    """Whatever is predicted, the same error of the clean latent costs the same: its SNR, and no more than gamma."""
    z_BZ, noise_BZ = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    for prediction in ("v", "epsilon", "x0"):
        model = diffusions.Diffusion(3, MODEL.model_copy(update={"prediction": prediction, "min_snr": 5.0}))
        for n, t in list(enumerate(samplers.timesteps(MODEL.steps, 10)))[1:]:
            alpha, sigma = float(model.alpha_T[t]), float(model.sigma_T[t])
            guess = {"v": 0.3 * z_BZ, "epsilon": 0.7 * noise_BZ, "x0": 0.5 * z_BZ}[prediction]
            model.denoiser.forward = lambda *_, guess=guess: guess  # type: ignore[method-assign]
            clean_BZ = model.denoise(10)(alpha * z_BZ + sigma * noise_BZ, n)
            expected = min((alpha / sigma) ** 2, 5.0) * (clean_BZ - z_BZ).square().mean().item()
            assert model.loss(z_BZ, torch.full((5,), t), noise_BZ).item() == pytest.approx(expected, rel=1e-3)


def test_it_gives_what_is_asked_for() -> None:
    """Latents of two chains lie apart, and better ones further up: asked for either, samples are there."""
    stream = torch.Generator().manual_seed(0)
    chain_S, loss_S = torch.tensor([0, 1]).repeat(40), torch.randn(80, generator=stream)
    z_SZ = torch.stack([2.0 * chain_S - 1, -loss_S], dim=1) + 0.1 * torch.randn(80, 2, generator=stream)
    settings = Diffusion(steps=100, hidden=64, iterations=800, ema=0.98, condition=("val_loss", "chain"))
    model = diffusions.fit(z_SZ, settings, 0, asked=Condition(loss_S, chain_S))
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


# --- the whole


def test_member_follows_from_seed_and_id_alone(generator: Generator) -> None:
    together = generator.sample(range(8), 0, SAMPLE)
    assert torch.equal(together, generator.sample(range(8), 0, SAMPLE))
    torch.rand(3)  # what the global generator did is no matter
    later = generator.sample(range(4, 12), 0, SAMPLE)
    torch.testing.assert_close(together[4:], later[:4], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, generator.sample(range(8), 1, SAMPLE))
    assert len({tuple(row.tolist()) for row in together}) == 8


@pytest.mark.parametrize("sampler", ["dpm++", "heun"])
def test_other_solvers_end_near_by(generator: Generator, sampler: str) -> None:
    many = SAMPLE.model_copy(update={"steps": 40})
    a, b = (generator.sample(range(6), 0, many.model_copy(update={"sampler": s})) for s in ("ddim", sampler))
    apart = (generator.span.standardise(a) - generator.span.standardise(b)).norm(dim=1).mean()
    assert apart < 0.3 * generator.span.standardise(a).norm(dim=1).mean()


def test_spread_and_temperature_pull_members_to_the_mean(generator: Generator) -> None:
    def length(**changes: float) -> float:
        theta_MD = generator.sample(range(32), 0, SAMPLE.model_copy(update=changes))
        return generator.span.standardise(theta_MD).norm(dim=1).mean().item()

    assert length(spread=0.5) == pytest.approx(0.5 * length(), rel=1e-3) and length(spread=0.0) < 1e-3
    assert length(temperature=0.5) < 0.9 * length()
    assert length(outside=1.0) > 1.2 * length()


def test_what_is_asked_of_members_reaches_the_model() -> None:
    model = MODEL.model_copy(update={"condition": ("val_loss", "chain")})
    generator = fitted(model=model)
    plain, better = (
        generator.sample(range(6), 0, SAMPLE.model_copy(update={"wanted_loss": loss})) for loss in (None, -2.0)
    )
    assert generator.facts["chains"] == 12 and not torch.allclose(plain, better, atol=1e-4)


@pytest.mark.parametrize("changes", [{"sampler": "ddpm"}, {"eta": 0.5}, {"outside": 0.3}])
def test_noisy_samplers_are_named_by_id_too(generator: Generator, changes: dict[str, Any]) -> None:
    sample = SAMPLE.model_copy(update=changes)
    together, later = generator.sample(range(6), 0, sample), generator.sample(range(3, 9), 0, sample)
    torch.testing.assert_close(together[3:], later[:3], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, generator.sample(range(6), 0, SAMPLE), atol=1e-3)


def test_members_lie_in_the_span(generator: Generator) -> None:
    theta_MD = generator.sample(range(5), 0, SAMPLE)
    assert theta_MD.shape == (5, SUBSET.D) and theta_MD.dtype == torch.float32
    assert generator.span.residual(theta_MD).max() < 1e-3


def test_same_seed_same_bits_and_facts() -> None:
    first, again, other = fitted(), fitted(), fitted(seed=1)
    assert first.facts == again.facts and first.facts["rank"] == R and first.facts["latent"] == 4
    assert all(torch.equal(first.state()[name], again.state()[name]) for name in first.state())
    assert any(not torch.equal(first.state()[name], other.state()[name]) for name in first.state())


def test_unexplained_of_held_out_is_of_what_it_never_saw() -> None:
    """The withheld snapshots lie in the same R dimensions: R latents lose nothing of them, one nearly all."""
    whole, narrow = fitted(latent=R, iterations=0), fitted(latent=1, iterations=0)
    assert whole.facts["unexplained_held_out"] < 1e-6 and whole.facts["unexplained_train"] < 1e-6
    assert narrow.facts["unexplained_held_out"] > 0.5


def test_progress_counts_both_trainings() -> None:
    seen: list[tuple[int, int]] = []
    both = held(torch.cat([snapshots(), snapshots(1)]))
    Generator.fit(SUBSET, both, facts(), S, CODER, MODEL, 0, progress=lambda *done: seen.append(done))
    assert [done for done, _ in seen] == list(range(1, 51)) and {total for _, total in seen} == {50}


# --- on disk


def saved(generator: Generator, where: FilePath) -> Folder:
    """The run that holds the generator and the snapshots it was fitted on."""
    run = Folder(where)
    known = facts()
    for chain, theta_SD in enumerate(snapshots().split(2)):
        parts.write_part(run / "snapshots", chain, SUBSET, theta_SD, known[2 * chain : 2 * chain + 2], "recipe")
    write_tensors(run / "generator", FILE, generator.state())
    described = generator.facts | {"subset": SUBSET.to_json()}
    artifacts.publish(run, "generator", changed(), {}, described, [FILE], "")
    return run


@pytest.mark.parametrize("kind", ["span", "conv"])
def test_loaded_equals_saved(kind: str, tmp_path: FilePath) -> None:
    generator = fitted(kind=kind, channels=4)
    loaded = Generator.load(saved(generator, tmp_path))
    assert torch.equal(loaded.sample(range(6), 3, SAMPLE), generator.sample(range(6), 3, SAMPLE))
    assert loaded.subset == SUBSET and isinstance(loaded.span, Span if kind == "span" else FullSpace)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 5),
        ("snapshots", 23),
        ("subset", {}),
        ("chains", "many"),
        ("chains", 0),
        ("parts", 3),
        ("autoencoder", {"latent": 3}),
        ("diffusion", {"blocks": 9}),
        ("diffusion", {"unheard": 1}),
    ],
)
def test_facts_that_do_not_fit_the_tensors(generator: Generator, tmp_path: FilePath, key: str, value: Any) -> None:
    run = saved(generator, tmp_path)
    path = run.path / "generator" / "config.json"
    manifest = json.loads(path.read_text())
    manifest["facts"][key] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="do not describe one generator"):
        Generator.load(run)


def test_tensor_that_is_missing(generator: Generator, tmp_path: FilePath) -> None:
    run = saved(generator, tmp_path)
    folder, tensors = run / "generator", generator.state()
    del tensors["mean_D"]
    write_tensors(folder, FILE, tensors)
    artifacts.publish(
        Folder(tmp_path), "generator", changed(), {}, artifacts.read_manifest(folder, "generator").facts, [FILE], ""
    )  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match="mean_D"):
        Generator.load(run)


def test_snapshots_that_it_is_not_of(generator: Generator, tmp_path: FilePath) -> None:
    run = saved(generator, tmp_path)
    parts.write_part(run / "snapshots", 0, SUBSET, snapshots()[:1], facts()[:1], "recipe")
    with pytest.raises(ArtifactError, match="was not fitted on the snapshots in"):
        Generator.load(run)


def test_chains_that_the_gate_left_empty_are_read_over(generator: Generator, tmp_path: FilePath) -> None:
    """The first, one between, and the last of those seen: the same generator, from the same snapshots."""
    run, known = Folder(tmp_path), facts()
    files = {1 + chain + (chain > 4): slice(2 * chain, 2 * chain + 2) for chain in range(S // 2)}
    moved = [dataclasses.replace(fact, chain=1 + fact.chain + (fact.chain > 4)) for fact in known]
    both = held(torch.cat([snapshots(), snapshots(1)]))
    gated = Generator.fit(SUBSET, both, moved, S, CODER, MODEL, 0)
    for chain in range(S // 2 + 3):
        rows = files.get(chain, slice(0))
        parts.write_part(run / "snapshots", chain, SUBSET, snapshots()[rows], moved[rows], "recipe")
    write_tensors(run / "generator", FILE, gated.state())
    described = gated.facts | {"subset": SUBSET.to_json()}
    artifacts.publish(run, "generator", changed(), {}, described, [FILE], "")
    loaded = Generator.load(run)
    assert torch.equal(loaded.sample(range(6), 3, SAMPLE), generator.sample(range(6), 3, SAMPLE))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_members_of_the_cpu_up_to_rounding(generator: Generator) -> None:
    cpu, gpu = generator.sample(range(6), 0, SAMPLE), generator.to("cuda").sample(range(6), 0, SAMPLE)
    generator.to("cpu")
    torch.testing.assert_close(gpu, cpu, atol=1e-3, rtol=1e-3)
