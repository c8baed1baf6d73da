"""What runs on a GPU: the whole pipeline there, several processes that share one, and the CPU's numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bend_ray
from bend_ray.config import Ensemble as Settings
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import choose
from bend_ray.run import Run
from bend_ray.snapshots.chains import run_chains
from bend_ray.snapshots.features import Tails
from bend_ray.stages import pipeline
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors
from bend_ray.training import loop
from bend_ray.training.checkpoint import Checkpoint
from conftest import changed
from endpoint import served

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PLACED: dict[str, Any] = {
    "collect": {"workers": 2, "gpus_per_worker": 0.5},
    "diffusion": {"gpus": 1},
    "sample": {"actors": 2, "gpus_per_actor": 0.5, "reestimate_batch_norm": 2, "spread": "matched"},
    "base": {"epochs": 6},
    "augment": {"crop": 1},
}


@pytest.fixture(scope="module")
def run(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A whole run, two processes at a time sharing the GPU."""
    run = Folder(tmp_path_factory.mktemp("gpu") / "run")
    pipeline.execute(Run(changed(**PLACED), run))
    return run


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_dataset(changed().data, 0).test.images


@pytest.mark.ray
def test_report_is_that_of_classifiers_that_learned(run: Folder) -> None:
    metrics = json.loads(run.read("report/metrics.json"))
    assert 0.5 < metrics["abend"]["accuracy"] <= 1 and metrics["novelty"]["verdict"]


@pytest.mark.ray
def test_one_actor_samples_the_bits_of_two(run: Folder, tmp_path: Path) -> None:
    again = Folder(tmp_path / "run")
    shutil.copytree(run.path, again.path, ignore=shutil.ignore_patterns("ensemble", "report"))
    alone = changed(**PLACED | {"sample": {**PLACED["sample"], "actors": 1}})
    pipeline.execute(Run(alone, again), ("sample",))
    found, expected = (read_tensors(each / "ensemble", MEMBERS)[0]["theta_MD"] for each in (again, run))
    assert torch.equal(found, expected)


@pytest.mark.ray
@pytest.mark.parametrize(("precision", "atol"), [("bfloat16", 0.03), ("float32", 5e-3)])
def test_ensemble_of_a_gpu_predicts_the_same_on_a_cpu(run: Folder, images: Tensor, precision: str, atol: float) -> None:
    """float32 there has TF32 convolutions, which round to 10 bits."""
    here, there = Ensemble.load(run.path), Ensemble.load(run.path, "cuda", Settings(precision=precision))
    torch.testing.assert_close(there.predict(images).prob_BK.cpu(), here.predict(images).prob_BK, atol=atol, rtol=0)


@pytest.mark.ray
def test_replica_on_half_a_gpu_answers_as_the_ensemble(run: Folder, images: Tensor, tmp_path: Path) -> None:
    with (
        served(Path(run.path), tmp_path, "--serve.gpus_per_replica", "0.5") as endpoint,
        bend_ray.Client(endpoint.url) as client,
    ):
        answered, expected = client.predict(images.numpy()), Ensemble.load(run.path).predict(images)
    torch.testing.assert_close(answered.prob_BK, expected.prob_BK, atol=0.03, rtol=0)  # bfloat16 there


@pytest.mark.ray
def test_search_on_shares_of_a_gpu(ray_cluster: str, tmp_path: Path) -> None:
    config = changed(
        **PLACED | {"search": {"trials": 2, "concurrent": 2, "gpus_per_trial": 0.5}, "sample": {"spread": 1.0}}
    )
    pipeline.execute(Run(config, Folder(tmp_path / "run")), ("collect", "search"))
    assert artifacts.load(Folder(tmp_path / "run" / "search"), "search").facts["best"] is not None


@pytest.mark.parametrize(("spec", "features"), [("head", "auto"), ("head", "bfloat16"), ("norm+head", "none")])
def test_chains_on_a_gpu_are_those_of_the_cpu(spec: str, features: str) -> None:
    config = changed(collect={"features": features, "subset": spec})
    dataset = load_dataset(config.data, config.seed)
    found = []
    for device in ("cpu", "cuda"):
        module = ModelSpec.of(config.classifier, dataset).build(0).to(device)
        subset = choose(module, spec)
        tails = Tails.of(module, subset, Run(config, loaded=dataset))
        chains = range(2)[: tails.at_once]
        start_CD = subset.take(module).expand(len(chains), -1).to(device)
        found.append(run_chains(tails, start_CD, Run(config, loaded=dataset), chains))
    for (on_cpu_SD, _), (on_gpu_SD, _) in zip(*found, strict=True):
        # AdamW magnifies rounding in small gradients.
        torch.testing.assert_close(on_gpu_SD, on_cpu_SD, atol=0.02, rtol=0)


def test_base_goes_on_from_its_checkpoint_on_a_gpu(tmp_path: Path) -> None:
    config = changed(base={"epochs": 3, "ema": 0.9}, augment={"crop": 1, "flip": True, "cutout": 2})
    dataset = load_dataset(config.data, config.seed)

    def stop(done: int, total: int) -> None:
        """As a kill in the second epoch."""
        if done > total // 2:
            raise KeyboardInterrupt

    def trained(*, checkpoint: Checkpoint | None = None, stops: bool = False) -> torch.nn.Module:
        module = ModelSpec.of(config.classifier, dataset).build(0).to("cuda")
        loop.train(module, Run(config, progress=stop if stops else None, loaded=dataset), checkpoint=checkpoint)
        return module

    kept = Checkpoint(Folder(tmp_path), "recipe")
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=kept, stops=True)
    assert kept.epochs() == 1
    whole, resumed = trained(), trained(checkpoint=kept)
    losses = [loop.validate(module, dataset.val, dataset.preprocess)[0] for module in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)  # sums in an order of their own, which Adam magnifies
