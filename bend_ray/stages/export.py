"""export: a run in, one folder out that can be loaded, served and asked without the run: what the report recommends, or
another answer of its table. Ray is not needed."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray.config import loads
from bend_ray.ensemble import distance, merged
from bend_ray.ensemble.ensemble import MEMBERS, trunk_file, trunks_of_members
from bend_ray.ensemble.temperature import Temperature
from bend_ray.errors import ArtifactError, ConfigError, ModelError
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset
from bend_ray.progress import counted
from bend_ray.report.rivals import CONTENDERS
from bend_ray.store import artifacts
from bend_ray.store.artifacts import FileFacts, Manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from bend_ray.store.tensors import read_tensors, write_tensors
from bend_ray.training.rivals import whole_networks

RECOMMENDED = "recommended"
FOLDER = "deploy"
"""Of the run, where no other is named."""
COUNTER = "num_batches_tracked"
"""How the name of a buffer ends that no answer depends on."""


def execute(where: str, name: str = RECOMMENDED, to: str | None = None) -> Manifest:
    """Write the answer ``name`` of the run at ``where`` to the folder ``to`` (`FOLDER` of the run), and say how to use
    it. Returns the manifest, which is that of an ensemble.

    Raises ArtifactError where there is no whole report of the ensemble there, or ``to`` holds something else,
    ConfigError for a ``name`` that cannot be deployed.
    """
    run = Folder(where)
    folder = Folder(to) if to is not None else run / FOLDER
    report = artifacts.load(run / "report", "report")
    measured = json.loads((run / "report").read("metrics.json"))
    row = _row(measured, name, str(run))
    ours = artifacts.load(run / "ensemble", "ensemble")
    if report.inputs.get("ensemble") != ours.digest:
        raise ArtifactError(f"{run / 'report'}: is of another ensemble than the one here now; run evaluate again")
    _emptied(folder)
    generated = CONTENDERS[row["name"]].source == "generated"
    manifest = _copied(run, folder, ours, row) if generated else _networks(run, folder, ours, report, row)
    print(_in_words(folder, manifest, row))
    return manifest


def _row(measured: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The row of the report that is to be deployed."""
    if RECOMMENDED not in measured:
        raise ArtifactError(f"{where}/report: is of 0.1 and recommends nothing; delete it and run evaluate again")
    name = measured[RECOMMENDED] if name == RECOMMENDED else name
    rows = {row["name"]: row for row in measured["rivals"] if row["members"] and CONTENDERS[row["name"]].deployable}
    if name not in rows:
        raise ConfigError(f"--deploy: {name!r} cannot be deployed from {where}; use one of {', '.join(rows)}")
    return rows[name]


def _emptied(folder: Folder) -> None:
    """Take away what was exported to ``folder`` before. Raises ArtifactError where it holds something else."""
    names = folder.list()
    if not names:
        return
    before = artifacts.read_manifest(folder, "ensemble")
    if before is None or "deployed" not in before.facts:
        raise ArtifactError(f"{folder}: holds something else than an export; name another folder by --to")
    folder.delete(ARTIFACTS["ensemble"].manifest)  # first: what is half gone must not be taken for whole
    for name in before.files:
        folder.delete(name)


def _copied(run: Folder, folder: Folder, ours: Manifest, row: dict[str, Any]) -> Manifest:
    """The ensemble as it is; members with adapters also as weights of the plain classifier."""
    for name in (*ours.files, ARTIFACTS["ensemble"].readme):
        folder.write(name, (run / "ensemble").read(name))
    files = ours.files | _merged(folder, ours)
    manifest = ours.model_copy(update={"facts": ours.facts | {"deployed": row["name"]}, "files": files})
    artifacts.write_manifest(folder, manifest)
    return manifest


def _merged(folder: Folder, ours: Manifest) -> dict[str, FileFacts]:
    """Write `merged.FILE` of an ensemble that has adapters; nothing of another."""
    subset = Subset.from_json(ours.facts["subset"])
    if subset.lora is None:
        return {}
    where = f"{folder}/{ARTIFACTS['ensemble'].manifest}"
    theta_MD = read_tensors(folder, MEMBERS)[0]["theta_MD"]
    trunk_M = trunks_of_members(ours.facts, len(theta_MD), where)
    files = [bases.FILE] * len(theta_MD) if trunk_M is None else [trunk_file(trunk) for trunk in trunk_M.tolist()]
    spec = ModelSpec.from_json(ours.facts, where)
    write_tensors(folder, merged.FILE, merged.merged(folder, spec, subset, theta_MD, files))
    return {merged.FILE: artifacts.file_facts(folder, merged.FILE)}


def _networks(run: Folder, folder: Folder, ours: Manifest, report: Manifest, row: dict[str, Any]) -> Manifest:
    """Whole networks as an ensemble: one is an ensemble of one member; of several all that differs is a member's."""
    config = loads(run.read("config.yaml").decode(), f"{run}/config.yaml")
    places = {"base_model": [bases.base_place()]} | whole_networks(config)
    networks = places[CONTENDERS[row["name"]].source]
    spec = ModelSpec.from_json(ours.facts, f"{run}/ensemble/config.json")
    modules = [bases.load(run / kind, spec, file=file) for kind, file in networks]
    subset = Subset.from_json(ours.facts["subset"]) if len(modules) == 1 else differing(modules)
    if len(modules) == 1 and subset.lora:
        subset.lora.attach(modules[0])  # at 0
    theta_MD = torch.stack([subset.take(module) for module in modules])
    write_tensors(folder, MEMBERS, {"theta_MD": theta_MD})
    folder.write(bases.FILE, (run / networks[0][0]).read(networks[0][1]))
    files, facts = [MEMBERS, bases.FILE], {key: ours.facts[key] for key in ("classifier", "class_names", "preprocess")}
    facts |= {"dataset": ours.facts["dataset"], "subset": subset.to_json(), "members": len(modules)}
    facts |= {"temperature": row["temperature"], "deployed": row["name"]}
    if len(modules) == 1 and bases.trunk_places(config) == networks and distance.FILE in ours.files:
        folder.write(distance.FILE, (run / "ensemble").read(distance.FILE))  # its features are the ensemble's own
        files, facts = [*files, distance.FILE], facts | {"distance": ours.facts["distance"]}
    inputs = {"report": report.digest, **{kind: report.inputs[kind] for kind, _ in networks if kind in report.inputs}}
    return artifacts.publish_at(folder, "ensemble", config, inputs, facts, files, _readme(facts, row))


def differing(modules: list[nn.Module]) -> Subset:
    """The parameters and buffers in which ``modules`` differ, but for counters. Raises ModelError where one is not
    float32, for then it cannot be a member's."""
    states = [{**dict(module.named_parameters()), **dict(module.named_buffers())} for module in modules]
    names = [
        name
        for name in states[0]
        if not name.endswith(COUNTER) and any(not torch.equal(state[name], states[0][name]) for state in states[1:])
    ]
    chosen: dict[str, Tensor] = {name: states[0][name] for name in names}
    for name, value in chosen.items():
        if value.dtype != torch.float32:
            raise ModelError(
                f"--deploy: networks differ in {name!r}, which is {value.dtype}; deploy one network instead"
            )
    shapes = tuple(tuple(value.shape) for value in chosen.values())
    return Subset(tuple(names), shapes, ("float32",) * len(names))


def _readme(facts: dict[str, Any], row: dict[str, Any]) -> str:
    return (
        f"# {CONTENDERS[row['name']].label}\n\n{counted(facts['members'], 'networks')} for {facts['dataset']}, as the"
        f" report of the run has it (`{row['name']}`). {Temperature(**row['temperature'])}, from validation rows.\n\n"
        '```python\nfrom bend_ray import Ensemble\nEnsemble.load("FOLDER").predict(images)\n```\n'
    )


def _in_words(folder: Folder, manifest: Manifest, row: dict[str, Any]) -> str:
    size = sum(facts.bytes for facts in manifest.files.values()) / 1e6
    fitted = Temperature(**row["temperature"])
    what = counted(manifest.facts["members"], "members")
    votes = " --strategy sbend" if CONTENDERS[row["name"]].votes else ""
    lines = [
        f"deployed: {row['name']}, {CONTENDERS[row['name']].label}: {what}, {fitted}",
        f"written:  {folder} ({size:.2f} MB); it needs no other file of the run",
        f"use it:   bend-ray predict {folder} IMAGE_OR_NPY...{votes}",
        f"          bend-ray serve {folder}",
        f'          bend_ray.Ensemble.load("{folder}")' + (', then predict(images, "sbend")' if votes else ""),
    ]
    return "\n".join(lines)
