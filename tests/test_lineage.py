"""A run is gone on from by the configuration that made it; whatever else is refused says which key, and what to do."""

from pathlib import Path

import pytest

from bend_ray.config import Config
from bend_ray.errors import ArtifactError
from bend_ray.store import artifacts, lineage
from bend_ray.store.folders import Folder
from conftest import changed

ETA = {"trials": 2, "space": {"sample.eta": {"uniform": [0, 1]}}}
STEPS = {"trials": 2, "space": {"sample.steps": {"choice": [4, 5]}}}


def searched(run: Folder) -> Config:
    """A run whose base, snapshots and search are there; the search found noise to be good."""
    config = changed(search=ETA)
    for kind in ("base", "snapshots"):
        artifacts.publish(run, kind, config, {}, {}, [], "")
    artifacts.publish(run, "search", config, {}, {"values": {"sample.eta": 0.5}}, [], "")
    return config


def test_what_a_search_found_is_used_by_what_follows(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    config = searched(run)
    lineage.check_run(run, config)
    tuned = lineage.tuned(run, config)
    assert tuned.sample.eta == 0.5 and tuned.with_keys({"sample.eta": 0.0}) == config
    artifacts.publish(run, "ensemble", tuned, {}, {}, [], "")
    lineage.check_run(run, config)
    artifacts.publish(run, "ensemble", config, {}, {}, [], "")
    with pytest.raises(ArtifactError, match=r"ensemble: was made by another configuration \(sample\.eta: 0\.0 there"):
        lineage.check_run(run, config)


def test_a_search_by_another_configuration_is_named_before_what_it_found_is_used(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    searched(run)
    other = changed(search=STEPS, sample={"sampler": "heun"})  # which takes no eta
    with pytest.raises(
        ArtifactError,
        match=rf"search: was made by another configuration \(sample\.sampler: 'ddim' .*or delete search in {tmp_path}$",
    ):
        lineage.check_run(run, other)
    with pytest.raises(ArtifactError, match=r"base: was made by another configuration \(seed: 0 there, 1 here\)"):
        lineage.check_run(run, changed(search=STEPS, sample={"sampler": "heun"}, seed=1))


def test_found_values_that_do_not_go_with_a_configuration_are_an_error_in_one_sentence(tmp_path: Path) -> None:
    run = Folder(tmp_path)
    searched(run)
    with pytest.raises(ArtifactError) as raised:
        lineage.tuned(run, changed(search=STEPS, sample={"sampler": "heun"}))
    assert str(raised.value) == (
        f"{run / 'search'}: found values (sample.eta 0.5) that do not go with this configuration (sample.eta: heun adds"
        f" no noise; use ddim, or eta 0); use another --run-dir, or delete search in {tmp_path} to search anew"
    )
    artifacts.publish(run, "search", changed(search=ETA), {}, {"values": {"sample.eta": -1}}, [], "")
    with pytest.raises(ArtifactError, match=r"\(sample\.eta: Input should be greater than or equal to 0\)"):
        lineage.tuned(run, changed(search=ETA))


def test_a_key_that_is_newer_than_an_artifact_counts_there_as_its_default(tmp_path: Path) -> None:
    run, config = Folder(tmp_path), changed()
    manifest = artifacts.publish(run, "report", config, {}, {}, [], "")
    assert "ensemble.temperature" not in manifest.config and "ensemble.chunk" in manifest.config
    lineage.check_run(run, config)
    with pytest.raises(ArtifactError, match=r"\(ensemble\.temperature: 'auto' there, 1\.0 here\)"):
        lineage.check_run(run, changed(ensemble={"temperature": 1}))
    with pytest.raises(ArtifactError, match=r"\(ensemble\.chunk: 16 there, 8 here\)"):
        lineage.check_run(run, changed(ensemble={"chunk": 8}))
