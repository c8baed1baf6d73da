"""The generator: exact coordinates, an autoencoder no worse than principal components, seeds that name members."""

import json
from collections.abc import Iterator
from pathlib import Path
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
from bend_ray.generator import span as spans
from bend_ray.generator.diffusion import Denoiser
from bend_ray.generator.generator import FILE, Generator
from bend_ray.generator.span import Blocks, Span
from bend_ray.weights.subset import Subset
from conftest import changed

SUBSET = Subset(("small.weight", "large.weight", "still.bias"), ((4, 5), (30,), (3,)), ("float32",) * 3)
S, R = 24, 6
CODER = Autoencoder(explained=1.0, latent=4, hidden=16, iterations=20)
MODEL = Diffusion(steps=40, hidden=16, blocks=2, iterations=30, batch_size=16)
SAMPLE = Sample(steps=10)


def snapshots(seed: int = 0) -> Tensor:
    """``theta_SD`` in a space of R dimensions; tensors of very different size, one that never moves."""
    stream = torch.Generator().manual_seed(seed)
    plane = torch.Generator().manual_seed(99)
    theta_SD = torch.randn(S, R, generator=stream) @ torch.randn(R, SUBSET.D, generator=plane)
    theta_SD[:, :20] *= 1e-3
    theta_SD[:, 50:] = torch.tensor([1.0, -2.0, 0.0])
    return theta_SD


def streamed(theta_SD: Tensor) -> Blocks:
    def blocks() -> Iterator[tuple[str, Tensor]]:
        yield from zip(SUBSET.names, theta_SD.split(SUBSET.sizes, dim=1), strict=True)

    return blocks


def fitted(seed: int = 0, **changes: Any) -> Generator:
    theta_SD = snapshots()
    coder = CODER.model_copy(update=changes)
    return Generator.fit(SUBSET, streamed(theta_SD), snapshots(1), coder, MODEL, seed)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return fitted()


# --- the span


def test_coordinates_are_exact_and_of_the_right_number() -> None:
    theta_SD = snapshots()
    span = spans.fit(streamed(theta_SD), explained=1.0)
    assert span.R == R
    torch.testing.assert_close(span.decode(span.encode(theta_SD)), theta_SD, atol=1e-4, rtol=1e-4)
    assert span.residual(theta_SD).max() < 1e-3 * span.standardise(theta_SD).norm(dim=1).mean()


def test_span_is_that_of_a_plain_svd() -> None:
    """Against the obvious way, all of theta_SD at once: the same subspace, the same variances."""
    theta_SD = snapshots()
    span = spans.fit(streamed(theta_SD), explained=1.0)
    x_SD = span.standardise(theta_SD).double()
    _, values, vectors_RD = torch.linalg.svd(x_SD, full_matrices=False)
    overlap_RR = span.basis_RD.double() @ vectors_RD[:R].T
    torch.testing.assert_close(overlap_RR.abs(), torch.eye(R, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(span.encode(theta_SD).double().norm(dim=0), values[:R], atol=1e-3, rtol=1e-4)


def test_basis_is_orthonormal_and_distances_are_kept() -> None:
    theta_SD = snapshots()
    span = spans.fit(streamed(theta_SD), explained=1.0)
    torch.testing.assert_close(span.basis_RD @ span.basis_RD.T, torch.eye(R), atol=1e-5, rtol=0)
    c_SR, x_SD = span.encode(theta_SD), span.standardise(theta_SD)
    torch.testing.assert_close(torch.pdist(c_SR), torch.pdist(x_SD), atol=1e-3, rtol=1e-3)


def test_every_tensor_counts_alike_and_one_that_never_moves_stays() -> None:
    theta_SD = snapshots()
    span = spans.fit(streamed(theta_SD), explained=1.0)
    small, large, still = span.standardise(theta_SD).split(SUBSET.sizes, dim=1)
    assert small.square().mean().item() == pytest.approx(1, abs=1e-4)
    assert large.square().mean().item() == pytest.approx(1, abs=1e-4)
    assert not still.any()
    elsewhere = span.decode(torch.randn(5, R, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(elsewhere[:, 50:], theta_SD[:5, 50:])


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_rank_is_the_smallest_that_explains_enough(share: float) -> None:
    theta_SD = snapshots()
    span = spans.fit(streamed(theta_SD), explained=share)
    every = spans.fit(streamed(theta_SD), explained=1.0).encode(theta_SD).square().sum(0)
    kept = (every.cumsum(0) / every.sum()).tolist()
    assert kept[span.R - 1] >= share and (span.R == 1 or kept[span.R - 2] < share)


def test_snapshots_that_do_not_differ_say_what_to_raise() -> None:
    with pytest.raises(TrainingError, match=r"all the same; raise collect\.lr"):
        spans.fit(streamed(snapshots()[:1].expand(S, -1)), explained=1.0)


# --- the autoencoder


def coordinates() -> Tensor:
    theta_SD = snapshots()
    return spans.fit(streamed(theta_SD), explained=1.0).encode(theta_SD)


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


def test_what_is_returned_is_the_moving_average() -> None:
    """With decay 0 it is the last step's weights, with much decay it stays near the start."""
    z_SZ = coordinates()
    last, slow = (diffusions.fit(z_SZ, MODEL.model_copy(update={"ema": ema}), 0) for ema in (0.0, 0.99))
    first = diffusions.fit(z_SZ, MODEL.model_copy(update={"iterations": 1, "lr": 1e-12}), 0)

    def distance(a: diffusions.Diffusion, b: diffusions.Diffusion) -> float:
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return sum((p - q).square().sum().item() for p, q in pairs) ** 0.5

    assert 0 < distance(slow, first) < 0.5 * distance(last, first)


def test_two_separate_clusters_are_learnt() -> None:
    """Samples lie at the two places where the latents are, about as many at each: no Gaussian does that."""
    stream = torch.Generator().manual_seed(0)
    side = torch.tensor([-1.0, 1.0]).repeat(32)[:, None]
    z_SZ = torch.cat([side, 0.2 * torch.randn(64, 1, generator=stream)], dim=1)
    settings = Diffusion(steps=100, hidden=64, blocks=2, iterations=600, batch_size=128, ema=0.98)
    model = diffusions.fit(z_SZ, settings, 0)
    from bend_ray.generator.samplers import ddim

    found = ddim(model.velocity, torch.randn(400, 2, generator=stream), model.alpha_bar_T, 50)[:, 0]
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


@pytest.mark.parametrize("changes", [{"sampler": "ddpm"}, {"eta": 0.5}])
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
    Generator.fit(
        SUBSET, streamed(snapshots()), snapshots(1), CODER, MODEL, 0, progress=lambda *done: seen.append(done)
    )
    assert [done for done, _ in seen] == list(range(1, 51)) and {total for _, total in seen} == {50}


# --- on disk


def saved(generator: Generator, where: Path) -> Folder:
    run = Folder(where)
    artifacts.write_tensors(run / "generator", FILE, generator.state())
    facts = generator.facts | {"subset": SUBSET.to_json()}
    artifacts.publish(run, "generator", changed(), {}, facts, [FILE], "")
    return run / "generator"


def test_loaded_equals_saved(generator: Generator, tmp_path: Path) -> None:
    loaded = Generator.load(saved(generator, tmp_path))
    assert torch.equal(loaded.sample(range(6), 3, SAMPLE), generator.sample(range(6), 3, SAMPLE))
    assert loaded.subset == SUBSET and isinstance(loaded.span, Span)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rank", 5), ("latent", 3), ("denoiser_blocks", 9), ("subset", {}), ("steps", "many"), ("autoencoder_hidden", -1)],
)
def test_facts_that_do_not_fit_the_tensors(generator: Generator, tmp_path: Path, key: str, value: Any) -> None:
    folder = saved(generator, tmp_path)
    path = folder.path / "config.json"
    manifest = json.loads(path.read_text())
    manifest["facts"][key] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="do not describe one generator"):
        Generator.load(folder)


def test_tensor_that_is_missing(generator: Generator, tmp_path: Path) -> None:
    folder = saved(generator, tmp_path)
    tensors = generator.state()
    del tensors["mean_D"]
    artifacts.write_tensors(folder, FILE, tensors)
    artifacts.publish(
        Folder(tmp_path), "generator", changed(), {}, artifacts.read_manifest(folder, "generator").facts, [FILE], ""
    )  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match="mean_D"):
        Generator.load(folder)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_members_of_the_cpu_up_to_rounding(generator: Generator) -> None:
    cpu, gpu = generator.sample(range(6), 0, SAMPLE), generator.to("cuda").sample(range(6), 0, SAMPLE)
    generator.to("cpu")
    torch.testing.assert_close(gpu, cpu, atol=1e-3, rtol=1e-3)
