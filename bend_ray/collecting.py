"""What Ray Train runs for collect: workers that train the base classifier together, then share out the chains.

What is done lies in files (checkpoints of the base, one Parquet part a chain), and is not done again.
"""

import time
import uuid
from typing import Any

import ray
from torch import nn

from bend_ray import artifacts, cluster
from bend_ray.board import Desk, board, reporting
from bend_ray.config import Config
from bend_ray.data import base as bases
from bend_ray.data import classifiers, training
from bend_ray.data.checkpoint import Checkpoint
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.folders import Folder
from bend_ray.progress import Progress
from bend_ray.timings import note_seconds, numbered
from bend_ray.weights import chains as chain_training
from bend_ray.weights import gate, parts
from bend_ray.weights import subset as subsets
from bend_ray.weights.features import Tails


def checkpoint_of(config: Config, run: Folder, inputs: dict[str, str]) -> Checkpoint:
    """Where the base's training goes on from; ``inputs`` are those of the base."""
    return Checkpoint(run / "base", artifacts.recipe("base", config, inputs))


def stem_of(config: Config) -> str:
    """What chains' files are called while they are collected."""
    return parts.RAW if config.collect.aligned else parts.STEM


def train(config: Config, run: Folder, inputs: dict[str, str], show: Progress, already: int, begun: int) -> None:
    """A Ray Train job that makes `base/` and the parts of `snapshots/`, or what is missing of them.

    Of the steps that are ``already`` done ``begun`` are the base's. Raises a BendError (see `cluster.plainly`)
    where a worker met one, or Ray gives up.
    """
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
        first, checkpoint = get_context().get_world_rank() == 0, checkpoint_of(config, run, job["inputs"])
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
    folder, stem, collect = run / "snapshots", stem_of(config), config.collect
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
                note_seconds(run, numbered("chain", chain), seconds)
                kept = gate.passing(collect, facts, manifest.facts["val_accuracy"])
                parts.write_part(folder, chain, subset, theta_SD[kept], [facts[i] for i in kept], recipe, stem)
