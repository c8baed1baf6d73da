"""The whole pipeline on a real cluster: the same bits however work is spread, nothing redone, a whole report."""

import io
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from bend_ray import artifacts, cli, cluster, lineage
from bend_ray.config import BASELINES, Inference
from bend_ray.config import Ensemble as Settings
from bend_ray.data import base as bases
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import metrics
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, ConfigError, ResourceError, TrainingError
from bend_ray.folders import Folder
from bend_ray.report.numbers import SNAPSHOTS
from bend_ray.stages import evaluate, pipeline, sample
from bend_ray.tensors import read_tensors
from bend_ray.weights import parts
from conftest import TOY, bits, changed

pytestmark = pytest.mark.ray

NUMBER = {"type": "number"}
BASELINE = dict.fromkeys(("members", "accuracy", "sbend_accuracy", "nll", "ece", "brier", "seconds"), NUMBER)
SCORES = dict.fromkeys(("accuracy", "nll", "ece", "brier"), NUMBER)
COST = ("base_s", "collect_s", "fit_s", "sample_s", "evaluate_s", "sample_s_per_member", "training_s_per_model")


def whole(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


MEMBERS = whole(
    {
        "count": NUMBER,
        "accuracy": whole(dict.fromkeys(("mean", "median", "best", "worst"), NUMBER)),
        "nll": whole({"mean": NUMBER}),
    }
)
DISTANCES = ("generated", "held_out", "original", "noised")
OF_ANY_CHAIN = {"original_to_nearest_of_any_chain": NUMBER}
SCHEMA = whole(
    {
        **dict.fromkeys(
            ("format", "seed", "classes", "test_size", "members", "subset_size", "dropped"), {"type": "integer"}
        ),
        "dataset": {"type": "string"},
        "originals": MEMBERS,
        "generated": MEMBERS,
        "sbend": whole(SCORES),
        "abend": whole(SCORES),
        "baselines": whole(
            {name: whole(BASELINE) for name in BASELINES}
            | dict.fromkeys(("bagging", "deep_ensemble"), {"type": "null"})
        ),
        "versus": whole(
            {name: whole(dict.fromkeys(("nll_gain", "low", "high"), NUMBER)) for name in BASELINES}
            | dict.fromkeys(("bagging", "deep_ensemble"), {"type": "null"})
        ),
        "diversity": whole(
            {name: whole({"disagreement": NUMBER, "error_iou": NUMBER}) for name in ("originals", "generated")}
            | dict.fromkeys(("bagging", "deep_ensemble"), {"type": "null"})
        ),
        "novelty": whole(
            {f"{name}_to_nearest_original": NUMBER for name in DISTANCES}
            | dict.fromkeys(("original_to_nearest_of_any_chain", "copies", "replica_rate", "variance_ratio"), NUMBER)
            | dict.fromkeys(("outside_span", "mean_error_iou", "max_error_iou"), NUMBER)
            | {"raw": whole({f"{name}_to_nearest_original": NUMBER for name in DISTANCES} | OF_ANY_CHAIN)}
            | {"verdict": {"enum": ["copying", "averaging", "interpolating", "new"]}}
        ),
        "chosen": whole({"keep": {"enum": ["all"]}, "candidates": NUMBER, "rejected": {"enum": [0]}, "spread": NUMBER}),
        "autoencoder": whole(
            {f"{name}{suffix}": NUMBER for name in ("seen", "withheld") for suffix in ("", "_reconstructed")}
        ),
        "away": whole(dict.fromkeys(("generated", *BASELINES), NUMBER) | dict.fromkeys(SNAPSHOTS, {"type": "null"})),
        "cost": whole({**dict.fromkeys(COST, NUMBER), "search_s": {"type": "null"}, "member_cost_ratio": NUMBER}),
    }
)


def copy(reference: Path, tmp_path: Path, *without: str) -> Folder:
    """The reference run, but for the artifacts named."""
    run = tmp_path / "run"
    shutil.copytree(reference, run, ignore=lambda where, _: without if where == str(reference) else ())
    return Folder(run)


def stamps(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


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


def test_metrics_have_every_key_and_only_those(reference: Path) -> None:
    metrics = json.loads((reference / "report" / "metrics.json").read_text())
    jsonschema.validate(metrics, SCHEMA)
    fractions = [metrics[kind]["accuracy"][which] for kind in ("originals", "generated") for which in ("best", "worst")]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert metrics["members"] == metrics["generated"]["count"] == 7 and metrics["originals"]["count"] == 10


def test_report_has_figures_and_words(reference: Path) -> None:
    report = reference / "report"
    text = (report / "README.md").read_text()
    figures = sorted(path.name for path in report.glob("*.png"))
    assert len(figures) == 5 and all(f"]({name})" in text for name in figures)
    for name in figures:
        with Image.open(report / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 5  # something is drawn
    assert "aBEND" in text and "Gaussian" in text


def test_ensemble_is_loadable_alone_and_answers_as_the_whole(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference / "ensemble", tmp_path / "alone")
    alone = Ensemble.load(tmp_path / "alone")
    test = load_dataset(changed().data, 0).test
    prediction = alone.predict(test.images, "abend")
    metrics = json.loads((reference / "report" / "metrics.json").read_text())
    accuracy = (prediction.label_B == test.labels).double().mean().item()
    assert accuracy == pytest.approx(metrics["abend"]["accuracy"], abs=1e-9)
    assert set(alone.predict(test.images[:3], "sbend").label_B.tolist()) <= set(range(10))


def test_ensemble_is_selected_and_calibrated_on_validation_rows(reference: Path) -> None:
    ensemble, val = Ensemble.load(reference), load_dataset(changed().data, 0).val

    def nll(one: Ensemble) -> float:
        return metrics.nll(one.predict(val.images).prob_BK, val.labels).mean().item()

    single = ensemble.select(val.images, val.labels, 1, "best")
    smaller = ensemble.select(val.images, val.labels, 3)
    assert (single.members, smaller.members, ensemble.members) == (1, 3, 7)
    assert nll(smaller) <= nll(single) + 1e-9
    calibrated = ensemble.calibrate(val.images, val.labels)
    assert nll(calibrated) <= nll(ensemble) and calibrated.temperature != 1
    stopped = calibrated.predict(val.images, stop_early=True)
    assert torch.equal(stopped.label_B, calibrated.predict(val.images).label_B)
    measured = Ensemble.load(reference, settings=Settings(plan="measured"))
    torch.testing.assert_close(measured.logits(val.images), ensemble.logits(val.images), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="how: 'worst'"):
        ensemble.select(val.images, val.labels, 1, "worst")  # type: ignore[arg-type]


def test_predict_answers_for_images_and_arrays(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_dataset(changed().data, 0).test.images[:3]
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "digit.png")
    np.save(tmp_path / "digits.npy", images.numpy())
    cli.main(["predict", str(reference), str(tmp_path / "digit.png"), str(tmp_path / "digits.npy"), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4 and rows[0]["label"] == rows[1]["label"]
    assert all(sum(row["votes"].values()) == 7 for row in rows)
    cli.main(["predict", str(reference / "ensemble"), str(tmp_path / "digit.png"), "--strategy", "sbend"])
    assert "votes {" in capsys.readouterr().out
    cli.main(["predict", str(reference), str(tmp_path / "digit.png"), "--json", "--ensemble.precision", "bfloat16"])
    low = json.loads(capsys.readouterr().out)
    assert low["label"] == rows[0]["label"] and low["probability"] != rows[0]["probability"]


def test_a_run_says_how_its_ensemble_is_used(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path)
    text = (run.path / "config.yaml").read_text()
    assert "ensemble:\n  plan: graph\n" in text
    (run.path / "config.yaml").write_text(
        text.replace("plan: graph", "plan: measured").replace("chunk: 16", "chunk: 8")
    )
    found = lineage.inference(Inference, run, {"ensemble.chunk": "4"}).ensemble
    assert (found.plan, found.chunk) == ("measured", 4)
    assert lineage.inference(Inference, run / "ensemble", {}).ensemble == Settings()


def test_show_explains_a_run(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["show", str(reference)])
    said = capsys.readouterr().out
    assert all(word in said for word in ("base", "snapshots", "generator", "ensemble", "aBEND", "bend-ray predict"))
    assert "batch 256: loop; the fastest here and now: " in said
    cli.main(["show", str(reference), "--ensemble.plan", "vmap", "--ensemble.chunk", "5"])
    assert "batch 1: vmap, 5 members at once; the fastest" in capsys.readouterr().out
    run = copy(reference, tmp_path, "ensemble", "report")
    cli.main(["show", str(run)])
    assert "not there yet: ensemble, report" in capsys.readouterr().out


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
