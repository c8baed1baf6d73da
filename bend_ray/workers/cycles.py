"""collect, in Ray Train's workers: cycles of the whole network after the base, and the average of what they end with.

Each end is a file, and so is each epoch of the cycle under way; what is done is not done again.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from bend_ray.models import base as bases
from bend_ray.progress import ProgressCallback, counted
from bend_ray.run import Run
from bend_ray.store import artifacts, lineage
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered
from bend_ray.store.tensors import read_note
from bend_ray.store.timings import note_seconds
from bend_ray.training import loop
from bend_ray.training.average import average
from bend_ray.training.checkpoint import Checkpoint


def checkpoint_of(run: Folder, recipe: str, cycle: int) -> Checkpoint:
    """Where the training of a cycle goes on from."""
    return Checkpoint(run / "trunks", recipe, numbered("epoch", cycle))


def finished(run: Folder, recipe: str, cycles: int) -> int:
    """How many cycles, of so many, have ended. Raises ArtifactError where one is of another recipe."""
    folder, done = run / "trunks", 0
    while done < cycles and folder.exists(bases.cycle_file(done)):
        lineage.check_recipe(folder, bases.cycle_file(done), read_note(folder, bases.cycle_file(done)), recipe)
        done += 1
    return done


def make_trunks(run: Run, inputs: dict[str, str], told: Callable[[str], ProgressCallback], is_first: bool) -> None:
    """Make `trunks/` of ``run``, whose training rows are the base's: all workers train each cycle together, from where
    the one before ended, and average the ends. ``told`` gives whom to tell of a cycle's steps."""
    from ray.train.collective import barrier, broadcast_from_rank_zero

    folder, settings = run.folder / "trunks", run.config.base
    recipe = artifacts.recipe("trunks", run.config, inputs)
    # One worker looks and tells, for two might see different things while a third writes.
    if broadcast_from_rank_zero(artifacts.read_manifest(folder, "trunks") is not None):
        return
    for cycle in range(broadcast_from_rank_zero(finished(run.folder, recipe, settings.cycles)), settings.cycles):
        start = (folder, bases.cycle_file(cycle - 1)) if cycle else (run.folder / "base", bases.FILE)
        module = run.spec.build(run.seed).to(run.device)
        bases.read_into(module, *start)
        checkpoint = checkpoint_of(run.folder, recipe, cycle)
        seconds = train_cycle(module, run.but(progress=told(numbered("cycle", cycle))), cycle, checkpoint)
        if is_first:
            note_seconds(run.folder, numbered("cycle", cycle), seconds)
            bases.save(folder, module, bases.cycle_file(cycle), recipe)
            checkpoint.clear()
        barrier()
    # All of them average, for one that waits says nothing, and would be taken for one that hangs.
    began, (module, facts) = time.monotonic(), averaged(run.but(progress=told("")))
    if is_first:
        note_seconds(run.folder, "cycle-average", time.monotonic() - began)
        bases.save(folder, module, bases.AVERAGE, recipe)
        _publish(run, inputs, recipe, facts)
    barrier()


def train_cycle(module: nn.Module, run: Run, cycle: int, checkpoint: Checkpoint | None = None) -> float:
    """One cycle of all parameters of ``module``, in place, as `loop.train`."""
    config = run.config.model_copy(update={"base": run.config.base.cycle})
    return loop.train(module, run.but(config=config), numbered("cycle", cycle), checkpoint=checkpoint)


def averaged(run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """The average of what the cycles of ``run`` ended with, and how good it and each of them are on validation rows."""
    scores: list[dict[str, float]] = []

    def ends() -> Iterator[nn.Module]:
        for cycle in range(run.config.base.cycles):
            end = bases.load(run.folder / "trunks", run.spec, run.device, bases.cycle_file(cycle))
            scores.append(_scores(end, run))
            yield end

    module = run.spec.build(run.seed).to(run.device)
    average(module, ends(), run)
    return module, {**_scores(module, run), "cycles": scores}


def _scores(module: nn.Module, run: Run) -> dict[str, float]:
    val_loss, val_accuracy = loop.validate(module, run.dataset.val, run.dataset.preprocess)
    if run.progress is not None:
        run.progress(0, 1)
    return {"val_loss": val_loss, "val_accuracy": val_accuracy}


def _publish(run: Run, inputs: dict[str, str], recipe: str, facts: dict[str, Any]) -> None:
    files = [bases.cycle_file(cycle) for cycle in range(run.config.base.cycles)]
    listed = "".join(
        f"| `{name}` | {one['val_accuracy']:.4f} | {one['val_loss']:.4f} |\n"
        for name, one in (*zip(files, facts["cycles"], strict=True), (bases.AVERAGE, facts))
    )
    readme = (
        f"# Trunks\n\n{counted(len(files), 'cycles')} of training the whole classifier on {run.dataset.name}, the first"
        " from the base, each other one from where the one before ended; and one network with the average of their"
        " weights, its batch-norm statistics estimated again on training rows.\n\n"
        f"| file | validation accuracy | loss, nats |\n|---|---:|---:|\n{listed}\n"
        "Each file holds parameters and buffers by name; `base/config.json` says what is built from them.\n"
    )
    artifacts.publish(run.folder, "trunks", run.config, inputs, facts, [*files, bases.AVERAGE], readme)
    for cycle in range(len(files)):  # a worker may have died before it did so
        checkpoint_of(run.folder, recipe, cycle).clear()
