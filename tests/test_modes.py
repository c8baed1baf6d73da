"""Chains of several modes, aligned; members that are asked for and chosen: the same bits however work is spread."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bend_ray.config import Config
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import metrics, select
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import TrainingError
from bend_ray.generator.generator import Generator
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.progress import counted
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.stages import collect, pipeline
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.training.loop import validate
from bend_ray.workers.sample import FIRST, SPREADS
from conftest import changed

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def fresh(**sections: object) -> Config:
    modes = {"subset": "last_block", "init": "fresh", "epochs": 6}
    return changed(collect=modes, autoencoder={"latent": 8}, **sections)


@pytest.fixture(scope="module")
def modes(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots of tails that were initialised anew, aligned, and members chosen among candidates."""
    run = Folder(tmp_path_factory.mktemp("modes") / "run")
    shutil.copytree(reference / "base", run.path / "base")
    pipeline.execute(Run(fresh(sample={"keep": "greedy", "candidates": 16}), run))
    return run.path


def test_aligned_snapshots_are_the_functions_that_were_collected(modes: Path) -> None:
    """What was measured of each before its hidden units changed places still holds."""
    config, run = fresh(), Folder(modes)
    dataset = load_dataset(config.data, config.seed)
    snapshots = parquet.read(run / "snapshots", config.collect.chains)
    module = bases.load(run / "base", ModelSpec.of(config.classifier, dataset))
    for theta_D, fact in zip(snapshots.theta_SD, snapshots.facts, strict=True):
        snapshots.subset.put(module, theta_D)
        loss, accuracy = validate(module, dataset.val, dataset.preprocess)
        assert loss == pytest.approx(fact.val_loss, rel=1e-3) and accuracy == pytest.approx(fact.val_accuracy, abs=0.02)
    manifest = artifacts.load(run / "snapshots", "snapshots")
    assert manifest.facts["aligned"] == [32] and "block2.norm.bias" in manifest.facts["not_aligned"][0]
    assert not list((modes / "snapshots").glob("raw-*"))


def test_alignment_brings_chains_nearer(modes: Path, reference: Path, tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    shutil.copytree(reference / "base", run.path / "base")
    config = fresh()
    raw = config.model_copy(update={"collect": config.collect.model_copy(update={"align": False})})
    pipeline.execute(Run(raw, run), ("collect",))

    def spread(where: Path) -> float:
        """Of the convolution's weights, which no statistics enter."""
        snapshots = parquet.read(Folder(where) / "snapshots", config.collect.chains)
        return snapshots.subset.split(snapshots.theta_SD)["block3.conv.weight"].var(0).sum().item()

    assert spread(modes) < 0.9 * spread(run.path)
    assert "aligned" not in artifacts.load(run / "snapshots", "snapshots").facts


def test_the_accuracy_filter_drops_snapshots_and_the_rest_goes_on(
    modes: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A filter between the snapshots of a run: those below are dropped, chains without any among them."""
    config, run = fresh(), Folder(tmp_path / "run")
    shutil.copytree(reference / "base", run.path / "base")
    _, facts = parquet.read_facts(Folder(modes) / "snapshots", config.collect.chains)
    base = artifacts.load(run / "base", "base").facts["val_accuracy"]
    worst = min(fact.val_accuracy for fact in facts)
    least = base - worst - 1e-6  # all but the worst pass
    gated = config.model_copy(update={"collect": config.collect.model_copy(update={"accuracy_filter": least})})
    pipeline.execute(Run(gated, run))
    kept = [(fact.chain, fact.step) for fact in facts if fact.val_accuracy > worst]
    dropped = config.collect.chains * config.collect.snapshots_per_chain - len(kept)  # the fixture's filter, too
    assert len(kept) < len(facts)
    _, left = parquet.read_facts(run / "snapshots", config.collect.chains)
    assert [(fact.chain, fact.step) for fact in left] == kept
    assert artifacts.load(run / "snapshots", "snapshots").facts["dropped"] == dropped
    assert f"{counted(dropped, 'snapshots')} dropped by the accuracy filter" in capsys.readouterr().out
    report = json.loads((run.path / "report" / "metrics.json").read_text())
    assert report["dropped"] == dropped and report["originals"]["count"] == len(kept)
    assert (
        "Dropped for low validation accuracy (collect.accuracy_filter): "
        in (run.path / "report" / "README.md").read_text()
    )


def test_an_accuracy_filter_that_leaves_too_little_says_so(reference: Path, tmp_path: Path) -> None:
    config, run = fresh(), Folder(tmp_path / "run")
    shutil.copytree(reference / "base", run.path / "base")
    collect = config.collect.model_copy(
        update={"accuracy_filter": 0.0, "epochs": 0.1, "lr": 1e-6}
    )  # as good as untrained
    with pytest.raises(TrainingError, match=r"collect\.accuracy_filter: .* leaves snapshots of 0 chains"):
        pipeline.execute(Run(config.model_copy(update={"collect": collect}), run), ("collect",))


def test_an_interrupted_alignment_goes_on_to_the_same_bytes(
    modes: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains are there raw, and some of them aligned as well: those are kept."""
    run = Folder(tmp_path / "run")
    shutil.copytree(reference / "base", run.path / "base")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collect, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pipeline.execute(Run(fresh(), run), ("collect",))
    folder = run.path / "snapshots"
    assert len(list(folder.glob("raw-*"))) == len(list(folder.glob("chain-*"))) == 5
    kept = folder / parquet.shard_name(0)
    stamp = kept.stat().st_mtime_ns
    for chain in (1, 3):
        (folder / parquet.shard_name(chain)).unlink()
    pipeline.execute(Run(fresh(), run), ("collect",))
    whole = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    assert whole == {path.name: path.read_bytes() for path in (modes / "snapshots").glob("*.parquet")}
    assert kept.stat().st_mtime_ns == stamp and len(whole) == 5


def test_members_are_the_candidates_that_greedy_selection_takes(modes: Path) -> None:
    config, run = fresh(sample={"keep": "greedy", "candidates": 16}), Folder(modes)
    dataset = load_dataset(config.data, config.seed)
    facts = artifacts.load(run / "ensemble", "ensemble").facts
    generator, ensemble = Generator.load(run), Ensemble.load(run)
    candidate_CD = torch.cat([generator.sample(range(i, i + 2), config.seed, config.sample) for i in range(0, 16, 2)])
    logits_CBK = ensemble.trunk.logits(candidate_CD, dataset.preprocess(dataset.val.images))
    chosen = sorted(select.greedy(logits_CBK, dataset.val.labels, config.sample.members))
    assert torch.equal(ensemble.theta_MD, candidate_CD[chosen])
    assert (facts["keep"], facts["candidates"], facts["rejected"]) == ("greedy", 16, 16 - len(set(chosen)))
    report = json.loads((modes / "report" / "metrics.json").read_text())
    assert report["chosen"] == {"keep": "greedy", "candidates": 16, "rejected": facts["rejected"], "spread": 1.0}
    assert report["members"] == report["baselines"]["gaussian"]["members"] == config.sample.members
    assert "greedy selection" in (modes / "ensemble" / "README.md").read_text()
    assert "were chosen on validation rows (greedy)" in (modes / "report" / "README.md").read_text()


def test_a_matched_spread_is_where_members_disagree_as_snapshots_do(reference: Path, tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    for kind in ("base", "snapshots", "generator"):
        shutil.copytree(reference / kind, run.path / kind)
    config = changed(sample={"spread": "matched", "block": 7})
    pipeline.execute(Run(config, run), ("sample",))
    spread = artifacts.load(run / "ensemble", "ensemble").facts["spread"]
    dataset, ensemble, generator = load_dataset(config.data, config.seed), Ensemble.load(run), Generator.load(run)
    images, label_B = dataset.val.images, dataset.val.labels

    def disagreement(theta_MD: torch.Tensor) -> float:
        logits_MBK = ensemble.trunk.logits(theta_MD, dataset.preprocess(images))
        return metrics.diversity(logits_MBK.argmax(-1), label_B)["disagreement"]

    def members(spread: float, count: int = FIRST) -> torch.Tensor:
        return generator.sample(range(count), config.seed, config.sample.model_copy(update={"spread": spread}))

    seen, _ = parquet.read(run / "snapshots", config.collect.chains).divide(config.collect.seen_chains)
    wanted = disagreement(seen.theta_SD)
    assert spread in SPREADS and torch.equal(ensemble.theta_MD, members(spread, 7))
    place = SPREADS.index(spread)
    assert disagreement(members(spread)) >= wanted or spread == SPREADS[-1]
    assert place == 0 or disagreement(members(SPREADS[place - 1])) < wanted
