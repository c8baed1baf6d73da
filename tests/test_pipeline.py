"""The whole pipeline on a real cluster: the same bits however work is spread, nothing redone, errors that are ours."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from bend_ray import artifacts, cli, cluster
from bend_ray.data import base as bases
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, ResourceError, TrainingError
from bend_ray.folders import Folder
from bend_ray.stages import evaluate, pipeline, sample
from bend_ray.tensors import read_tensors
from bend_ray.weights import parts
from conftest import TOY, bits, changed
from pipeline_helpers import copy, stamps

pytestmark = pytest.mark.ray


def test_one_worker_and_one_actor_give_the_same_bits(reference: Path, tmp_path: Path) -> None:
    pipeline.run(changed(collect={"workers": 1}, sample={"actors": 1}), Folder(tmp_path))
    assert bits(tmp_path) == bits(reference)


def test_three_actors_give_the_same_bits(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "ensemble", "report")
    pipeline.run(changed(sample={"actors": 3, "cpus_per_actor": 0.5}), run)
    assert bits(run.path) == bits(reference)


def test_more_members_keep_the_first_ones(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "ensemble", "report")
    pipeline.run(changed(sample={"members": 9}), run, ("sample",))
    few, many = (Ensemble.load(where).theta_MD for where in (reference, run))
    assert torch.equal(many[:7], few) and len(many) == 9


def test_same_command_again_touches_nothing(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path)
    before = stamps(run.path)
    pipeline.run(changed(), run)
    assert stamps(run.path) == before


def test_a_finished_run_needs_no_cluster(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(reference, tmp_path)

    def connect(verbose: bool) -> None:
        raise AssertionError("there is nothing to do")

    monkeypatch.setattr(cluster, "connect", connect)
    pipeline.run(changed(), run)
    assert "aBEND" in capsys.readouterr().out
    (run.path / "report" / "config.json").unlink()
    with pytest.raises(AssertionError):
        pipeline.run(changed(), run)


def test_finished_chains_and_blocks_are_kept(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(reference, tmp_path, "report")
    gone = ["snapshots/_config.json", "snapshots/chain-00003.parquet", "generator/config.json", "ensemble/config.json"]
    for name in gone:
        (run.path / name).unlink()
    before = stamps(run.path)
    pipeline.run(changed(), run)
    after = stamps(run.path)
    parts = [name for name in before if name.endswith(".parquet") or "/base/" in name]
    assert len(parts) == 4 + 3 and all(after[name] == before[name] for name in parts)
    assert "the base is there already, and 4 of 5 chains" in capsys.readouterr().out
    assert bits(run.path) == bits(reference)


def test_finished_blocks_are_kept(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their files go when the ensemble is whole; the note of the seconds each took is written anew if it is sampled."""
    run, config = copy(reference, tmp_path, "ensemble", "report"), changed()
    for left in (run.path / "timings").glob("block-*"):
        left.unlink()
    kinds: tuple[artifacts.Kind, ...] = ("generator", "base", "snapshots")
    recipe = artifacts.recipe("ensemble", config, {kind: artifacts.load(run / kind, kind).digest for kind in kinds})
    sampler = sample._Sampler(config.model_dump(mode="json"), run.address, recipe)
    for block in (0, 2):
        sampler.sample(block)
    before = stamps(run.path / "timings")
    pipeline.run(config, run, ("sample",))
    after = stamps(run.path / "timings")
    assert "2 of 4 blocks are there already" in capsys.readouterr().out
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    assert torch.equal(Ensemble.load(run).theta_MD, Ensemble.load(reference).theta_MD)
    assert not list((run.path / "ensemble").glob("block-*"))


def test_recalibrated_members_have_statistics_of_their_own(reference: Path, tmp_path: Path) -> None:
    run, config = copy(reference, tmp_path, "ensemble", "report"), changed(sample={"recalibrate": 2})
    pipeline.run(config, run, ("sample",))
    plain, own = Ensemble.load(reference), Ensemble.load(run)
    D = plain.subset.D
    assert own.subset.names[: len(plain.subset.names)] == plain.subset.names
    added = [name.split(".")[0] for name in own.subset.names[len(plain.subset.names) :]]
    assert added == ["block2", "block2", "block3", "block3"]
    assert torch.equal(own.theta_MD[:, :D], plain.theta_MD)
    assert all(own.theta_MD[:, D:].std(0) > 0)
    alone = copy(run.path, tmp_path / "alone", "ensemble")
    sample._Sampler(config.model_dump(mode="json"), alone.address, "recipe").sample(1)
    again = read_tensors(alone / "ensemble", "block-00001.safetensors")[0]["theta_MD"]
    assert torch.equal(again, own.theta_MD[2:4])  # in another process, another block first
    with pytest.raises(ArtifactError, match=r"sample\.recalibrate: 2 there, 0 here"):
        pipeline.run(changed(), run)
    scored, before = (
        evaluate._Evaluator(one.model_dump(mode="json"), where.address)
        for one, where in ((config, run), (changed(), Folder(reference)))
    )
    assert torch.equal(scored._theta("generated"), own.theta_MD)
    trained_V = own.subset.take(bases.load(run / "base", own.description))[D:]
    for name in ("base_model", "random_originals", "originals", "gaussian", "weight_average"):
        theta_MD = scored._theta(name)
        assert torch.equal(theta_MD[:, :D], before._theta(name))
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
        pipeline.run(changed(), run)
    assert stamps(run.path) == before


def test_run_of_another_configuration_is_refused_and_kept(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path)
    before = stamps(run.path)
    with pytest.raises(ArtifactError, match=r"collect\.lr: 0\.01 there, 0\.5 here"):
        pipeline.run(changed(collect={"lr": 0.5}), run)
    assert stamps(run.path) == before


def test_chains_begun_by_another_configuration_are_refused_and_kept(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "generator", "ensemble", "report")
    for name in ("_config.json", "chain-00004.parquet"):
        (run.path / "snapshots" / name).unlink()
    before = stamps(run.path)
    with pytest.raises(ArtifactError, match=r"snapshots: .* \(collect\.lr: 0\.01 there, 0\.5 here\)"):
        pipeline.run(changed(collect={"lr": 0.5}), run)
    assert stamps(run.path) == before


def test_gpu_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match=r"sample\.gpus_per_actor: 2 x 1 GPU asked for, but the cluster has 0"):
        pipeline.run(changed(sample={"gpus_per_actor": 1}), Folder(tmp_path))
    with pytest.raises(ResourceError, match=r"collect\.cpus_per_worker: 9 x 1 CPU"):
        pipeline.run(changed(collect={"workers": 9}), Folder(tmp_path))
    with pytest.raises(ResourceError, match=r"collect\.cpus_per_worker: 1 x 3 CPU"):  # rivals are trained as chains are
        pipeline.run(
            changed(collect={"cpus_per_worker": 3}, evaluate={"bagging_members": 1}), Folder(tmp_path), ("evaluate",)
        )


def test_nan_in_a_snapshot_is_named(reference: Path, tmp_path: Path) -> None:
    """A snapshot that went bad before the manifest vouched for it: the part is whole, its numbers are not."""
    run = copy(reference, tmp_path, "generator", "ensemble", "report")
    folder = run / "snapshots"
    (folder.path / "_config.json").unlink()
    part, recipe = parts.read_part(folder, 1), parts._checked_part(folder, parts.part_name(1)).recipe
    part.theta_SD[1, 3] = float("nan")
    parts.write_part(folder, 1, part.subset, part.theta_SD, list(part.facts), recipe)
    with pytest.raises(ArtifactError, match=r"chain-00001\.parquet: .* of chain 1, step \d+ is not finite"):
        pipeline.run(changed(), run)


def test_error_inside_a_worker_reaches_the_user_as_itself(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower (base|collect)\.lr"):
        pipeline.run(changed(base={"lr": 1e30}), Folder(tmp_path), ("collect",))


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    cli.main(["run", str(tmp_path / "toy.yaml"), "--run-dir", str(tmp_path / "run"), "--dry-run"])
    said = io.StringIO(capsys.readouterr().out).getvalue()
    assert "auto: D =" in said and "2 x 1 CPU (collect.cpus_per_worker)" in said and "chains: 5" in said
    assert not (tmp_path / "run").exists()


def test_stage_without_its_input_says_which(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no generator here"):
        pipeline.run(changed(), Folder(tmp_path), ("sample",))


def test_rivals_are_trained_once_and_reported(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "report")
    config = changed(evaluate={"bagging_members": 2, "deep_ensemble_members": 1})
    pipeline.run(config, run, ("evaluate",))
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
    pipeline.run(fewer, run, ("sample", "evaluate"))
    assert [path.stat().st_mtime_ns for path in rivals] == before and len(rivals) == 2
    cost = json.loads((run.path / "report" / "metrics.json").read_text())["cost"]
    assert cost["training_s_per_model"] == cost["base_s"] > 0
