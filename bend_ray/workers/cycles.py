"""collect, in Ray's processes: cycles of the whole network after a base, the average of what they end with, and further
bases.

The first base's cycles are trained by all of Ray Train's workers together, each further base with its own cycles by a
task. Each end is a file, and so is each epoch of the training under way; what is done is not done again.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from torch import nn

from bend_ray import seeds
from bend_ray.cluster import processes
from bend_ray.cluster.heartbeat import beating
from bend_ray.models import base as bases
from bend_ray.models import weights
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


def checkpoint_of(run: Folder, recipe: str, unit: str) -> Checkpoint:
    """Where the training of a cycle or of a further base goes on from; ``unit``: see `bases.unit_of`."""
    return Checkpoint(run / bases.TRUNKS, recipe, f"epoch-{unit}")


def cycle_unit(cycle: int, base: int = 0) -> str:
    """What a cycle is called."""
    return bases.unit_of(base, numbered("cycle", cycle))


def finished(run: Folder, recipe: str, cycles: int, base: int = 0) -> int:
    """How many cycles after a base, of so many, have ended. Raises ArtifactError where one is of another recipe."""
    done = 0
    while done < cycles and is_done(run, recipe, bases.cycle_place(done, base)):
        done += 1
    return done


def is_done(run: Folder, recipe: str, place: tuple[str, str]) -> bool:
    """Whether a network is there. Raises ArtifactError where it is of another recipe."""
    folder, file = place
    if not (run / folder).exists(file):
        return False
    lineage.check_recipe(run / folder, file, read_note(run / folder, file), recipe)
    return True


def make_trunks(run: Run, inputs: dict[str, str], told: Callable[[str], ProgressCallback], is_first: bool) -> None:
    """Make `trunks/` of ``run``, whose training rows are the base's: all workers train each cycle together, from where
    the one before ended, and average the ends. Further bases are there already. ``told`` gives whom to tell of a
    cycle's steps."""
    from ray.train.collective import barrier, broadcast_from_rank_zero

    recipe, cycles = artifacts.recipe("trunks", run.config, inputs), run.config.cycles
    # One worker looks and tells, for two might see different things while a third writes.
    if broadcast_from_rank_zero(artifacts.read_manifest(run.folder / bases.TRUNKS, "trunks") is not None):
        return
    for cycle in range(broadcast_from_rank_zero(finished(run.folder, recipe, cycles)), cycles):
        _make_cycle(run.but(progress=told(cycle_unit(cycle))), recipe, cycle, is_first=is_first)
        barrier()
    # All of them average, for one that waits says nothing, and would be taken for one that hangs.
    quiet = run.but(progress=told(""))
    if cycles:
        _make_average(quiet, recipe, is_first=is_first)
        barrier()
    facts = {"networks": {file: _scores(_load(quiet, (folder, file)), quiet) for folder, file in networks(run)}}
    if is_first:
        _publish(run, inputs, recipe, facts)
    barrier()


def networks(run: Run) -> list[tuple[str, str]]:
    """Folder and file of all networks in `trunks/`."""
    config, places = run.config, list[tuple[str, str]]()
    for base in range(config.base.count):
        places += [bases.base_place(base)] * (base > 0)
        places += [bases.cycle_place(cycle, base) for cycle in range(config.cycles)]
        places += [bases.average_place(base)] * (config.cycles > 0)
    return places


@ray.remote
def make_base(run: Run, recipe: str, base: int, heart: Any) -> None:
    """A further base, its cycles and their average. All randomness follows from (seed, number of the base)."""
    with beating(heart) as beat:
        settings, start = run.config.collect, time.monotonic()
        processes.threads(settings.cpus_per_worker)
        of_base, _ = run.dataset.divided(settings.unseen, run.config.data.in_memory, run.seed)
        seeded = run.but(loaded=of_base, device=processes.device(settings.gpus_per_worker))
        seeded = seeded.seeded(seeds.seed_for(run.seed, bases.unit_of(base)) % 2**31)
        if not is_done(run.folder, recipe, bases.base_place(base)):
            module = seeded.spec.build(seeded.seed, filled=run.config.classifier.is_filled).to(seeded.device)
            weights.bring(module, run.config.classifier, run.dataset.preprocess)
            checkpoint = checkpoint_of(run.folder, recipe, bases.unit_of(base))
            loop.train(module, seeded.but(progress=beat.progress(bases.unit_of(base))), checkpoint=checkpoint)
            _save(seeded, module, bases.base_place(base), recipe)
            checkpoint.clear()
        for cycle in range(finished(run.folder, recipe, run.config.cycles, base), run.config.cycles):
            _make_cycle(seeded.but(progress=beat.progress(cycle_unit(cycle, base))), recipe, cycle, base)
        if run.config.cycles:
            _make_average(seeded.but(progress=beat.progress("")), recipe, base)
        note_seconds(run.folder, bases.unit_of(base), time.monotonic() - start)


def _make_cycle(run: Run, recipe: str, cycle: int, base: int = 0, is_first: bool = True) -> None:
    """One cycle, from where the one before it ended; the first worker keeps its end."""
    module = run.spec.build(run.seed, filled=True).to(run.device)
    folder, file = bases.cycle_place(cycle - 1, base) if cycle else bases.base_place(base)
    bases.read_into(module, run.folder / folder, file)
    checkpoint = checkpoint_of(run.folder, recipe, cycle_unit(cycle, base))
    seconds = train_cycle(module, run, cycle, checkpoint)
    if is_first:
        if not base:  # a further base is timed as a whole
            note_seconds(run.folder, cycle_unit(cycle), seconds)
        _save(run, module, bases.cycle_place(cycle, base), recipe)
        checkpoint.clear()


def train_cycle(module: nn.Module, run: Run, cycle: int, checkpoint: Checkpoint | None = None) -> float:
    """One cycle of all parameters of ``module``, in place, as `loop.train`."""
    config = run.config.model_copy(update={"base": run.config.base.cycle})
    return loop.train(module, run.but(config=config), numbered("cycle", cycle), checkpoint=checkpoint)


def _make_average(run: Run, recipe: str, base: int = 0, is_first: bool = True) -> None:
    """The average of what the cycles after a base ended with; the first worker keeps it."""
    began, module = time.monotonic(), averaged(run, base)
    if is_first:
        if not base:
            note_seconds(run.folder, "cycle-average", time.monotonic() - began)
        _save(run, module, bases.average_place(base), recipe)


def averaged(run: Run, base: int = 0) -> nn.Module:
    """The average of what the cycles after a base ended with."""

    def ends() -> Iterator[nn.Module]:
        for cycle in range(run.config.cycles):
            yield _load(run, bases.cycle_place(cycle, base))

    module = run.spec.build(run.seed, filled=True).to(run.device)
    average(module, ends(), run)
    return module


def _load(run: Run, place: tuple[str, str]) -> nn.Module:
    folder, file = place
    return bases.load(run.folder / folder, run.spec, run.device, file)


def _save(run: Run, module: nn.Module, place: tuple[str, str], recipe: str) -> None:
    folder, file = place
    bases.save(run.folder / folder, module, file, recipe)


def _scores(module: nn.Module, run: Run) -> dict[str, float]:
    val_loss, val_accuracy = loop.validate(module, run.dataset.val, run.dataset.preprocess)
    if run.progress is not None:
        run.progress(0, 1)
    return {"val_loss": val_loss, "val_accuracy": val_accuracy}


def _publish(run: Run, inputs: dict[str, str], recipe: str, facts: dict[str, Any]) -> None:
    listed = "".join(
        f"| `{name}` | {one['val_accuracy']:.4f} | {one['val_loss']:.4f} |\n" for name, one in facts["networks"].items()
    )
    cycles, count = run.config.cycles, run.config.base.count
    made = []
    if cycles:
        made.append(
            f"{counted(cycles, 'cycles')} of training the whole classifier on {run.dataset.name}, the first from the"
            " base, each other one from where the one before ended; and one network with the average of their weights,"
            " its batch-norm statistics estimated again on training rows."
        )
    if count > 1:
        with_cycles = ", each with cycles and an average of its own" if cycles else ""
        made.append(f"{counted(count - 1, 'bases')} more, trained from seeds of their own{with_cycles}.")
    readme = (
        f"# Trunks\n\n{' '.join(made)}\n\n| file | validation accuracy | loss, nats |\n|---|---:|---:|\n{listed}\n"
        "Each file holds parameters and buffers by name; `base/config.json` says what is built from them.\n"
    )
    artifacts.publish(run.folder, "trunks", run.config, inputs, facts, [file for _, file in networks(run)], readme)
    for cycle in range(cycles):  # a worker may have died before it did so
        checkpoint_of(run.folder, recipe, cycle_unit(cycle)).clear()
