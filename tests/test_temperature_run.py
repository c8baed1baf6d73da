"""A run's temperature: fitted by `sample` on rows of the base's data, kept in the ensemble, applied by who loads it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bend_ray.config import Ensemble as Settings
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble.ensemble import MEMBERS, Ensemble
from bend_ray.ensemble.temperature import NONE, UNDETERMINED, fixed
from bend_ray.errors import ArtifactError
from bend_ray.run import Run
from bend_ray.stages import sample
from bend_ray.store.folders import Folder
from bend_ray.workers.sample import Sampler
from conftest import changed
from pipeline_helpers import copy

pytestmark = pytest.mark.ray


def test_sample_fits_what_temperature_scale_fits(reference: Path) -> None:
    """On rows that are many, which those of the toy configuration are not."""
    dataset = load_dataset(changed().data, 0)
    many = Run(changed(), Folder(reference), loaded=replace(dataset, val=dataset.train))
    fitted = Sampler(many, "").temperature((MEMBERS, [0] * 7))
    ours = Ensemble.load(reference).temperature_scale(dataset.train.images, dataset.train.labels).temperature
    assert fitted != UNDETERMINED and fitted.kind == ours.kind
    assert (fitted.value, fitted.low, fitted.high) == pytest.approx((ours.value, ours.low, ours.high), rel=1e-4)


def test_rows_of_other_data_are_refused(reference: Path, tmp_path: Path) -> None:
    run = copy(reference, tmp_path, "ensemble", "report")
    dataset = load_dataset(changed().data, 0)
    other = replace(dataset, val=replace(dataset.val, labels=dataset.val.labels.flip(0)))
    with pytest.raises(ArtifactError, match="was made from another data than the one here now, on which the temperat"):
        sample.execute(Run(changed(), run, loaded=other))
    assert not (run.path / "ensemble").exists()


def test_the_ensemble_keeps_its_temperature(reference: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(reference / "ensemble", alone)
    images, manifest = load_dataset(changed().data, 0).test.images, json.loads((alone / "config.json").read_text())
    assert manifest["facts"]["temperature"] == UNDETERMINED.to_json()  # by 60 validation rows
    assert Ensemble.load(alone).temperature == UNDETERMINED
    assert f"T = 1 ({UNDETERMINED.why}), 95 % interval 0.2 to 5" in (alone / "README.md").read_text()
    plain = Ensemble.load(alone).predict(images)

    manifest["facts"]["temperature"] = {"kind": "pool", "value": 2.0, "low": 1.5, "high": 2.5}
    (alone / "config.json").write_text(json.dumps(manifest))
    flat = Ensemble.load(alone)
    power_BK = plain.prob_BK.sqrt()
    torch.testing.assert_close(flat.predict(images).prob_BK, power_BK / power_BK.sum(1, keepdim=True))
    assert torch.equal(flat.predict(images, "sbend").prob_BK, plain.vote_BK)
    assert torch.equal(Ensemble.load(alone, settings=Settings(temperature=1)).predict(images).prob_BK, plain.prob_BK)
    assert Ensemble.load(alone, settings=Settings(temperature=3)).temperature == fixed(3.0)

    del manifest["facts"]["temperature"]  # as in 0.1
    (alone / "config.json").write_text(json.dumps(manifest))
    assert Ensemble.load(alone).temperature == NONE
