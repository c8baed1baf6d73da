"""search, in Ray Tune's processes: one trial after another."""

import math
import time
from functools import lru_cache
from typing import Any

from ray import tune

from bend_ray.cluster import processes
from bend_ray.config import Config
from bend_ray.ensemble import plan
from bend_ray.ensemble.batch_norm import BatchNormReestimation
from bend_ray.ensemble.ensemble import make_trunk
from bend_ray.errors import BendError, ConfigError, TrainingError
from bend_ray.generator.denoiser import condition
from bend_ray.generator.generator import Generator
from bend_ray.models import base as bases
from bend_ray.models.base import ModelSpec
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import Run
from bend_ray.search import objective
from bend_ray.search.objective import Prepared
from bend_ray.search.study import LOOKS
from bend_ray.store import artifacts
from bend_ray.store.folders import Folder

FAILED = "failed"
"""What a trial reports in the place of metrics when it fails."""


@lru_cache(maxsize=4)
def classifier(
    where: str, config_json: str, subset: Subset, device: str
) -> tuple[SharedTrunk, BatchNormReestimation | None]:
    """The classifier of the run at ``where``, partitioned, once for a process; ``config_json`` without what trials
    vary."""
    run = Run(Config.model_validate_json(config_json), Folder(where), device)
    base, config = run.folder / "base", run.config
    spec = ModelSpec.from_json(artifacts.load(base, "base").facts, f"{base}/config.json")
    module = bases.load_trunk(run.folder, config, spec, device, subset=subset)
    reestimation = None
    if count := config.sample.reestimate_batch_norm:
        reestimation = BatchNormReestimation.of(module, subset, run.dataset, count, run.seed)
        subset = reestimation.subset
    return plan.pinned(make_trunk(module, subset, spec), config.ensemble), reestimation


def run_trial(values: dict[str, Any], run: Run, prepared: Prepared) -> None:
    """A trial whose error is a result, if its values or the classifier are at fault: what Tune sees fail is a process
    that died, and is tried again, or what no trial can do without (the store, the disk), and ends the search."""
    try:
        _trial(values, run, prepared)
    except OSError:
        raise
    except Exception as error:
        tune.report({FAILED: str(error) if isinstance(error, BendError) else f"{type(error).__name__}: {error}"})


def _trial(values: dict[str, Any], run: Run, prepared: Prepared) -> None:
    """One trial, in a process of Tune's: fit a generator, and report what its members are like at each look."""
    start = time.monotonic()
    try:
        config = run.config.with_keys({key: value for key, value in values.items() if key != "number"})
    except ValueError as error:
        raise ConfigError(f"these values do not go together ({' '.join(str(error).split())})") from None
    if config.diffusion.iterations < LOOKS:
        raise ConfigError(
            f"diffusion.iterations: {config.diffusion.iterations} is less than the {LOOKS} looks at a trial"
        )
    processes.threads(config.search.cpus_per_trial)
    device = processes.device(config.search.gpus_per_trial)
    same = run.config.with_keys({"sample.reestimate_batch_norm": config.sample.reestimate_batch_norm})
    trunk, reestimation = classifier(run.folder.address, same.model_dump_json(), prepared.subset, str(device))
    span, c_SR = prepared.coordinates(config.autoencoder)

    def progress(done: int, total: int) -> None:
        if time.monotonic() - start > config.search.timeout:
            raise TrainingError(
                f"not done after {config.search.timeout:g} s (search.timeout), at step {done} of {total}"
            )

    def report(generator: Generator) -> None:
        measured = objective.measure(generator, prepared, trunk, config, reestimation)
        if bad := [name for name, value in measured.items() if not math.isfinite(value)]:
            raise TrainingError(f"{bad[0]} is not finite; lower diffusion.lr")
        tune.report(measured | {"seconds": time.monotonic() - start})

    of_this = run.but(config=config, device=device, progress=progress)
    Generator.fit_in(prepared.subset, span, c_SR, of_this, condition(prepared.facts), report, LOOKS)
