"""Chains of adapters, and a run whose members have them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bend_ray.ensemble import answer_cost
from bend_ray.ensemble.batch_norm import BatchNormReestimation
from bend_ray.ensemble.ensemble import Ensemble, make_trunk
from bend_ray.models import base as bases
from bend_ray.models import lora_targets
from bend_ray.models.base import ModelSpec
from bend_ray.run import Run
from bend_ray.snapshots import chains, parquet
from bend_ray.snapshots.features import Tails
from bend_ray.stages import export, pipeline
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors
from conftest import bits, changed, once
from lora_networks import LORA, of
from oracles import logits_of_whole_models, train_chain
from pipeline_helpers import copy as copied
from test_training_resume import data


def cost_of(run: Run) -> float:
    """Forward passes of an answer of all members."""
    module = run.spec.build()
    return answer_cost.forward_passes(run, module, answer_cost.settled(run, module).cut)


def test_a_chain_trains_the_second_factor_alone() -> None:
    config = changed(classifier={"name": "vit_tiny", "kwargs": {"patch": 4, "width": 12, "depth": 4, "heads": 2}},
                     collect=LORA | {"epochs": 1, "features": "float32"})  # fmt: skip
    run = Run(config, loaded=data())
    module = run.spec.build().requires_grad_(False)
    subset = lora_targets.choose(module, "lora", config)
    tails = Tails.of(module, subset, run)
    assert tails.trunk.plan == "vmap" and tails.at_once > 1  # on kept features
    found = chains.run_chains(tails, chains.starts(module, subset, run, range(2)), run, range(2))
    for chain in range(2):
        wanted, _ = train_chain(module, subset, run.dataset, config.collect, 0, chain)
        torch.testing.assert_close(found[chain][0], wanted, atol=1e-4, rtol=1e-3)
    assert chains.with_rate(config.collect.model_copy(update={"lr": None}), subset).lr == 0.01
    cost = {
        targets: cost_of(run.but(config=config.with_keys({"collect.lora_targets": targets})))
        for targets in ("auto", "attention")
    }
    assert 1 < cost["auto"] < 0.5 * cost["attention"] < config.sample.members


def test_statistics_are_estimated_again_behind_adapters() -> None:
    run = Run(of(lora_targets="block2.conv"), loaded=data())
    module = run.spec.build().requires_grad_(False)
    subset = lora_targets.choose(module, "lora", run.config)
    reestimation = BatchNormReestimation.of(module, subset, run.dataset, 1, 0)
    assert reestimation.subset.lora == subset.lora and len(reestimation.subset.names) == 1 + 4
    theta_MD = reestimation(torch.randn(2, subset.D))
    x = run.dataset.preprocess(run.dataset.test.images[:3])
    wanted_MBK = logits_of_whole_models(module, reestimation.subset, theta_MD, x)
    found_MBK = make_trunk(module, reestimation.subset, run.spec).logits(theta_MD, x)
    torch.testing.assert_close(found_MBK, wanted_MBK, atol=1e-5, rtol=1e-5)


# --- a run

RUN: dict[str, Any] = {
    "collect": {"subset": "lora", "lora_rank": 2, "lora_targets": "regex:block[23]", "lr": None},
    "sample": {"reestimate_batch_norm": 1, "distance": "cosine"},
}

ALONE = """
import sys, numpy as np, torch
from bend_ray import Ensemble
print(Ensemble.load(sys.argv[1]).predict(torch.from_numpy(np.load(sys.argv[2]))).prob_BK[0].tolist())
"""


@pytest.fixture(scope="module")
def lora_run(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reference's base, and chains of adapters."""

    def make(run: Path) -> None:
        shutil.copytree(reference / "base", run / "base")
        pipeline.execute(Run(changed(**RUN), Folder(run)))

    yield once(tmp_path_factory, "lora", make)


@pytest.mark.ray
def test_an_ensemble_of_adapters_answers_alone_and_is_exported_as_plain_networks(
    lora_run: Path, reference: Path, tmp_path: Path
) -> None:
    run = copied(lora_run, tmp_path)
    assert (lora_run / "base" / bases.FILE).read_bytes() == (reference / "base" / bases.FILE).read_bytes()
    snapshots = parquet.read(run / "snapshots", 5)
    assert snapshots.subset.names == tuple(f"block{n}.conv.parametrizations.weight.0.B" for n in (2, 3))
    assert snapshots.subset.D == 2 * (16 + 32) and snapshots.theta_SD.std() > 0.01
    manifest = export.execute(str(run.path), "abend", str(tmp_path / "out"))
    ensemble, images = Ensemble.load(run), data().test.images[:20]
    np.save(tmp_path / "images.npy", images.numpy())
    shutil.rmtree(run.path)
    words = [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path / "out"), str(tmp_path / "images.npy")]
    said = subprocess.run(words, check=True, capture_output=True, text=True)
    wanted_BK = ensemble.predict(images).prob_BK
    torch.testing.assert_close(torch.tensor(json.loads(said.stdout), dtype=wanted_BK.dtype), wanted_BK[0])
    # Each member as a plain network.
    folder = Folder(tmp_path / "out")
    spec = ModelSpec.from_json(manifest.facts, "")
    base, weights = read_tensors(folder, bases.FILE)[0], read_tensors(folder, "merged.safetensors")[0]
    assert {"block2.conv.weight", "block3.conv.weight", "block2.norm.running_mean"} <= weights.keys()
    module, found = spec.build(), []
    for member in range(ensemble.members):
        module.load_state_dict(base | {name: value[member] for name, value in weights.items()})
        with torch.no_grad():
            found.append(module(spec.preprocess(images)))
    torch.testing.assert_close(torch.stack(found), ensemble.logits(images), atol=1e-5, rtol=1e-5)
    assert "merged.safetensors" in manifest.files
    export_again = Folder(tmp_path / "out")
    artifacts.load(export_again, "ensemble")


@pytest.mark.ray
def test_one_network_of_a_run_with_adapters_is_exported_and_the_dry_run_says_what_answers_cost(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.execute(str(lora_run), "base", str(tmp_path / "base"))
    ensemble, images = Ensemble.load(tmp_path / "base"), data().test.images[:20]
    module = bases.load(Folder(lora_run / "base"), ensemble.spec)
    torch.testing.assert_close(ensemble.logits(images)[0], module(ensemble.spec.preprocess(images)))
    capsys.readouterr()
    pipeline.dry_run(Run(changed(**RUN), Folder(lora_run)), ())
    said = capsys.readouterr().out
    run = Run(changed(**RUN), Folder(lora_run))
    cost = cost_of(run)
    assert f"7 members cost {cost:.2f} forward passes" in said and cost > 5
    assert "lora: D = 96 of" in said and "block3.conv.parametrizations.weight.0.B [32, 2]" in said
    assert bits(lora_run)  # whole
