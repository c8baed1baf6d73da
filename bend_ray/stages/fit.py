"""fit: `snapshots/` in, `generator/` out.

One Ray task (it may ask for a GPU) fits the span, the autoencoder and the diffusion model. It takes seconds to minutes,
so a killed fit is begun again; the artifact appears when it is whole.
"""

from typing import Any

from bend_ray.cluster import failures
from bend_ray.cluster.heartbeat import run_task
from bend_ray.config import Config
from bend_ray.generator.generator import FILE
from bend_ray.progress import Progress
from bend_ray.run import Run
from bend_ray.store import artifacts, lineage
from bend_ray.store.artifacts import Manifest
from bend_ray.workers.fit import fit


def execute(run: Run) -> Manifest:
    """Make the generator of ``run``, or find it there whole. Returns its manifest."""
    if (whole := existing(run)) is not None:
        return whole
    config, snapshots = run.config, artifacts.described(run.folder / "snapshots", "snapshots")
    total = config.autoencoder.iterations + config.diffusion.iterations
    with Progress("fit", "iterations", total) as show:
        # One core: at these sizes more threads only wait for each other.
        task = fit.options(num_cpus=1, num_gpus=config.diffusion.gpus, max_retries=failures.RETRIES)
        facts: dict[str, Any] = run_task(task, show, config.cluster.stall, run)
        show.line(
            f"rank {facts['rank']}, latent {facts['latent']}; unexplained variance {facts['unexplained_train']:.2e} of"
            f" the snapshots fitted, {facts['unexplained_held_out']:.2f} of the chains withheld"
        )
    facts |= {"subset": snapshots.facts["subset"]}
    inputs = {"snapshots": snapshots.digest}
    return artifacts.publish(run.folder, "generator", config, inputs, facts, [FILE], _readme(config, facts))


def existing(run: Run) -> Manifest | None:
    """The generator, if it is there whole."""
    return lineage.verified(
        run.folder, "generator", run.config, artifacts.inputs_of(run.folder, "generator", run.config)
    )


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
