"""export --deploy: what the report recommends, in a folder that is loaded and asked without the run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bend_ray import cli
from bend_ray.config import Classifier
from bend_ray.data.datasets import load_dataset
from bend_ray.ensemble import distance
from bend_ray.ensemble.ensemble import Ensemble, make_trunk
from bend_ray.ensemble.temperature import Temperature
from bend_ray.errors import ArtifactError, ConfigError, ModelError
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.run import Run
from bend_ray.stages import export
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder
from conftest import changed
from pipeline_helpers import copy


def rows_of(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report" / "metrics.json").read_text())
    return {row["name"]: row for row in report["rivals"]} | {"recommended": report["recommended"]}


# --- several networks as one ensemble


def test_networks_that_differ_are_members_of_all_that_differs() -> None:
    dataset = load_dataset(changed().data, 0)
    spec = ModelSpec.of(Classifier(name="convnet", kwargs={"width": 4}), dataset)
    modules = [spec.build(seed).requires_grad_(False) for seed in range(3)]
    for number, module in enumerate(modules):
        for name, buffer in module.named_buffers():
            buffer.add_(number if name.endswith(export.COUNTER) else 0.1 * number)
    subset = export.differing(modules)
    assert any(name.endswith("running_var") for name in subset.names)
    assert not any(name.endswith(export.COUNTER) for name in subset.names)
    x = dataset.preprocess(dataset.test.images[:4])
    wanted_MBK = torch.stack([module(x) for module in modules])
    theta_MD = torch.stack([subset.take(module) for module in modules])
    torch.testing.assert_close(make_trunk(modules[0], subset, spec).logits(theta_MD, x), wanted_MBK)
    modules[1].double()
    with pytest.raises(ModelError, match="deploy one network instead"):
        export.differing([modules[1], modules[2].double()])


# --- a run


@pytest.mark.ray
def test_what_is_recommended_is_written_and_answers_alone(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(reference, tmp_path)
    rows, images = rows_of(run.path), Run(changed(), run).dataset.test.images
    cli.main(["export", str(run.path), "--deploy"])
    manifest = artifacts.load(run / export.FOLDER, "ensemble")
    said = capsys.readouterr().out
    assert manifest.facts["deployed"] == rows["recommended"] and f"deployed: {rows['recommended']}" in said
    assert f"bend-ray serve {run.path}/deploy" in said and "Ensemble.load" in said
    cli.main(["export", str(run.path), "--deploy", "base", "--to", str(tmp_path / "base")])
    cli.main(["export", str(run.path), "--deploy", "abend", "--to", str(tmp_path / "abend")])
    whole = Ensemble.load(run)
    shutil.rmtree(run.path)
    one, many = Ensemble.load(tmp_path / "base"), Ensemble.load(tmp_path / "abend")
    assert one.members == 1 and one.temperature == Temperature(**rows["base"]["temperature"])
    spec = one.spec
    module = bases.load(Folder(reference / "base"), spec)
    prob_BK = one.temperature.apply(module(spec.preprocess(images))[None])
    torch.testing.assert_close(one.predict(images).prob_BK, prob_BK, atol=1e-6, rtol=1e-5)
    accuracy = (one.predict(images).label_B == Run(changed()).dataset.test.labels).double().mean().item()
    assert accuracy == rows["base"]["accuracy"]
    assert torch.equal(many.theta_MD, whole.theta_MD) and many.temperature == whole.temperature
    assert torch.equal(many.predict(images).prob_BK, whole.predict(images).prob_BK)


@pytest.mark.ray
def test_what_cannot_be_exported_is_said(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy(reference, tmp_path)
    with pytest.raises(ConfigError, match=r"--deploy: 'swag' cannot be deployed .*; use one of abend, sbend, base"):
        export.execute(str(run.path), "swag")
    with pytest.raises(ArtifactError, match="holds something else than an export"):
        export.execute(str(run.path), "base", str(run.path / "ensemble"))
    export.execute(str(run.path), "sbend", str(tmp_path / "there"))
    assert "--strategy sbend" in capsys.readouterr().out
    export.execute(str(run.path), "base", str(tmp_path / "there"))  # takes the place of the export before
    assert Ensemble.load(tmp_path / "there").members == 1
    with pytest.raises(SystemExit):
        cli.main(["export", str(run.path)])
    assert "--deploy" in capsys.readouterr().err
    manifest = json.loads(run.read("report/config.json"))
    manifest["inputs"]["ensemble"] = "0" * 64
    run.write("report/config.json", json.dumps(manifest).encode())
    with pytest.raises(ArtifactError, match="is of another ensemble"):
        export.execute(str(run.path), "base", str(tmp_path / "there"))
    run.delete("report/config.json")
    with pytest.raises(ArtifactError, match="run the stage before"):
        export.execute(str(run.path), "base", str(tmp_path / "there"))
    assert distance.FILE not in artifacts.load(Folder(tmp_path / "there"), "ensemble").files
