"""show: a run in, words out: what is there, from what it was made, how good it is, how to go on."""

import json
from typing import TYPE_CHECKING

from bend_ray.config import Inference
from bend_ray.errors import ArtifactError, BendError
from bend_ray.progress import counted
from bend_ray.report import text
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS, Kind

if TYPE_CHECKING:
    from bend_ray.models.trunks import Trunk

SHOWN = (1, 256)
"""Batch sizes whose plan is shown."""


def execute(where: str, overrides: dict[str, str]) -> None:
    """Print what stands in the run at ``where``. Raises ArtifactError where there is nothing of ours."""
    run = Folder(where)
    where = str(run)
    manifests = {kind: artifacts.read_manifest(run / kind, kind) for kind in ARTIFACTS}
    for kind, artifact in ARTIFACTS.items():
        if artifact.wanted is not None and manifests[kind] is None and not lineage.finished_units(run, kind):
            del manifests[kind]  # few runs have one
    if not any(manifests.values()) and not run.exists("config.yaml"):
        raise ArtifactError(f"{where}: is no run; give the folder that bend-ray run wrote (its --run-dir)")
    print(f"{where}\n")
    for kind, manifest in manifests.items():
        print(f"  {kind:<10} {_line(run, kind, manifest)}")
    if manifests["ensemble"] is not None:
        print(f"\n{_plan(run, overrides)}")
    missing = [kind for kind, manifest in manifests.items() if manifest is None]
    if missing:
        stages = " ".join(dict.fromkeys(ARTIFACTS[kind].stage for kind in missing))
        print(f"\nnot there yet: {', '.join(missing)}; to go on: bend-ray run CONFIG.yaml --run-dir {where} ({stages})")
        return
    print(f"\n{text.table(json.loads((run / 'report').read('metrics.json')))}")
    print(f"\nto use it: bend-ray predict {where} IMAGE_OR_NPY... or bend-ray serve {where}")


def _line(run: Folder, kind: Kind, manifest: Manifest | None) -> str:
    if manifest is None:
        return "not there" + _half_done(run, kind)
    size = sum(facts.bytes for facts in manifest.files.values())
    inputs = ", ".join(f"{name} {digest[:8]}" for name, digest in manifest.inputs.items())
    return f"{manifest.digest[:8]}  {size / 1e6:8.2f} MB  from {inputs}{_facts(kind, manifest)}"


def _plan(run: Folder, overrides: dict[str, str]) -> str:
    """How members are run on batches of some sizes, and what is the fastest way, measured here and now."""
    import torch  # a second that runs without an ensemble need not pay

    from bend_ray.ensemble import plan
    from bend_ray.ensemble.ensemble import Ensemble

    try:
        ensemble = Ensemble.load(run, settings=lineage.inference(Inference, run, overrides).ensemble)
    except BendError as error:
        return f"  {'plan':<10} none, the ensemble cannot be used: {error}"
    fit = ensemble.spec.preprocess
    share = f"{ensemble.trunk.trunk_share:.0%} of operations run once for all members"
    if ensemble.trunks > 1:
        share += f" of a trunk, of which there are {ensemble.trunks}"
    lines = [f"  {'plan':<10} D = {ensemble.subset.D}, {share}"]
    for rows in SHOWN:
        x = torch.zeros(rows, fit.channels, fit.image_size, fit.image_size)
        used, fastest = ensemble.planned(x), plan.measured(ensemble.trunk, ensemble.theta_MD, x)
        lines.append(f"  {'':<10} batch {rows}: {_way(used, rows)}; the fastest here and now: {_way(fastest, rows)}")
    return "\n".join([*lines, f"  {'':<10} to pin one: --ensemble.plan, --ensemble.chunk, --ensemble.max_memory"])


def _way(trunk: "Trunk", rows: int) -> str:
    at_once = f", {counted(trunk.at_once(rows), 'members')} at once" if trunk.plan == "vmap" else ""
    compiled = ", compiled" if trunk.compiled else ""
    precision = "" if trunk.precision.itemsize == 4 else f", {str(trunk.precision).removeprefix('torch.')}"
    return f"{trunk.plan}{at_once}{precision}{compiled}"


def _half_done(run: Folder, kind: Kind) -> str:
    names = lineage.finished_units(run, kind)
    if kind == "base" and names:  # one file, of the last epoch
        from bend_ray.training.checkpoint import Checkpoint  # and torch, a second

        return f", {counted(Checkpoint(run / kind, '').epochs(), 'epochs')} done"
    units = {name.removeprefix("raw-").removeprefix("chain-") for name in names}  # a chain may be there raw, too
    return f", {counted(len(units), ARTIFACTS[kind].unit)} done" if units else ""


def _facts(kind: Kind, manifest: Manifest) -> str:
    facts = manifest.facts
    if kind == "base":
        return f"; validation accuracy {facts['val_accuracy']:.4f} on {facts['dataset']}"
    if kind == "trunks":
        best = max(one["val_accuracy"] for one in facts["networks"].values())
        return f"; {counted(len(facts['networks']), 'networks')}, the best one's validation accuracy {best:.4f}"
    if kind == "snapshots":
        dropped = f", {facts['dropped']} dropped" if facts.get("dropped") else ""  # runs before there was a filter
        return (
            f"; {facts['count']} of D = {facts['subset_size']}, validation accuracy {facts['val_accuracy_mean']:.4f}"
            f"{dropped}"
        )
    if kind == "search":
        name = facts["objective"][0]
        return f"; best of {counted(facts['trials'], 'trials')}: {name} {facts['found'][name]:.4f} on validation"
    if kind == "generator":
        return f"; rank {facts['rank']}, latent {facts['latent']}"
    if kind == "ensemble":
        from bend_ray.ensemble.temperature import Temperature  # and torch

        temperature = f", {Temperature.from_json(facts['temperature'], kind)}" if "temperature" in facts else ""
        trunks = len(set(facts.get("trunk_of_member", [0])))
        on_trunks = f" on {trunks} trunks" if trunks > 1 else ""
        return f"; {counted(facts['members'], 'members')}{on_trunks}{temperature}"
    return ""
