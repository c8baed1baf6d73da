"""The whole pipeline on a real cluster: the same bits however work is spread, nothing redone, errors that are ours."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from bend_ray import cli
from bend_ray.cluster import connection
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, ResourceError, TrainingError
from bend_ray.models import base as bases
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.stages import pipeline
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors
from bend_ray.workers import evaluate, sample
from conftest import TWO, bits, changed
from pipeline_helpers import copy, stamps

pytestmark = pytest.mark.ray


def test_two_workers_and_three_actors_give_the_bits_of_one(reference: Path, tmp_path: Path) -> None:
    spread = changed(collect={"workers": 2}, sample={"actors": 3, "cpus_per_actor": 0.5})
    pipeline.execute(Run(spread, Folder(tmp_path)))
    assert bits(tmp_path) == bits(reference)


def test_more_members_keep_the_first_ones(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "ensemble", "report")
    pipeline.execute(Run(changed(sample={"members": 9}), run), ("sample",))
    few, many = (Ensemble.load(where).theta_MD for where in (reference, run))
    assert torch.equal(many[:7], few) and len(many) == 9


def test_same_command_again_touches_nothing(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path)
    before = stamps(run.path)
    pipeline.execute(Run(changed(), run))
    assert stamps(run.path) == before


def test_a_finished_run_needs_no_cluster(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(reference, tmp_path)

    def connect(verbose: bool) -> None:
        raise AssertionError("there is nothing to do")

    monkeypatch.setattr(connection, "connect", connect)
    pipeline.execute(Run(changed(), run))
    assert "aBEND" in capsys.readouterr().out
    (run.path / "report" / "config.json").unlink()
    with pytest.raises(AssertionError):
        pipeline.execute(Run(changed(), run))


def test_finished_chains_and_blocks_are_kept(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(reference, tmp_path, "report")
    gone = ["snapshots/_config.json", "snapshots/chain-00003.parquet", "generator/config.json", "ensemble/config.json"]
    for name in gone:
        (run.path / name).unlink()
    before = stamps(run.path)
    pipeline.execute(Run(changed(), run))
    after = stamps(run.path)
    files = [name for name in before if name.endswith(".parquet") or "/base/" in name]
    assert len(files) == 4 + 3 and all(after[name] == before[name] for name in files)
    assert "the base is there already, and 4 of 5 chains" in capsys.readouterr().out
    assert bits(run.path) == bits(reference)


def test_finished_blocks_are_kept(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their files go when the ensemble is whole; the note of the seconds each took is written anew if it is sampled."""
    run, config = copy(reference, tmp_path, "ensemble", "report"), changed()
    for left in (run.path / "timings").glob("block-0*"):
        left.unlink()
    recipe = artifacts.recipe("ensemble", config, artifacts.inputs_of(run, "ensemble", config))
    sampler = sample.Sampler(Run(config, run), recipe)
    for block in (0, 2):
        sampler.sample(block)
    before = stamps(run.path / "timings")
    pipeline.execute(Run(config, run), ("sample",))
    after = stamps(run.path / "timings")
    assert "2 of 4 blocks are there already" in capsys.readouterr().out
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    assert torch.equal(Ensemble.load(run).theta_MD, Ensemble.load(reference).theta_MD)
    assert not list((run.path / "ensemble").glob("block-*"))


def test_members_with_reestimated_batch_norm_have_statistics_of_their_own(reference: Path, tmp_path: Path) -> None:
    run, config = copy(reference, tmp_path, "ensemble", "report"), changed(sample={"reestimate_batch_norm": 2})
    pipeline.execute(Run(config, run), ("sample",))
    plain, own = Ensemble.load(reference), Ensemble.load(run)
    D = plain.subset.D
    assert own.subset.names[: len(plain.subset.names)] == plain.subset.names
    added = [name.split(".")[0] for name in own.subset.names[len(plain.subset.names) :]]
    assert added == ["block2", "block2", "block3", "block3"]
    assert torch.equal(own.theta_MD[:, :D], plain.theta_MD)
    assert all(own.theta_MD[:, D:].std(0) > 0)
    alone = copy(run.path, tmp_path / "alone", "ensemble")
    sample.Sampler(Run(config, alone), "recipe").sample(1)
    again = read_tensors(alone / "ensemble", "block-00001.safetensors")[0]["theta_MD"]
    assert torch.equal(again, own.theta_MD[2:4])  # in another process, another block first
    with pytest.raises(ArtifactError, match=r"sample\.reestimate_batch_norm: 2 there, 0 here"):
        pipeline.execute(Run(changed(), run))
    scored, before = (
        evaluate.Evaluator(Run(one, where)) for one, where in ((config, run), (changed(), Folder(reference)))
    )
    assert torch.equal(scored._theta("generated")[0], own.theta_MD)
    trained_V = own.subset.take(bases.load(run / "base", own.spec))[D:]
    for name in ("base_model", "random_originals", "originals", "gaussian", "weight_average"):
        theta_MD, _ = scored._theta(name)
        assert torch.equal(theta_MD[:, :D], before._theta(name)[0])
        as_trained = torch.equal(theta_MD[:, D:], trained_V.expand(len(theta_MD), -1))
        assert as_trained == (name in evaluate.AS_TRAINED)  # what was made up from snapshots is counted anew


@pytest.mark.parametrize(
    "damaged", ["base/model.safetensors", "snapshots/chain-00002.parquet", "generator/config.json"]
)
def test_altered_artifact_stops_the_run_and_nothing_is_overwritten(
    reference: Path, tmp_path: Path, damaged: str
) -> None:
    run = copy(reference, tmp_path, "report")
    path = run.path / damaged
    path.write_bytes(path.read_bytes()[:-9])
    before = stamps(run.path)
    with pytest.raises(ArtifactError, match=Path(damaged).name.replace(".", r"\.")):
        pipeline.execute(Run(changed(), run))
    assert stamps(run.path) == before


def test_run_of_another_configuration_is_refused_and_kept(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path)
    before = stamps(run.path)
    with pytest.raises(ArtifactError, match=r"collect\.lr: 0\.003 there, 0\.5 here"):
        pipeline.execute(Run(changed(collect={"lr": 0.5}), run))
    assert stamps(run.path) == before


def test_chains_begun_by_another_configuration_are_refused_and_kept(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "generator", "ensemble", "report")
    for name in ("_config.json", "chain-00004.parquet"):
        (run.path / "snapshots" / name).unlink()
    before = stamps(run.path)
    with pytest.raises(ArtifactError, match=r"snapshots: .* \(collect\.lr: 0\.003 there, 0\.5 here\)"):
        pipeline.execute(Run(changed(collect={"lr": 0.5}), run))
    assert stamps(run.path) == before


def test_gpu_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match=r"sample\.gpus_per_actor: 2 x 1 GPU asked for, but the cluster has 0"):
        pipeline.execute(Run(changed(sample={"actors": 2, "gpus_per_actor": 1}), Folder(tmp_path)))
    with pytest.raises(ResourceError, match=r"collect\.cpus_per_worker: 9 x 1 CPU"):
        pipeline.execute(Run(changed(collect={"workers": 9}), Folder(tmp_path)))
    with pytest.raises(ResourceError, match=r"collect\.cpus_per_worker: 1 x 3 CPU"):  # rivals are trained as chains are
        pipeline.execute(
            Run(changed(collect={"cpus_per_worker": 3}, evaluate={"bagging_members": 1}), Folder(tmp_path)),
            ("evaluate",),
        )


def test_nan_in_a_snapshot_is_named(reference: Path, tmp_path: Path) -> None:
    """A snapshot that went bad before the manifest vouched for it: the shard is whole, its numbers are not."""
    run = copy(reference, tmp_path, "generator", "ensemble", "report")
    folder = run / "snapshots"
    (folder.path / "_config.json").unlink()
    shard, recipe = parquet.read_shard(folder, 1), parquet._checked_shard(folder, parquet.shard_name(1)).recipe
    shard.theta_SD[1, 3] = float("nan")
    parquet.write_shard(folder, 1, shard.subset, shard.theta_SD, list(shard.facts), recipe)
    with pytest.raises(ArtifactError, match=r"chain-00001\.parquet: .* of chain 1, step \d+ is not finite"):
        pipeline.execute(Run(changed(), run))


def test_error_inside_a_worker_reaches_the_user_as_itself(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower (base|collect)\.lr"):
        pipeline.execute(Run(changed(base={"lr": 1e30}), Folder(tmp_path)), ("collect",))


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TWO))
    cli.main(["run", str(tmp_path / "toy.yaml"), "--run-dir", str(tmp_path / "run"), "--dry-run"])
    said = io.StringIO(capsys.readouterr().out).getvalue()
    assert "answer:    7 members cost 6.34 forward passes" in said
    assert "norm+head: D =" in said and "2 x 1 CPU (collect.cpus_per_worker)" in said and "chains: 5" in said
    assert not (tmp_path / "run").exists()


def test_stage_without_its_input_says_which(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no generator here"):
        pipeline.execute(Run(changed(), Folder(tmp_path)), ("sample",))


def test_rivals_are_trained_once_and_reported(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "report")
    config = changed(evaluate={"bagging_members": 2, "deep_ensemble_members": 1})
    pipeline.execute(Run(config, run), ("evaluate",))
    metrics = json.loads((run.path / "report" / "metrics.json").read_text())
    assert metrics["baselines"]["bagging"]["members"] == 2 and metrics["baselines"]["deep_ensemble"]["members"] == 1
    assert metrics["diversity"]["bagging"]["disagreement"] > 0
    rivals = sorted((run.path / "rivals").glob("bagging-*.safetensors"))
    before = [path.stat().st_mtime_ns for path in rivals]
    for note in (run.path / "timings").glob("bagging-*"):  # as if these had been trained elsewhere and brought here
        note.unlink()
    for made in ("report", "ensemble"):
        shutil.rmtree(run.path / made)
    fewer = changed(evaluate={"bagging_members": 2, "deep_ensemble_members": 0}, sample={"members": 4})
    pipeline.execute(Run(fewer, run), ("sample", "evaluate"))
    assert [path.stat().st_mtime_ns for path in rivals] == before and len(rivals) == 2
    cost = json.loads((run.path / "report" / "metrics.json").read_text())["cost"]
    assert cost["training_s_per_model"] == cost["base_s"] > 0
