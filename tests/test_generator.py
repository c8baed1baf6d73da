"""The generator: seeds that name members, and the same members from disk."""

import dataclasses
import json
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from bend_ray.errors import ArtifactError
from bend_ray.generator.generator import FILE, Generator
from bend_ray.generator.span import FullSpace, Span
from bend_ray.snapshots import parquet
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import write_tensors
from conftest import changed
from generator_helpers import MODEL, SAMPLE, SUBSET, R, S, facts, fitted, held, run_with, snapshots


@pytest.fixture(scope="module")
def generator() -> Generator:
    return fitted()


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
    assert isinstance(generator.span, Span) and generator.span.residual(theta_MD).max() < 1e-3


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
    Generator.fit(SUBSET, both, facts(), S, run_with().but(progress=lambda *done: seen.append(done)))
    assert [done for done, _ in seen] == list(range(1, 51)) and {total for _, total in seen} == {50}


# --- on disk


def saved(generator: Generator, where: FilePath) -> Folder:
    """The run that holds the generator and the snapshots it was fitted on."""
    run = Folder(where)
    known = facts()
    for chain, theta_SD in enumerate(snapshots().split(2)):
        parquet.write_shard(run / "snapshots", chain, SUBSET, theta_SD, known[2 * chain : 2 * chain + 2], "recipe")
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
    manifest = artifacts.described(folder, "generator")
    artifacts.publish(Folder(tmp_path), "generator", changed(), {}, manifest.facts, [FILE], "")
    with pytest.raises(ArtifactError, match="mean_D"):
        Generator.load(run)


def test_snapshots_that_it_is_not_of(generator: Generator, tmp_path: FilePath) -> None:
    run = saved(generator, tmp_path)
    parquet.write_shard(run / "snapshots", 0, SUBSET, snapshots()[:1], facts()[:1], "recipe")
    with pytest.raises(ArtifactError, match="was not fitted on the snapshots in"):
        Generator.load(run)


def test_chains_that_the_accuracy_filter_left_empty_are_read_over(generator: Generator, tmp_path: FilePath) -> None:
    """The first, one between, and the last of those seen: the same generator, from the same snapshots."""
    run, known = Folder(tmp_path), facts()
    files = {1 + chain + (chain > 4): slice(2 * chain, 2 * chain + 2) for chain in range(S // 2)}
    moved = [dataclasses.replace(fact, chain=1 + fact.chain + (fact.chain > 4)) for fact in known]
    both = held(torch.cat([snapshots(), snapshots(1)]))
    gated = Generator.fit(SUBSET, both, moved, S, run_with())
    for chain in range(S // 2 + 3):
        rows = files.get(chain, slice(0))
        parquet.write_shard(run / "snapshots", chain, SUBSET, snapshots()[rows], moved[rows], "recipe")
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
