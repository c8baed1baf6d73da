"""collect: data and classifier in, `base/`, `trunks/` (where cycles are asked for) and `snapshots/` out.

A Ray Train job: the workers train the base classifier and its cycles together, then share out the chains. Each epoch
leaves a checkpoint, each finished cycle is a file, each finished chain is one Parquet shard; a worker, driver or
machine that dies costs what was under way, and the same command goes on. Where chains end in different modes, a Ray
task then aligns them, and what it was given goes.
"""

import math
import uuid
from typing import Any

import ray

from bend_ray.cluster import connection, failures, private
from bend_ray.cluster.heartbeat import heartbeat, run_task, run_tasks
from bend_ray.ensemble import answer_cost
from bend_ray.models import base as bases
from bend_ray.models import checkpoints, hub
from bend_ray.progress import Progress, counted, say
from bend_ray.run import Run
from bend_ray.snapshots import accuracy_filter, parquet
from bend_ray.snapshots import chains as chain_training
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.store.kinds import ARTIFACTS, numbered, trunk_kind, wanted
from bend_ray.training import loop
from bend_ray.workers import cycles as trunks
from bend_ray.workers.align import align_snapshots
from bend_ray.workers.collect import Job, checkpoint_of, collect, inputs_after_base, stem_of


def execute(run: Run) -> Manifest:
    """Make the snapshots of ``run``, or find them there whole. Returns their manifest."""
    if (whole := existing(run)) is not None:
        return whole
    config, base_inputs = run.config, inputs_of_base(run)
    total, done, begun, status = _progress(run, base_inputs)
    already = done + sum(begun.values())
    subset = run.subset or answer_cost.settled(run).choice.subset
    _make_bases(run, base_inputs)
    with Progress("collect", "steps", total, already) as show:
        if status:
            show.line(status)
        with heartbeat(show, config.cluster.stall, already) as heart:
            _train(Job(run, base_inputs, heart, begun, subset))
    inputs = inputs_after_base(run, "snapshots", base_inputs)
    manifest = lineage.verified(run.folder, "snapshots", config, inputs)  # cycles may come later
    if manifest is None:
        manifest = _publish(run, inputs, _align(run, artifacts.recipe("snapshots", config, inputs)))
    say("collect", accuracy_filter.describe(config.collect, manifest.facts["dropped"]))
    return manifest


def existing(run: Run) -> Manifest | None:
    """The snapshots, if they and what they are made from are there whole."""
    base_inputs, manifest = inputs_of_base(run), None
    for kind in (kind for kind in wanted(run.config) if ARTIFACTS[kind].stage == "collect"):
        inputs = base_inputs if kind == "base" else inputs_after_base(run, kind, base_inputs)
        manifest = lineage.verified(run.folder, kind, run.config, inputs)
        if manifest is None:
            return None
    return manifest


def _progress(run: Run, base_inputs: dict[str, str]) -> tuple[int, int, dict[str, int], str]:
    """Steps in all, those of what is done, those of a training that is begun, and in words what is there."""
    config, collect = run.config, run.config.collect
    cycles, (base_steps, cycle_steps, chain_steps) = config.cycles, _steps(run)
    total = base_steps + cycles * cycle_steps + collect.chains * chain_steps
    if lineage.verified(run.folder, "base", config, base_inputs) is None:
        epochs = checkpoint_of(run, base_inputs).epochs()
        status = f"the base has {epochs} of {_epochs(config.base.epochs)} behind it" if epochs else ""
        return total, 0, {"base": round(base_steps * epochs / config.base.epochs)}, status
    recipe = artifacts.recipe("trunks", config, inputs_after_base(run, "trunks", base_inputs))
    ended, begun = trunks.finished(run.folder, recipe, cycles), {}
    status = "the base is there already, and "
    if cycles:
        status += f"{ended} of {counted(cycles, 'cycles')} after it, and "
    if ended < cycles and (epochs := trunks.checkpoint_of(run.folder, recipe, trunks.cycle_unit(ended)).epochs()):
        begun = {numbered("cycle", ended): round(cycle_steps * epochs / config.base.cycle.epochs)}
    chains = _chains_done(run, base_inputs)
    status += f"{chains} of {counted(collect.chains, 'chains')}"
    return total, base_steps + ended * cycle_steps + chains * chain_steps, begun, status


def _epochs(epochs: int | float) -> str:
    return f"{epochs:g} epoch{'s' * (epochs != 1)}"


def _chains_done(run: Run, base_inputs: dict[str, str]) -> int:
    """How many chains have ended."""
    config, folder = run.config, run.folder / "snapshots"
    if artifacts.read_manifest(run.folder / trunk_kind(config), trunk_kind(config)) is None:
        return 0
    inputs = inputs_after_base(run, "snapshots", base_inputs)
    if lineage.find(run.folder, "snapshots", config, inputs) is not None:
        return config.collect.chains
    recipe, stem = artifacts.recipe("snapshots", config, inputs), stem_of(config)
    chains = range(config.collect.chains)
    return sum(folder.each(lambda chain: parquet.shard_is_done(folder, chain, recipe, stem), chains))


def inputs_of_base(run: Run) -> dict[str, str]:
    """Digests of the data and, where the user brings a trained classifier, of its file."""
    inputs = {"data": run.data_digest}
    if run.config.classifier.weights:
        inputs["weights"] = checkpoints.digest(run.config.classifier.weights)
    if run.config.classifier.hub:
        inputs["hub"] = checkpoints.digest(str(hub.folder(run.config.classifier.hub)))
    if run.config.collect.unseen:
        inputs["collect.unseen"] = str(run.config.collect.unseen)
    return inputs


def _steps(run: Run) -> tuple[int, int, int]:
    """Steps of the base's training, of one cycle and of one chain, for the progress line."""
    config = run.config
    rows, of_chains = run.dataset.rows_of_each(config.collect.unseen, run.seed)
    base = 0 if config.classifier.is_trained else loop.steps_of(config.base, rows)
    return base, loop.steps_of(config.base.cycle, rows), chain_training.steps_of(config.collect, of_chains)


def _make_bases(run: Run, base_inputs: dict[str, str]) -> None:
    """Make the further bases of ``base.count`` that are not there, a task each: they, their cycles and the average of
    these. One that says nothing for `cluster.stall` seconds is ended and begun again."""
    config, collect = run.config, run.config.collect
    if config.base.count == 1 or artifacts.read_manifest(run.folder / "trunks", "trunks") is not None:
        return
    recipe = artifacts.recipe("trunks", config, base_inputs)  # they want no first base
    last = bases.average_place if config.cycles else bases.base_place
    todo = [base for base in range(1, config.base.count) if not trunks.is_done(run.folder, recipe, last(base))]
    if not todo:
        return
    base_steps, cycle_steps, _ = _steps(run)
    steps = base_steps + config.cycles * cycle_steps
    total, already = steps * (config.base.count - 1), steps * (config.base.count - 1 - len(todo))
    task = trunks.make_base.options(
        num_cpus=collect.cpus_per_worker, num_gpus=collect.gpus_per_worker, max_retries=failures.RETRIES
    )
    with Progress("collect", "steps of further bases", total, already) as show:
        run_tasks(task, show, config.cluster.stall, [(run, recipe, base) for base in todo], already)


def _train(job: Job) -> None:
    """A Ray Train job that makes `base/`, `trunks/` and the shards of `snapshots/`, or what is missing of them.

    Raises a BendError (see `failures.plainly`) where a worker met one, or Ray gives up.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    settings = job.run.config.collect
    gpu = settings.gpus_per_worker
    if isinstance(settings.workers, tuple) and not connection.live_drivers():
        private.forget_requests()  # of a run that was killed here a moment ago
    trainer = private.stoppable_trainer()(
        collect,
        train_loop_config={"job": job},
        # Workers that share a GPU cannot use NCCL.
        torch_config=TorchConfig(backend="nccl" if gpu and gpu == int(gpu) else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,  # type: ignore[arg-type]  # two are elastic
            use_gpu=gpu > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": gpu} if gpu else {}),
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,  # a name seen before would make Ray look for its own checkpoints
            storage_path=connection.scratch(),
            failure_config=FailureConfig(  # type: ignore[call-arg]  # of Train V2, which the types do not know
                max_failures=failures.RETRIES,
                controller_failure_limit=10 * failures.RETRIES,  # groups that cannot start
            ),
        ),
    )
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise failures.plainly(error) from error
    except KeyboardInterrupt:
        if trainer.controller is not None:
            ray.kill(trainer.controller)  # and with it its workers
        raise


def _align(run: Run, recipe: str) -> dict[str, Any]:
    """Make the shards of ``snapshots/`` from the raw ones. Returns what is to be known of it; nothing where no
    alignment was asked for."""
    collect = run.config.collect
    if not collect.aligned:
        return {}
    task = align_snapshots.options(num_cpus=collect.cpus_per_worker, max_retries=failures.RETRIES)
    with Progress("collect", "matches of chains", 2 * collect.seen_chains) as show:
        facts: dict[str, Any] = run_task(task, show, run.config.cluster.stall, run, recipe)
        moved, left = facts["aligned"], facts["not_aligned"]
        show.line(f"{counted(len(moved), 'groups')} of hidden units permuted ({', '.join(map(str, moved)) or 'none'})")
        for sentence in left:
            show.line(f"left as they are: {sentence}")
    return facts


def _publish(run: Run, inputs: dict[str, str], aligned: dict[str, Any]) -> Manifest:
    collect, folder = run.config.collect, run.folder / "snapshots"
    subset, kept = parquet.read_facts(folder, collect.chains)
    accuracy_filter.check_left(collect, [fact.chain for fact in kept], run.folder, run.config.trunks)
    accuracy = [fact.val_accuracy for fact in kept]
    mean = math.fsum(accuracy) / len(accuracy)
    dropped = collect.chains * collect.snapshots_per_chain - len(kept)
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
        f"{collect.chains} chains of {collect.snapshots_per_chain}, one Parquet shard a chain{_on_trunks(run)}. Mean"
        f" validation accuracy {mean:.4f}; {accuracy_filter.describe(collect, dropped)}. Withheld from the generator:"
        f" the last {counted(collect.held_out, 'chains')}.{_alignment_in_words(aligned)}\n\n"
        '```python\nimport pandas\npandas.read_parquet("snapshots")  # chain, step, seed, val_loss, val_accuracy, '
        "theta.<parameter>...\n```\n"
    )
    files = [parquet.shard_name(chain) for chain in range(collect.chains)]
    manifest = artifacts.publish(run.folder, "snapshots", run.config, inputs, facts, files, readme)
    for _ in folder.each(folder.delete, [name for name in folder.list() if name.startswith(f"{parquet.RAW}-")]):
        pass
    return manifest


def _on_trunks(run: Run) -> str:
    """Which chains are on which trunk, in a README; nothing where all are on one."""
    T = run.config.trunks
    if T == 1:
        return ""
    files = ", ".join(f"`{folder}/{file}`" for folder, file in bases.trunk_places(run.config))
    return f", chain i on trunk i modulo {T} ({files})"


def _alignment_in_words(facts: dict[str, Any]) -> str:
    """What `_align` returned, as further sentences of a README."""
    if not facts:
        return ""
    return (
        " Hidden units of each chain were permuted to match those of the others, which changes no function:"
        f" {counted(len(facts['aligned']), 'groups')} of {', '.join(map(str, facts['aligned'])) or 'none'}."
        + "".join(f" Left as it was: {sentence}." for sentence in facts["not_aligned"])
    )
