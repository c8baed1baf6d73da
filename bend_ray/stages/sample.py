"""sample: `generator/` and `base/` in, `ensemble/` out.

A pool of (GPU) actors samples blocks of members. A block is the unit of work, always computed whole, so that a member's
bits depend on (seed, member id) and not on how many actors there are or how many members are asked for. Finished blocks
are files; after a kill only the others are sampled. Where members are chosen among candidates (`sample.keep`), each
block brings what its candidates say of the validation rows. On these rows the temperature of all members together is
fitted at the end.
"""

import math
from typing import Any

import torch
from torch import Tensor

from bend_ray.cluster import failures
from bend_ray.cluster.heartbeat import run_task
from bend_ray.cluster.pool import pool
from bend_ray.ensemble import distance as distances
from bend_ray.ensemble import doubt, select
from bend_ray.ensemble import temperature as temperatures
from bend_ray.ensemble.batch_norm import of_trunk
from bend_ray.ensemble.distance import Distance
from bend_ray.ensemble.doubt import Doubt
from bend_ray.ensemble.ensemble import MEMBERS, trunk_file
from bend_ray.ensemble.temperature import Temperature
from bend_ray.errors import ArtifactError
from bend_ray.models import base as bases
from bend_ray.models.subset import Subset
from bend_ray.progress import Progress
from bend_ray.run import Run
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import ARTIFACTS
from bend_ray.store.tensors import read_note, read_tensors, write_rows
from bend_ray.workers.sample import Sampler, block_name, match_spread, measure


def execute(run: Run) -> Manifest:
    """Make the ensemble of ``run``, or find it there whole. Returns its manifest."""
    config, folder, inputs = run.config, run.folder / "ensemble", _inputs(run)
    if (whole := lineage.verified(run.folder, "ensemble", config, inputs)) is not None:
        return whole
    recipe = artifacts.recipe("ensemble", config, inputs)
    blocks = range(math.ceil(config.sample.made / config.sample.block))
    done = set(_done(folder, recipe))
    todo = [block for block in blocks if block not in done]
    already = len(blocks) - len(todo)
    _check_rows(run)
    with Progress("sample", "blocks", len(blocks), already) as show:
        if already:
            show.line(f"{already} of {len(blocks)} blocks are there already")
        matched = _with_spread(run, show, sorted(done))
        _measure(matched, recipe, show)
        sample = matched.config.sample
        size = (sample.actors, sample.cpus_per_actor, sample.gpus_per_actor)
        with pool(Sampler, *size, matched, recipe, stall=config.cluster.stall) as actors:
            for count, _ in enumerate(actors.map("sample", todo), already + 1):
                show.update(count)
            names = [block_name(block) for block in blocks]
            kept, rejected = _write_members(run, names)
            trunk_M = [member % config.trunks for member in kept]
            enough = len(run.dataset.val) >= temperatures.FEWEST  # of fewer nobody need ask the members
            (temperature,) = actors.map("temperature", [(MEMBERS, trunk_M)]) if enough else (temperatures.UNDETERMINED,)
            if temperature.why:
                show.line(f"no temperature: {temperature.why}")
    facts = {"rejected": rejected, "spread": sample.spread, "temperature": temperature.to_json()}
    facts |= {"trunk_of_member": trunk_M} if config.trunks > 1 else {}
    return _publish(run, facts, inputs, names)


def existing(run: Run) -> Manifest | None:
    """The ensemble, if it is there whole."""
    return lineage.verified(run.folder, "ensemble", run.config, _inputs(run))


def _inputs(run: Run) -> dict[str, str]:
    sample, inputs = run.config.sample, artifacts.inputs_of(run.folder, "ensemble", run.config)
    needs_rows = sample.reestimate_batch_norm or sample.needs_validation
    return inputs | ({"data": run.data_digest} if needs_rows else {})


def _with_spread(run: Run, show: Progress, done: list[int]) -> Run:
    """``run`` with a number for a spread that is to be matched: that of blocks which are there, or a new one."""
    config, sample = run.config, run.config.sample
    if sample.spread != "matched":
        return run
    if done:
        tensors, _ = read_tensors(run.folder / "ensemble", block_name(done[0]))
        return run.but(config=config.with_keys({"sample.spread": tensors["spread"].item()}))
    task = match_spread.options(
        num_cpus=sample.cpus_per_actor, num_gpus=sample.gpus_per_actor, max_retries=failures.RETRIES
    )
    spread: float = run_task(task, show, config.cluster.stall, run)
    show.line(f"spread {spread:g}: there members disagree as much as snapshots do on validation rows")
    return run.but(config=config.with_keys({"sample.spread": spread}))


def _check_rows(run: Run) -> None:
    """Raises ArtifactError where the rows here are not those of the base."""
    base = artifacts.described(run.folder / "base", "base")
    if base.inputs.get("data") != run.data_digest:
        raise ArtifactError(
            f"{run.folder / 'base'}: was made from another data than the one here now, on which the temperature would"
            " be fitted; use another --run-dir, or bring the data back"
        )


def _measure(run: Run, recipe: str, show: Progress) -> None:
    """Make what members want beside them, where it is asked for and not there, in a process like theirs."""
    sample, files = run.config.sample, {"doubt": doubt.files(run.config.trunks), "distance": [distances.FILE]}
    off = ("none",) if _generated(run).is_one_layer else ("none", "auto")
    wanted = [name for name, value in (("doubt", sample.doubt), ("distance", sample.distance)) if value not in off]
    if todo := [name for name in wanted if not _measured(run, files[name], recipe)]:
        task = measure.options(
            num_cpus=sample.cpus_per_actor, num_gpus=sample.gpus_per_actor, max_retries=failures.RETRIES
        )
        for sentence in run_task(task, show, run.config.cluster.stall, run, recipe, todo):
            show.line(sentence)


def _measured(run: Run, files: list[str], recipe: str) -> bool:
    """Whether ``files`` are there. Raises ArtifactError where one is of another recipe."""
    folder = run.folder / "ensemble"
    if not all(folder.exists(file) for file in files):
        return False
    for file in files:
        lineage.check_recipe(folder, file, read_note(folder, file).split("\n")[0], recipe)
    return True


def _chosen_in_words(facts: dict[str, Any]) -> str:
    """How members were chosen among candidates; nothing where all were kept."""
    if facts["keep"] == "all":
        return ""
    how = "best by validation loss" if facts["keep"] == "best" else "greedy selection on validation rows"
    return f"Chosen among {facts['candidates']} candidates ({how}); {facts['rejected']} rejected.\n\n"


def _distance_in_words(facts: dict[str, Any]) -> str:
    """What answers say of how far an input is; nothing where they do not."""
    if (index := facts.get("distance")) is None:
        return ""
    where = "averaged values where members part" if index["pooled"] else "values where members part"
    return (
        f"Distance to the training rows (`{distances.FILE}`): {index['measure']}, in {index['features']} {where}, from"
        f" {index['rows']} rows. Validation rows: median {index['median']:.3g}, 95 % below {index['q95']:.3g}, 99 %"
        f" below {index['q99']:.3g}.\n\n"
    )


def _done(folder: Folder, recipe: str) -> list[int]:
    """Blocks that are there. Raises ArtifactError where one is of another recipe."""
    names = [name for name in folder.list() if name.startswith(ARTIFACTS["ensemble"].unit_files)]
    made_by = folder.each(lambda name: read_note(folder, name), names)
    for name, note in zip(names, made_by, strict=True):
        lineage.check_recipe(folder, name, note, recipe)
    return [int(name.split("-")[1].split(".")[0]) for name in names]


def _generated(run: Run) -> Subset:
    """What the generator makes."""
    return Subset.from_json(artifacts.described(run.folder / "generator", "generator").facts["subset"])


def _subset(run: Run) -> Subset:
    """What a member's parameters are, with the statistics of its own."""
    subset = _generated(run)
    return of_trunk(run, subset).subset if run.config.sample.reestimate_batch_norm else subset


def _write_members(run: Run, names: list[str]) -> tuple[list[int], int]:
    """Put the members that are kept, from the blocks of these ``names``. Returns their numbers as candidates, and how
    many candidates were not kept."""
    folder, sample = run.folder / "ensemble", run.config.sample
    kept = list(range(sample.members))
    if sample.keep != "all":
        p_CB = torch.cat(list(folder.each(lambda name: read_tensors(folder, name)[0]["p_MB"], names)))
        kept = sorted(select.choose(sample.keep, p_CB, sample.members))
    rows_of: dict[int, list[int]] = {block: [] for block in range(len(names))}
    for i in kept:
        rows_of[i // sample.block].append(i % sample.block)

    def members(block: int) -> Tensor:
        """Those of one block that are kept."""
        theta_MD: Tensor = read_tensors(folder, names[block])[0]["theta_MD"]
        return theta_MD if rows_of[block] == list(range(len(theta_MD))) else theta_MD[rows_of[block]]

    shape = (sample.members, _subset(run).D)
    write_rows(folder, MEMBERS, "theta_MD", shape, folder.each(members, rows_of))  # never all of them at once
    return kept, sample.made - len(set(kept))


def _publish(run: Run, more: dict[str, Any], inputs: dict[str, str], names: list[str]) -> Manifest:
    """The artifact from the members that were written, with ``more`` facts; the files of blocks go."""
    base, sample, folder = artifacts.load(run.folder / "base", "base"), run.config.sample, run.folder / "ensemble"
    places = bases.trunk_places(run.config)
    networks = [bases.FILE] if len(places) == 1 else [trunk_file(number) for number in range(len(places))]
    for name, (source, file) in zip(networks, places, strict=True):
        folder.write(name, (run.folder / source).read(file))
    facts = {key: base.facts[key] for key in ("classifier", "class_names", "preprocess", "dataset")}
    facts |= {"subset": _subset(run).to_json(), "members": sample.members}
    facts |= {"keep": sample.keep, "candidates": sample.made} | more
    temperature = Temperature.from_json(facts["temperature"], str(folder))
    files = [MEMBERS, *networks]
    of_trunks = doubt.files(len(places))
    if sample.doubt != "none" and folder.exists(of_trunks[-1]):  # auto may have found that there is none
        facts["doubt_scale"] = Doubt.load(folder, of_trunks[0]).scale
        files += of_trunks
    if sample.distance != "none" and folder.exists(distances.FILE):
        facts["distance"] = Distance.load(folder).facts()
        files.append(distances.FILE)
    frozen = f"one frozen network (`{bases.FILE}`)"
    if len(places) > 1:
        frozen = (
            f"{len(places)} frozen networks (`{networks[0]}` ..., of each member by `trunk_of_member` in config.json)"
        )
    readme = (
        f"# The ensemble\n\n{sample.members} classifiers for {base.facts['dataset']}: {frozen} and as many sets of the"
        " subset's parameters (`members.safetensors`, theta_MD).\n\n"
        + _chosen_in_words(facts)
        + f"Temperature, fitted on validation rows: {temperature}, 95 % interval {temperature.low:.3g} to"
        f" {temperature.high:.3g}.\n\n" + _distance_in_words(facts) + "```python\nfrom bend_ray import Ensemble\n"
        'Ensemble.load("ensemble").predict(images, strategy="abend")\n```\n'
    )
    manifest = artifacts.publish(run.folder, "ensemble", run.config, inputs, facts, files, readme)
    for _ in folder.each(folder.delete, names):
        pass
    return manifest
