"""Runs whose members stand on several trunks: the base and each end of a cycle, all behind one ensemble."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bend_ray
from bend_ray.data.datasets import Dataset
from bend_ray.ensemble import aggregate, doubt
from bend_ray.ensemble.ensemble import Ensemble, trunk_file
from bend_ray.errors import ArtifactError
from bend_ray.models import base as bases
from bend_ray.run import Run
from bend_ray.snapshots import parquet
from bend_ray.stages import pipeline, predict, show
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.workers.evaluate import Evaluator
from bend_ray.workers.sample import Sampler
from conftest import bits, changed, once
from endpoint import served
from oracles import logits_of_whole_models, train_chain
from pipeline_helpers import copy, stamps
from test_training_resume import data

pytestmark = pytest.mark.ray

EACH: dict[str, Any] = {
    "base": {"cycles": 2, "cycle_epochs": 1, "cycle_lr": 2e-3},
    "collect": {"workers": 2, "trunk": "each", "subset": "head", "chains": 8, "held_out": 2, "accuracy_filter": None},
    "sample": {"actors": 2, "doubt": "laplace"},
    "evaluate": {"baselines": ["base_model", "weight_average", "random_originals", "autoencoder_only"]},
}
ALONE = EACH | {"collect": EACH["collect"] | {"workers": 1}, "sample": EACH["sample"] | {"actors": 1}}


@pytest.fixture(scope="module")
def each_run(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reference's base, two cycles on two workers, and all that follows from the three of them."""

    def make(run: Path) -> None:
        shutil.copytree(reference / "base", run / "base")
        pipeline.execute(Run(changed(**EACH), Folder(run)))

    yield once(tmp_path_factory, "each", make)


def of_whole_models(run: Path, dataset: Dataset, images: Tensor) -> Tensor:
    """``logits_MBK``: each member put into a copy of its own network, one after another."""
    folder = Folder(run / "ensemble")
    ensemble, facts = Ensemble.load(folder), artifacts.load(folder, "ensemble").facts
    networks = [bases.load(folder, ensemble.spec, file=trunk_file(number)) for number in range(3)]
    x = dataset.preprocess(images)
    found = [
        logits_of_whole_models(networks[trunk], ensemble.subset, theta_D[None], x)
        for theta_D, trunk in zip(ensemble.theta_MD, facts["trunk_of_member"], strict=True)
    ]
    return torch.cat(found)


def test_members_answer_as_a_loop_over_their_own_networks(each_run: Path) -> None:
    dataset, ensemble = data(), Ensemble.load(each_run)
    images = dataset.test.images
    expected_MBK = of_whole_models(each_run, dataset, images)
    torch.testing.assert_close(ensemble.logits(images), expected_MBK, atol=1e-4, rtol=1e-4)
    assert (ensemble.trunks, ensemble.members, ensemble.subset.names) == (3, 7, ("head.weight", "head.bias"))
    assert ensemble.manifest.facts["trunk_of_member"] == [0, 1, 2, 0, 1, 2, 0]
    for strategy in ("abend", "sbend"):
        expected = aggregate.aggregate(expected_MBK, strategy)
        for stop_early in (False, True):
            found = ensemble.predict(images, strategy, stop_early)
            assert torch.equal(found.label_B, expected.label_B)
    for number, (folder, file) in enumerate(bases.trunk_places(changed(**EACH))):
        assert (each_run / "ensemble" / trunk_file(number)).read_bytes() == (each_run / folder / file).read_bytes()


def test_chains_train_on_their_own_trunk_and_members_lie_about_its_snapshots(each_run: Path) -> None:
    run, config, dataset = Folder(each_run), changed(**EACH), data()
    snapshots = parquet.read(run / "snapshots", 8)
    networks = bases.load_trunks(run, config, Run(config, loaded=dataset).spec)
    for chain, trunk in ((0, 0), (4, 1), (5, 2)):
        of_chain = snapshots.theta_SD[snapshots.chains_S == chain]
        wanted, _ = train_chain(networks[trunk], snapshots.subset, dataset, config.collect, 0, chain)
        other, _ = train_chain(networks[trunk - 1], snapshots.subset, dataset, config.collect, 0, chain)
        torch.testing.assert_close(of_chain, wanted, atol=1e-4, rtol=1e-3)
        assert (of_chain - other).abs().max() > 1e-2
    sampler, seen = Sampler(Run(config, run), ""), snapshots.divide(6)[0]
    at_centre_MD = sampler.generated(range(5), config.sample.model_copy(update={"spread": 0.0}))
    for member, theta_D in enumerate(at_centre_MD):
        centre_D = seen.theta_SD[seen.chains_S % 3 == member % 3].mean(0)
        torch.testing.assert_close(theta_D, centre_D, atol=1e-5, rtol=1e-4)


def test_one_worker_and_one_actor_make_the_same_bits_after_a_stop(each_run: Path, tmp_path: Path) -> None:
    run = copy(each_run, tmp_path, "generator", "ensemble", "report")
    for name in ("_config.json", "chain-00001.parquet", "chain-00005.parquet", "chain-00006.parquet"):
        (run.path / "snapshots" / name).unlink()
    kept = (run.path / "snapshots" / "chain-00002.parquet").stat().st_mtime_ns
    pipeline.execute(Run(changed(**ALONE), run))
    assert bits(run.path) == bits(each_run)
    assert (run.path / "snapshots" / "chain-00002.parquet").stat().st_mtime_ns == kept
    before = stamps(run.path)
    pipeline.execute(Run(changed(**ALONE), run))
    assert stamps(run.path) == before
    (run.path / "ensemble" / "config.json").unlink()  # stopped before it was whole
    (run.path / "ensemble" / doubt.files(3)[1]).unlink()
    pipeline.execute(Run(changed(**ALONE), run), ("sample",))
    assert bits(run.path) == bits(each_run)
    with pytest.raises(ArtifactError, match=r"collect\.trunk: 'each' there, 'average' here"):
        pipeline.execute(Run(changed(**EACH | {"collect": EACH["collect"] | {"trunk": "average"}}), run))


def test_noise_has_the_shape_of_each_trunks_own_features(each_run: Path) -> None:
    config = changed(**EACH)
    sampler = Sampler(Run(config, Folder(each_run)), "")
    plain_MD, noisy_MD = (make(range(7), config.sample) for make in (sampler.generated, sampler.members))
    ensemble = Ensemble.load(each_run)
    torch.testing.assert_close(noisy_MD, ensemble.theta_MD, atol=1e-6, rtol=1e-5)  # which was made in blocks of two
    assert ensemble.manifest.facts["doubt_scale"] > 0
    for member, trunk in enumerate(ensemble.manifest.facts["trunk_of_member"]):
        own = doubt.Doubt.load(Folder(each_run) / "ensemble", doubt.files(3)[trunk])
        found_D = own.added(plain_MD[[member]], ensemble.subset, [member], 0)[0]
        assert torch.equal(found_D, noisy_MD[member])
    assert not torch.equal(sampler.doubts[0].root_FF, sampler.doubts[1].root_FF)


def test_baselines_are_of_a_members_own_trunk(each_run: Path) -> None:
    evaluator = Evaluator(Run(changed(**EACH), Folder(each_run)))
    seen, trunk_S = evaluator.seen, evaluator.seen.chains_S % 3
    average_TD, trunk_T = evaluator._theta("weight_average")
    assert trunk_T.tolist() == [0, 1, 2]
    for trunk in range(3):
        torch.testing.assert_close(average_TD[trunk], seen.theta_SD[trunk_S == trunk].mean(0))
    theta_MD, trunk_M = evaluator._theta("random_originals")
    for theta_D, trunk in zip(theta_MD, trunk_M, strict=True):
        assert (seen.theta_SD[trunk_S == trunk] == theta_D).all(1).any()
    again_SD, _ = evaluator._theta("reconstructed")
    whole = evaluator.snapshots
    centre_SD = evaluator.generator.centres.at(whole.chains_S % 3) if evaluator.generator.centres else again_SD
    apart_SD, error_SD = whole.theta_SD - centre_SD, whole.theta_SD - again_SD
    assert error_SD[: len(trunk_S)].norm() < 0.9 * apart_SD[: len(trunk_S)].norm()  # more than a trunk's mean is kept


def test_the_report_counts_a_pass_of_each_trunk(each_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((each_run / "report" / "metrics.json").read_text())
    passes = {row["name"]: row["answer_forwards"] for row in report["rivals"]}
    assert 3 < passes["abend"] == passes["sbend"] == passes["random_originals"] < 3.2
    assert (passes["base"], passes["average_of_cycles"], passes["cycle_ends"]) == (1, 1, 3)
    assert passes["weight_average"] == 3
    dataset, ensemble = data(), Ensemble.load(each_run)
    right = ensemble.predict(dataset.test.images).label_B == dataset.test.labels
    assert report["abend"]["accuracy"] == pytest.approx(right.double().mean().item())
    show.execute(str(each_run), {})
    said = capsys.readouterr().out
    assert "7 members on 3 trunks" in said and "of a trunk, of which there are 3" in said


def test_a_dry_run_says_what_an_answer_costs(each_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.dry_run(Run(changed(**EACH), Folder(each_run)), ())
    (said,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("answer:"))
    assert "7 members on 3 trunks cost 3." in said


def test_the_ensemble_alone_predicts(each_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(each_run / "ensemble", alone)
    images = data().test.images[:5]
    np.save(tmp_path / "x.npy", images.numpy()[:, 0])
    predict.execute(str(alone), [str(tmp_path / "x.npy")], "abend", True, {})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = Ensemble.load(each_run).predict(images)
    assert [line["label"] for line in lines] == expected.label_B.tolist()
    (alone / trunk_file(2)).unlink()
    with pytest.raises(ArtifactError, match=r"trunk-00002\.safetensors: is missing"):
        Ensemble.load(alone)


@pytest.mark.slow
def test_one_endpoint_answers_for_all_trunks(each_run: Path, tmp_path: Path) -> None:
    rows, ensemble = data().test.images[:20], Ensemble.load(each_run)
    with (
        served(each_run, tmp_path, "--serve.cpus_per_replica", "0.5") as endpoint,
        bend_ray.Client(endpoint.url) as client,
    ):
        facts = client.ensemble()
        assert (facts["members"], facts["trunks"]) == (7, 3)
        for strategy in ("abend", "sbend"):
            found, expected = client.predict(rows.numpy(), strategy), ensemble.predict(rows, strategy)
            assert torch.equal(found.label_B, expected.label_B) and torch.equal(found.vote_BK, expected.vote_BK)
            torch.testing.assert_close(found.prob_BK, expected.prob_BK, atol=1e-5, rtol=1e-5)
