"""collect: data and classifier in, `base/` and `snapshots/` out.

A Ray Train job: the workers train the base classifier together, then share out the chains. Each epoch of the base
leaves a checkpoint, each finished chain is one Parquet part; a worker, driver or machine that dies costs what was under
way, and the same command goes on. Where chains end in different modes, a Ray task then aligns them, and what it was
given goes.
"""

import hashlib
import math
import time
import uuid
from typing import Any

import ray
from torch import nn

from bend_ray import alignment, artifacts, cluster
from bend_ray.artifacts import Manifest
from bend_ray.board import Desk, board, reporting
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data import classifiers, training
from bend_ray.data.checkpoint import Checkpoint
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.folders import Folder, local_file
from bend_ray.progress import Progress, counted, say
from bend_ray.timings import note_seconds
from bend_ray.weights import chains as chain_training
from bend_ray.weights import gate, parts
from bend_ray.weights import subset as subsets
from bend_ray.weights.features import Tails


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the snapshots of ``config`` in ``run``, or find them there whole. Returns their manifest."""
    if (whole := found(config, run, dataset)) is not None:
        return whole
    base_inputs = inputs_of_base(config, dataset)
    base = artifacts.there(run, "base", config, base_inputs)
    done = 0
    if base is not None:
        recipe = artifacts.recipe("snapshots", config, {"base": base.digest, **base_inputs})
        folder = run / "snapshots"
        stem, chains = _stem(config), range(config.collect.chains)
        done = sum(folder.each(lambda chain: parts.part_is_done(folder, chain, recipe, stem), chains))
    base_steps, chain_steps = _steps(config, dataset)
    total = base_steps + config.collect.chains * chain_steps
    epochs = config.base.epochs if base else _checkpoint(config, run, base_inputs).epochs()
    begun = base_steps * epochs // config.base.epochs
    already = begun + done * chain_steps
    with Progress("collect", "steps", total, already) as show:
        if base is not None:
            show.line(f"the base is there already, and {done} of {counted(config.collect.chains, 'chains')}")
        elif epochs:
            show.line(f"the base has {epochs} of {counted(config.base.epochs, 'epochs')} behind it")
        _train(config, run, base_inputs, show, already, begun)
    base = artifacts.load(run / "base", "base")
    inputs = {"base": base.digest, **base_inputs}
    aligned = alignment.align_chains(config, run, artifacts.recipe("snapshots", config, inputs))
    manifest = _publish(config, run, inputs, aligned)
    say("collect", gate.in_words(config.collect, manifest.facts["dropped"]))
    return manifest


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The snapshots, if they and their base are there whole."""
    inputs = inputs_of_base(config, dataset)
    base = artifacts.there(run, "base", config, inputs)
    return base and artifacts.there(run, "snapshots", config, {"base": base.digest, **inputs})


def inputs_of_base(config: Config, dataset: Dataset) -> dict[str, str]:
    """Digests of the data and, where the user brings a trained classifier, of its file."""
    inputs = {"data": dataset.digest()}
    if config.classifier.weights:
        with local_file(config.classifier.weights) as path:
            inputs["weights"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if config.collect.unseen:
        inputs["collect.unseen"] = str(config.collect.unseen)
    return inputs


def _checkpoint(config: Config, run: Folder, inputs: dict[str, str]) -> Checkpoint:
    return Checkpoint(run / "base", artifacts.recipe("base", config, inputs))


def _stem(config: Config) -> str:
    """What chains' files are called while they are collected."""
    return parts.RAW if config.collect.aligned else parts.STEM


def _steps(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Steps of the base's training and of one chain's, for the progress line."""
    rows, of_chains = dataset.rows_of_each(config.collect.unseen, config.seed)
    base = 0 if config.classifier.weights else config.base.epochs * (rows // min(config.base.batch_size, rows))
    return base, chain_training.steps_of(config.collect, of_chains)


def _train(config: Config, run: Folder, inputs: dict[str, str], show: Progress, already: int, begun: int) -> None:
    """Of the steps that are ``already`` done ``begun`` are the base's."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Control-C ends it. Ray's own handler asks the controller to stop, waits for it, and stays for good."""

        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    collect = config.collect
    gpu = collect.gpus_per_worker
    resources = {"CPU": collect.cpus_per_worker} | ({"GPU": gpu} if gpu else {})
    with board(show, config.cluster.stall, already) as said:
        job = {"config": config.model_dump(mode="json"), "run": run.address, "inputs": inputs, "board": said}
        job |= {"begun": begun}
        trainer = Trainer(
            _work,
            train_loop_config=job,
            # Workers that share a GPU cannot use NCCL.
            torch_config=TorchConfig(backend="nccl" if gpu and gpu == int(gpu) else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=collect.workers,  # type: ignore[arg-type]  # two are elastic
                use_gpu=gpu > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,  # a name seen before would make Ray look for its own checkpoints
                storage_path=cluster.scratch(),
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=cluster.RETRIES,
                    controller_failure_limit=10 * cluster.RETRIES,  # groups that cannot start
                ),
            ),
        )
        try:
            trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise cluster.plainly(error) from error
        except KeyboardInterrupt:
            if trainer.controller is not None:
                ray.kill(trainer.controller)  # and with it its workers
            raise


def _work(job: dict[str, Any]) -> None:
    """What every worker does: its pieces of the base's training, then its chains."""
    from ray.train import get_context
    from ray.train.collective import barrier, broadcast_from_rank_zero

    if ray.get(job["board"].failed.remote()) is not None:  # a failed try that no retry will mend
        return
    with reporting(job["board"], get_context().get_world_size()) as desk:
        config, run = Config.model_validate(job["config"]), Folder(job["run"])
        cluster.threads(config.collect.cpus_per_worker)
        device = cluster.device(config.collect.gpus_per_worker)
        dataset = load_dataset(config.data, config.seed)
        of_base, of_chains = dataset.divided(config.collect.unseen, config.data.in_memory, config.seed)
        description = bases.Description.of(config.classifier, dataset)
        first, checkpoint = get_context().get_world_rank() == 0, _checkpoint(config, run, job["inputs"])
        # One worker looks and tells, for two might see different things while a third writes.
        if not broadcast_from_rank_zero(artifacts.read_manifest(run / "base", "base") is not None):
            module = description.build(config.seed).to(device)
            tell, begun = desk.progress("base" if first else ""), job["begun"]
            seconds = _train_base(
                module, config, of_base, lambda done, total: tell(done - begun, total - begun), checkpoint
            )
            if first:
                note_seconds(run, "base", seconds)
                _publish_base(module, config, run, of_base, job["inputs"])
            barrier()
        if first:
            checkpoint.clear()
        _run_chains(config, run, of_chains, job["inputs"], device, desk)


def _train_base(
    module: nn.Module, config: Config, dataset: Dataset, progress: training.Progress, checkpoint: Checkpoint
) -> float:
    """Train, or take the user's weights. Returns the seconds that one process would take."""
    if config.classifier.weights:
        classifiers.load_weights(module, config.classifier.weights)
        return 0.0
    return training.train(
        module,
        dataset.train,
        dataset.preprocess,
        config.base,
        config.seed,
        progress=progress,
        changes=config.augment,
        checkpoint=checkpoint,
    )


def _publish_base(module: nn.Module, config: Config, run: Folder, dataset: Dataset, inputs: dict[str, str]) -> None:
    val_loss, val_accuracy = training.validate(module, dataset.val, dataset.preprocess)
    bases.save(run / "base", module)
    facts = bases.Description.of(config.classifier, dataset).to_json()
    facts |= {"dataset": dataset.name, "val_loss": val_loss, "val_accuracy": val_accuracy}
    readme = (
        f"# The base classifier\n\n{config.classifier.name or config.classifier.target}, trained on {dataset.name}"
        f" ({len(dataset.train)} rows). Validation accuracy {val_accuracy:.4f}, loss {val_loss:.4f} nats.\n\n"
        "`model.safetensors` holds parameters and buffers by name, `config.json` what it is and its origin.\n"
    )
    artifacts.publish(run, "base", config, inputs, facts, [bases.FILE], readme)


def _run_chains(config: Config, run: Folder, dataset: Dataset, inputs: dict[str, str], device: Any, desk: Desk) -> None:
    """This worker's chains: every so-manieth group of them, apart from those already there."""
    from ray.train import get_context

    manifest = artifacts.load(run / "base", "base")
    recipe = artifacts.recipe("snapshots", config, {"base": manifest.digest, **inputs})
    description = bases.Description.of(config.classifier, dataset)
    rank, world = get_context().get_world_rank(), get_context().get_world_size()
    folder, stem, collect = run / "snapshots", _stem(config), config.collect
    module = bases.load(run / "base", description, device)
    subset = subsets.choose(module, collect.subset)
    tails = Tails.of(module, subset, dataset, collect, config.changes_for_chains, desk.progress(""))
    for first in range(rank * tails.at_once, collect.chains, world * tails.at_once):
        chains = range(first, min(first + tails.at_once, collect.chains))
        todo = [chain for chain in chains if not parts.part_is_done(folder, chain, recipe, stem)]
        if not todo:
            continue
        start = time.monotonic()
        start_CD = chain_training.starts(module, subset, description, collect, config.seed, chains).to(device)
        name = f"chains {chains[0]} to {chains[-1]}"
        trained = chain_training.run_chains(tails, start_CD, dataset, collect, config.seed, chains, desk.progress(name))
        seconds = (time.monotonic() - start) / len(chains)
        for chain, (theta_SD, facts) in zip(chains, trained, strict=True):
            if chain in todo:
                note_seconds(run, f"chain-{chain:05d}", seconds)
                kept = gate.passing(collect, facts, manifest.facts["val_accuracy"])
                parts.write_part(folder, chain, subset, theta_SD[kept], [facts[i] for i in kept], recipe, stem)


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
