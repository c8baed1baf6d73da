"""A real search: what is measured is what the pipeline would measure, a failure is one trial, a kill costs nothing."""

import dataclasses
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from bend_ray import cli
from bend_ray.cluster import failures
from bend_ray.config import Config, load
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import metrics
from bend_ray.ensemble.ensemble import Ensemble
from bend_ray.errors import ArtifactError, ConfigError, ResourceError, TrainingError
from bend_ray.generator.denoiser import condition
from bend_ray.generator.generator import Generator
from bend_ray.generator.span import Span
from bend_ray.progress import Progress
from bend_ray.report.novelty import novelty
from bend_ray.run import Run
from bend_ray.search import objective, study
from bend_ray.search.objective import Prepared
from bend_ray.snapshots import parquet
from bend_ray.stages import pipeline, search, tuning
from bend_ray.store import artifacts, lineage
from bend_ray.store.folders import Folder
from bend_ray.store.timings import noted_seconds
from bend_ray.workers import trial
from conftest import BEND_RAY, TOY, changed
from processes import ended_well, first_worker, kill, wait_for

pytestmark = pytest.mark.ray

SPACE = {
    "autoencoder.latent": {"choice": [2, 4]},
    "diffusion.lr": {"choice": [1e30, 1e-3, 2e-3]},
    "sample.steps": {"uniform": [2, 5]},
}
SEARCH: dict[str, Any] = {"trials": 5, "space": SPACE, "concurrent": 1, "method": "random", "early_stop": False}


def begun(reference: Path, where: Path) -> Folder:
    """A run with base and snapshots alone."""
    for name in ("base", "snapshots"):
        shutil.copytree(reference / name, where / name)
    return Folder(where)


def asked(**more: Any) -> Config:
    return changed(search=SEARCH | more)


def stamps(run: Path) -> dict[Path, int]:
    """When each file of a run's artifacts was written."""
    return {path: path.stat().st_mtime_ns for path in run.glob("*/*") if path.is_file()}


def table(run: Path) -> list[dict[str, Any]]:
    """All that must be the same whenever it is made."""
    rows = pq.read_table(run / "search" / "trials.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def searched(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search, and the run that follows from it."""
    run = begun(reference, tmp_path_factory.mktemp("search") / "run")
    pipeline.execute(Run(asked(), run), ("search", "fit", "sample"))
    return run.path


def test_a_trial_is_what_the_pipeline_would_measure(reference: Path) -> None:
    """Trial 0 is the reference run: its generator's members, on the validation split, by the plain road."""
    config, run = changed(sample={"members": 9, "block": 4}), Folder(reference)
    dataset = load_dataset(config.data, config.seed)
    snapshots = parquet.read(run / "snapshots", config.collect.chains)
    seen, held_out = snapshots.divide(config.collect.seen_chains)
    cut, _ = trial.classifier(run.address, config.model_dump_json(), seen.subset, "cpu")
    blind = dataclasses.replace(dataset, test=None)  # type: ignore[arg-type]  # a trial must not look there
    prepared = Prepared.of(cut, snapshots, len(seen.facts), blind)
    span, c_SR = prepared.coordinates(config.autoencoder)
    shown: list[dict[str, float]] = []
    fitted = Generator.fit_in(
        prepared.subset,
        span,
        c_SR,
        Run(config),
        callback=lambda generator: shown.append(objective.measure(generator, prepared, cut, config)),
        calls=3,
        condition=condition(prepared.facts),
    )
    found = objective.measure(fitted, prepared, cut, config)
    assert shown[-1] == found and shown[0] != found and len(shown) == 3 and tuple(found) == objective.METRICS
    generator = Generator.load(run)
    blocks = [generator.sample(range(start, start + 4), config.seed, config.sample) for start in (0, 4, 8)]
    theta_MD = torch.cat(blocks)[:9]
    ensemble = dataclasses.replace(Ensemble.load(run), theta_MD=theta_MD)
    images, label_B = dataset.val.images, dataset.val.labels
    answers = {kind: ensemble.predict(images, kind) for kind in ("abend", "sbend")}
    logits_MBK = ensemble.logits(images)
    assert isinstance(generator.span, Span)
    facts = novelty(generator.span, theta_MD, theta_MD, seen, held_out)
    accuracy_M, nll_M = metrics.member_scores(logits_MBK, label_B)
    expected = {
        "abend_nll": metrics.nll(answers["abend"].prob_BK, label_B).mean().item(),
        "abend_accuracy": (answers["abend"].label_B == label_B).double().mean().item(),
        "sbend_accuracy": (answers["sbend"].label_B == label_B).double().mean().item(),
        "member_nll": nll_M.mean().item(),
        "member_accuracy": accuracy_M.mean().item(),
        "disagreement": metrics.diversity(logits_MBK.argmax(-1), label_B)["disagreement"],
        "novelty": facts["generated_to_nearest_original"] / facts["held_out_to_nearest_original"],
        "variance_ratio": facts["variance_ratio"],
    }
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)


def test_a_diverging_trial_is_one_failure_with_its_reason(searched: Path) -> None:
    rows = table(searched)
    assert [row["number"] for row in rows] == list(range(5))
    assert rows[0]["autoencoder.latent"] == 4 and rows[0]["status"] == "done"  # as it stands, whatever others do
    diverging = [row for row in rows if row["diffusion.lr"] == 1e30]
    assert diverging and all(row["status"] == "failed" and "not finite" in row["reason"] for row in diverging)
    assert all(row["status"] in ("done", "stopped") and row["abend_nll"] > 0 for row in rows if row not in diverging)


def test_the_best_is_taken_by_the_stages_that_follow(searched: Path) -> None:
    manifest = artifacts.load(Folder(searched) / "search", "search")
    rows = [row for row in table(searched) if row["status"] == "done"]
    best = min(rows, key=lambda row: (row["abend_nll"], row["number"]))
    assert manifest.facts["best"] == best["number"]
    assert manifest.facts["default"]["abend_nll"] >= manifest.facts["found"]["abend_nll"] == best["abend_nll"]
    config = load(searched / "search" / "best.yaml")
    assert config.search.trials == 0
    assert all(config.hashed("autoencoder", "diffusion", "sample")[key] == best[key] for key in SPACE)
    generator = artifacts.load(Folder(searched) / "generator", "generator")
    lineage.check_config(Folder(searched), generator, config)
    assert noted_seconds(Folder(searched), ["trial-00000", "trial-00001"]) > 0
    before = stamps(searched)
    pipeline.execute(Run(asked(), Folder(searched)), ("collect", "search", "fit", "sample"))
    pipeline.execute(Run(config, Folder(searched)), ("collect", "fit", "sample"))  # best.yaml is that run's, too
    after = {
        path: path.stat().st_mtime_ns for path in searched.rglob("*") if path.name != "config.yaml" and path.is_file()
    }
    assert after == {path: stamp for path, stamp in before.items() if path.name != "config.yaml"}


def test_the_search_is_explained(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (searched / "search" / "README.md").read_text()
    assert "the configuration as it stands has" in text and "failed: " in text
    figures = sorted(path.name for path in (searched / "search").glob("*.png"))
    assert {"objective.png", "tradeoff.png"} <= set(figures) and all(f"]({name})" in text for name in figures)
    for name in figures:
        with Image.open(searched / "search" / name) as image:
            assert image.size == (768, 504)
    cli.main(["show", str(searched)])
    assert "best of 5 trials: abend_nll" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_drivers_and_trials(searched: Path, reference: Path, tmp_path: Path) -> None:
    """A killed driver's command goes on with the trials that are missing; a trial whose process is killed is tried
    again. All are those of an undisturbed search."""
    run = begun(reference, tmp_path / "run").path
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY | {"search": SEARCH}))
    words = [BEND_RAY, "search", str(tmp_path / "toy.yaml"), "--run-dir", str(run)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)

    process = start()
    wait_for(lambda: (run / "search" / "trial-00000.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "search").glob("trial-*.json")}
    process = start()
    wait_for(lambda: len(list((run / "search").glob("trial-*.json"))) > len(kept), process)
    now = {path.name: path.stat().st_mtime_ns for path in (run / "search").glob("trial-*.json")}
    kill(first_worker("ImplicitFunc", lambda: True, process), process)
    said = ended_well(process)
    assert f"{len(kept)} of 5 trials are there already" in said
    assert {name: now[name] for name in kept} == kept
    assert table(run) == table(searched)


@pytest.mark.slow
def test_a_trial_whose_process_dies_each_time_is_one_failure(reference: Path, searched: Path, tmp_path: Path) -> None:
    """As one that needs more memory than there is does. The others are those of an undisturbed search."""
    run = begun(reference, tmp_path / "run").path
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY | {"search": SEARCH}))
    words = [BEND_RAY, "search", str(tmp_path / "toy.yaml"), "--run-dir", str(run)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as process:
        for _ in range(failures.RETRIES + 1):
            kill(first_worker("ImplicitFunc", lambda: True, process), process)
        said = ended_well(process)
    rows, undisturbed = table(run), table(searched)
    assert rows[0]["reason"] == "its process died" and "trial 0 failed: its process died" in said
    assert rows[1:] == undisturbed[1:]


def test_trials_that_are_behind_are_stopped_but_for_the_first() -> None:
    """Successive halving by hand: at each look the worse half of what was seen there ends, in a second run too."""

    class Recorded:
        def __init__(self, *nlls: float) -> None:
            self.ended = [study.Trial(i, {}, "done", [{"abend_nll": nll}] * 2) for i, nll in enumerate(nlls)]

    def decisions(table: Recorded, number: int, *nlls: float) -> list[str]:
        scheduler = tuning.scheduler(asked(early_stop=True), table)  # type: ignore[arg-type]  # all that is asked of a table
        trial: Any = tuning._Earlier(number)
        runner: Any = None  # which the scheduler does not ask
        scheduler.on_trial_add(runner, trial)
        return [
            scheduler.on_trial_result(runner, trial, {"training_iteration": look + 1, "abend_nll": nll})
            for look, nll in enumerate(nlls)
        ]

    before = Recorded(0.5, 0.4, 0.3)
    assert decisions(before, 7, 0.2, 0.2, 0.2, 0.2) == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]  # the end
    assert decisions(before, 7, 0.45) == ["STOP"]
    assert decisions(before, 7, 0.35, 0.45) == ["CONTINUE", "STOP"]
    assert decisions(before, 0, 0.9, 0.9) == ["CONTINUE", "CONTINUE"]
    assert decisions(Recorded(), 7, 0.9) == ["CONTINUE"]


def test_a_trial_that_takes_too_long_has_failed(reference: Path) -> None:
    config = asked(timeout=1e-3)
    run = Run(config, Folder(reference))
    prepared = search._prepare(run)
    with pytest.raises(TrainingError, match=r"not done after 0\.001 s \(search\.timeout\), at step 1 of 90"):
        trial._trial({"number": 0}, run, prepared)


def test_a_search_without_a_finished_trial_says_why(tmp_path: Path) -> None:
    known = [study.Trial(0, {}, "failed", reason="NaN"), study.Trial(1, {}, "failed", reason="its process died")]
    with pytest.raises(TrainingError, match=r"no trial of 2 came to its end \(NaN; its process died\)"):
        search._publish(Run(asked(), Folder(tmp_path)), {}, known, Progress("search", "trials", 2))


def test_a_table_that_cannot_be_written_ends_the_search(reference: Path, tmp_path: Path) -> None:
    """As on a full disk: the trial that has just ended is not taken for a failure."""
    run = begun(reference, tmp_path)
    (tmp_path / "search").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"trial-00000\.json: cannot be written"):
        pipeline.execute(Run(asked(), run), ("search",))
    (tmp_path / "search").unlink()
    table = tuning.Table(Run(asked(), run), "recipe")
    assert table.ended == [] and not list(tmp_path.glob("search/*"))


def test_a_trial_that_cannot_read_the_run_ends_the_search(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose store is away: the values it had are not to blame."""
    begun(reference, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    run = Folder("/proc/self/cwd/run")  # another folder for each process
    with pytest.raises(ArtifactError, match=r"/proc/self/cwd/run/base: there is no base here"):
        pipeline.execute(Run(asked(), run), ("search",))
    assert not list(tmp_path.glob("run/search/*"))


def test_what_cannot_be_searched_is_said_at_once(reference: Path, tmp_path: Path) -> None:
    run = begun(reference, tmp_path)
    with pytest.raises(ConfigError, match=r"search\.trials: is 0"):
        pipeline.execute(Run(changed(), run), ("search",))
    with pytest.raises(ConfigError, match=r"search\.loggers: wandb is not installed; pip install wandb"):
        pipeline.execute(Run(asked(loggers=["wandb"]), run), ("search",))
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match=r"search\.gpus_per_trial: 1 x 0\.5 GPU asked for"):
            pipeline.execute(Run(asked(gpus_per_trial=0.5), run), ("search",))


def test_several_objectives_and_reestimated_members(reference: Path, tmp_path: Path) -> None:
    run = begun(reference, tmp_path)
    space = {"sample.recalibrate": {"choice": [2]}, "autoencoder.explained": {"uniform": [0.5, 0.999]}}
    config = asked(
        trials=4, objective=["abend_accuracy", "disagreement"], space=space, concurrent=2, loggers=["tensorboard"]
    )
    pipeline.execute(Run(config, run), ("search",))
    rows, facts = table(tmp_path), artifacts.load(run / "search", "search").facts
    assert all(row["status"] == "done" and row["looks"] == 4 for row in rows)
    assert facts["best"] in facts["front"] and [row["sample.reestimate_batch_norm"] for row in rows] == [0, 2, 2, 2]
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
