"""collect: data and classifier in, `base/` and `snapshots/` out.

A Ray Train job: the workers train the base classifier together, then share out the chains. Each epoch of the base
leaves a checkpoint, each finished chain is one Parquet part; a worker, driver or machine that dies costs what was under
way, and the same command goes on. Where chains end in different modes, a Ray task then aligns them, and what it was
given goes.
"""

import hashlib
import math
from typing import Any

from bend_ray import alignment, artifacts, collecting, lineage
from bend_ray.artifacts import Manifest
from bend_ray.config import Config
from bend_ray.data import training
from bend_ray.data.datasets import Dataset
from bend_ray.folders import Folder, local_file
from bend_ray.progress import Progress, counted, say
from bend_ray.weights import chains as chain_training
from bend_ray.weights import gate, parts


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the snapshots of ``config`` in ``run``, or find them there whole. Returns their manifest."""
    if (whole := found(config, run, dataset)) is not None:
        return whole
    base_inputs = inputs_of_base(config, dataset)
    base = lineage.there(run, "base", config, base_inputs)
    done = 0
    if base is not None:
        recipe = artifacts.recipe("snapshots", config, {"base": base.digest, **base_inputs})
        folder = run / "snapshots"
        stem, chains = collecting.stem_of(config), range(config.collect.chains)
        done = sum(folder.each(lambda chain: parts.part_is_done(folder, chain, recipe, stem), chains))
    base_steps, chain_steps = _steps(config, dataset)
    total = base_steps + config.collect.chains * chain_steps
    epochs = config.base.epochs if base else collecting.checkpoint_of(config, run, base_inputs).epochs()
    begun = base_steps * epochs // config.base.epochs
    already = begun + done * chain_steps
    with Progress("collect", "steps", total, already) as show:
        if base is not None:
            show.line(f"the base is there already, and {done} of {counted(config.collect.chains, 'chains')}")
        elif epochs:
            show.line(f"the base has {epochs} of {counted(config.base.epochs, 'epochs')} behind it")
        collecting.train(config, run, base_inputs, show, already, begun)
    base = artifacts.load(run / "base", "base")
    inputs = {"base": base.digest, **base_inputs}
    aligned = alignment.align_chains(config, run, artifacts.recipe("snapshots", config, inputs))
    manifest = _publish(config, run, inputs, aligned)
    say("collect", gate.in_words(config.collect, manifest.facts["dropped"]))
    return manifest


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The snapshots, if they and their base are there whole."""
    inputs = inputs_of_base(config, dataset)
    base = lineage.there(run, "base", config, inputs)
    return base and lineage.there(run, "snapshots", config, {"base": base.digest, **inputs})


def inputs_of_base(config: Config, dataset: Dataset) -> dict[str, str]:
    """Digests of the data and, where the user brings a trained classifier, of its file."""
    inputs = {"data": dataset.digest()}
    if config.classifier.weights:
        with local_file(config.classifier.weights) as path:
            inputs["weights"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if config.collect.unseen:
        inputs["collect.unseen"] = str(config.collect.unseen)
    return inputs


def _steps(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Steps of the base's training and of one chain's, for the progress line."""
    rows, of_chains = dataset.rows_of_each(config.collect.unseen, config.seed)
    base = 0 if config.classifier.weights else training.steps_of(config.base, rows)
    return base, chain_training.steps_of(config.collect, of_chains)


def _publish(config: Config, run: Folder, inputs: dict[str, str], aligned: dict[str, Any]) -> Manifest:
    collect = config.collect
    subset, known = parts.read_facts(run / "snapshots", collect.chains)
    gate.check_left(collect, [fact.chain for fact in known], run)
    accuracy = [fact.val_accuracy for fact in known]
    mean = math.fsum(accuracy) / len(accuracy)
    dropped = collect.chains * collect.snapshots_per_chain - len(known)
    facts = {
        "count": len(accuracy),
        "dropped": dropped,
        "subset": subset.to_json(),
        "subset_size": subset.D,
        "val_accuracy_mean": mean,
        **aligned,
    }
    readme = (
        f"# Snapshots\n\n{len(accuracy)} snapshots of {subset.D} parameters (`{collect.subset}`): "
        f"{collect.chains} chains of {collect.snapshots_per_chain}, one Parquet part a chain. Mean validation accuracy "
        f"{mean:.4f}; {gate.in_words(collect, dropped)}. Withheld from the generator: the last"
        f" {counted(collect.held_out, 'chains')}.{alignment.in_words(aligned)}\n\n"
        '```python\nimport pandas\npandas.read_parquet("snapshots")  # chain, step, seed, val_loss, val_accuracy, '
        "theta.<parameter>...\n```\n"
    )
    files = [parts.part_name(chain) for chain in range(collect.chains)]
    manifest = artifacts.publish(run, "snapshots", config, inputs, facts, files, readme)
    folder = run / "snapshots"
    for _ in folder.each(folder.delete, [name for name in folder.list() if name.startswith(f"{parts.RAW}-")]):
        pass
    return manifest
