"""fit: `snapshots/` in, `generator/` out.

One Ray task (it may ask for a GPU) fits the span, the autoencoder and the diffusion model. It takes seconds to minutes,
so a killed fit is begun again; the artifact appears when it is whole.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from torch import Tensor

from bend_ray import artifacts, cluster, lineage
from bend_ray.artifacts import Manifest
from bend_ray.board import reporting, watched
from bend_ray.config import Config
from bend_ray.data.datasets import Dataset
from bend_ray.folders import Folder
from bend_ray.generator.generator import FILE, Generator
from bend_ray.generator.span import Blocks
from bend_ray.progress import Progress
from bend_ray.tensors import write_tensors
from bend_ray.timings import note_seconds
from bend_ray.weights import parts
from bend_ray.weights.snapshots import seen_of


def run(config: Config, run: Folder, dataset: Dataset) -> Manifest:
    """Make the generator of ``config`` in ``run``, or find it there whole. Returns its manifest."""
    if (whole := found(config, run, dataset)) is not None:
        return whole
    snapshots = artifacts.described(run / "snapshots", "snapshots")
    total = config.autoencoder.iterations + config.diffusion.iterations
    with Progress("fit", "iterations", total) as show:
        # One core: at these sizes more threads only wait for each other.
        task = _fit.options(num_cpus=1, num_gpus=config.diffusion.gpus, max_retries=cluster.RETRIES)
        facts: dict[str, Any] = watched(task, show, config.cluster.stall, config.model_dump(mode="json"), run.address)
        show.line(
            f"rank {facts['rank']}, latent {facts['latent']}; unexplained variance {facts['unexplained_train']:.2e} of"
            f" the snapshots fitted, {facts['unexplained_held_out']:.2f} of the chains withheld"
        )
    facts |= {"subset": snapshots.facts["subset"]}
    inputs = {"snapshots": snapshots.digest}
    return artifacts.publish(run, "generator", config, inputs, facts, [FILE], _readme(config, facts))


def found(config: Config, run: Folder, dataset: Dataset) -> Manifest | None:
    """The generator, if it is there whole."""
    return lineage.there(run, "generator", config, {"snapshots": artifacts.load(run / "snapshots", "snapshots").digest})


@ray.remote
def _fit(config_json: dict[str, Any], where: str, said: Any) -> dict[str, Any]:
    with reporting(said) as desk:
        config, run = Config.model_validate(config_json), Folder(where)
        cluster.threads(1)
        start = time.monotonic()
        snapshots = parts.Parts.open(run / "snapshots", config.collect.chains)
        generator = Generator.fit(
            snapshots.subset,
            _told(snapshots, desk.progress("")),
            snapshots.facts,
            len(snapshots.facts) - seen_of(snapshots.facts, config.collect.seen_chains),
            config.autoencoder,
            config.diffusion,
            config.seed,
            cluster.device(config.diffusion.gpus),
            desk.progress("fit"),
        )
        note_seconds(run, "fit", time.monotonic() - start)
        write_tensors(run / "generator", FILE, generator.state())
        return generator.facts


def _told(blocks: Blocks, alive: Callable[[int, int], None]) -> Blocks:
    """``blocks``, and a sign of life for each: a pass over all of them may take long."""

    def told() -> Iterator[tuple[str, Tensor]]:
        for block in blocks():
            alive(0, 1)
            yield block

    return told


def _readme(config: Config, facts: dict[str, Any]) -> str:
    diffusion = config.diffusion
    model = "rectified flow"
    if diffusion.objective == "ddpm":
        model = f"DDPM, {diffusion.steps} steps, {diffusion.schedule} schedule, predicts {diffusion.prediction}"
    space = (
        "coordinates in the span of the snapshots" if config.autoencoder.kind == "span" else "standardised parameters"
    )
    return (
        f"# The generator\n\nNoise -> {facts['latent']} latents ({model}) -> {facts['rank']} {space} (autoencoder) ->"
        f" parameters.\n\nUnexplained variance: {facts['unexplained_train']:.3e} of the snapshots it was fitted on,"
        f" {facts['unexplained_held_out']:.3f} of"
        " whole chains it never saw (near 1: each chain is a direction of its own).\n"
        + (
            "\nMembers are combinations of the snapshots, so the generator needs `snapshots/` beside it.\n"
            if config.autoencoder.kind == "span"
            else ""
        )
    )
