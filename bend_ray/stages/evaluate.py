"""evaluate: `ensemble/`, `snapshots/`, `generator/` and `base/` in, `report/` out.

Every baseline is a generator like ours, sampled and scored by the same actors at the same number of members; rivals,
which are whole trainings in Ray tasks, are scored by them too.
"""

import json
import time
from typing import Any

from torch import Tensor

from bend_ray.cluster import failures
from bend_ray.cluster.heartbeat import run_tasks
from bend_ray.cluster.pool import pool
from bend_ray.data import strangers
from bend_ray.models.subset import Subset
from bend_ray.progress import Progress
from bend_ray.report import classes, metrics, text
from bend_ray.report import rivals as contenders
from bend_ray.report.flops import Flops
from bend_ray.report.rivals import Rows
from bend_ray.report.scored import Scored
from bend_ray.run import Run
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.store.kinds import ARTIFACTS, wanted
from bend_ray.store.timings import noted_seconds
from bend_ray.training import loop, rivals
from bend_ray.workers.evaluate import Evaluator
from bend_ray.workers.train_rival import train_rival


def execute(run: Run) -> Manifest:
    """Make the report of ``run``, or find it there whole. Prints its table. Returns its manifest."""
    inputs = _inputs(run)
    manifest = lineage.verified(run.folder, "report", run.config, inputs) or _make(run, inputs)
    print(text.table(json.loads((run.folder / "report").read("metrics.json"))))
    return manifest


def existing(run: Run) -> Manifest | None:
    """The report, if it is there whole."""
    return lineage.verified(run.folder, "report", run.config, _inputs(run))


def _inputs(run: Run) -> dict[str, str]:
    inputs = artifacts.inputs_of(run.folder, "report", run.config) | {"data": run.data_digest}
    if run.config.evaluate.strangers:
        sets = strangers.load_strangers(run.config.evaluate.strangers, run.dataset, run.seed)
        inputs["strangers"] = strangers.digest(sets)
    return inputs


def _make(run: Run, inputs: dict[str, str]) -> Manifest:
    from bend_ray.report import figures  # matplotlib: workers need not load it

    config, dataset = run.config, run.dataset
    train_rivals(run, artifacts.recipe("base", config, {"data": inputs["data"]}))
    start = time.monotonic()
    trained = {kind: of_kind for kind, of_kind in rivals.requested(config).items() if of_kind}
    networks = rivals.whole_networks(config)
    listed = (*metrics.SNAPSHOTS, "generated", *config.evaluate.baselines, *networks, *metrics.FITTED)
    names = [*dict.fromkeys(listed)]
    fitted = artifacts.described(run.folder / "generator", "generator").facts
    D, seen = Subset.from_json(fitted["subset"]).D, int(fitted["snapshots"])
    scored, novelty, points, flops = _score_all(run, names, seen)
    measured = metrics.assemble(config, dataset.name, dataset.classes, dataset.test.labels, scored, novelty, D, seen)
    train = dataset.rows_of_each(config.collect.unseen, run.seed)
    rows = Rows(config, dataset.test.labels, dataset.val.labels, train, flops)
    measured |= {"temperature": None, **contenders.measure(scored, rows), **classes.measure(scored, dataset)}
    measured["dropped"] = artifacts.described(run.folder / "snapshots", "snapshots").facts["dropped"]
    chosen = artifacts.described(run.folder / "ensemble", "ensemble").facts
    measured |= {key: chosen.get(key) for key in ("doubt_scale", "distance")}
    measured["chosen"] = {key: chosen[key] for key in ("keep", "candidates", "rejected", "spread")}
    measured["temperature"] = chosen.get("temperature")  # ensembles of 0.1 have none
    seconds = _seconds(run) | {"evaluate": time.monotonic() - start}
    noted = [noted_seconds(run.folder, [rival.unit]) for of_kind in trained.values() for rival in of_kind]
    # A rival that was brought here took no seconds here.
    measured["cost"] = metrics.cost(config, seconds, [spent for spent in noted if spent])
    folder = run.folder / "report"
    folder.write("metrics.json", (json.dumps(measured, indent=1) + "\n").encode())
    files = ["metrics.json", *figures.draw(folder, measured, scored, dataset.test.labels, points)]
    readme = text.readme(measured, files[1:])
    return artifacts.publish(run.folder, "report", config, inputs, {}, files, readme)


def _seconds(run: Run) -> dict[str, float]:
    """Of this run's units of work, by stage, base and cycles apart: of others that were deleted notes may be left."""
    kinds = wanted(run.config)
    return {
        artifact.cost or artifact.stage: noted_seconds(run.folder, artifact.timed(run.config) if kind in kinds else [])
        for kind, artifact in ARTIFACTS.items()
    }


def _score_all(
    run: Run, names: list[str], snapshots: int
) -> tuple[dict[str, Scored], dict[str, Any], dict[str, Tensor], Flops]:
    """Predictions of every set of classifiers that there is, novelty, the points of the map, and what things cost."""
    sample, scored = run.config.sample, {}
    size = (sample.actors, sample.cpus_per_actor, sample.gpus_per_actor)
    with (
        pool(Evaluator, *size, run, stall=run.config.cluster.stall) as actors,
        Progress("evaluate", "sets of classifiers", len(names)) as show,
    ):
        for count, (name, one) in enumerate(actors.map("score", names), 1):
            if one is not None:
                scored[name] = one
            show.update(count)
        ((novelty, points),) = actors.map("novelty", [run.seed])
        (flops,) = actors.map("flops", [snapshots])
    return scored, novelty, points, flops


def train_rivals(run: Run, recipe: str) -> None:
    """Train the rivals asked for that are not there. One that says nothing for `cluster.stall` seconds is ended and
    begun again.

    They follow from what the base follows from, and from nothing that comes after it: they stay when chains, generator
    or members change.
    """
    config, collect = run.config, run.config.collect
    every = [rival for of_kind in rivals.requested(config).values() for rival in of_kind]
    todo = [rival for rival in every if not rival.is_kept(run.folder, recipe)]
    if not todo:
        return
    steps = loop.steps_of(config.base, len(run.dataset.train))
    total, already = steps * len(every), steps * (len(every) - len(todo))
    task = train_rival.options(
        num_cpus=collect.cpus_per_worker, num_gpus=collect.gpus_per_worker, max_retries=failures.RETRIES
    )
    with Progress("evaluate", "steps of whole trainings", total, already) as show:
        run_tasks(task, show, config.cluster.stall, [(run, recipe, rival) for rival in todo], already)
