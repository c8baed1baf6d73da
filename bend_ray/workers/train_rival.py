"""evaluate, in Ray tasks: whole trainings to compare the ensemble with, each classifier a file of `rivals/`."""

import time
from typing import Any

import ray

from bend_ray.cluster import processes
from bend_ray.cluster.heartbeat import beating
from bend_ray.models import weights
from bend_ray.run import Run
from bend_ray.store.timings import note_seconds
from bend_ray.training import loop
from bend_ray.training.rivals import Rival


@ray.remote
def train_rival(run: Run, recipe: str, rival: Rival, heart: Any) -> None:
    """One whole training. A kill costs only those under way."""
    start, settings = time.monotonic(), run.config.collect
    with beating(heart) as beat:
        processes.threads(settings.cpus_per_worker)
        seed = rival.seed(run.config)
        begun = run.config.classifier.is_filled and not run.config.classifier.is_trained
        module = run.spec.build(seed, filled=begun).to(processes.device(settings.gpus_per_worker))
        if begun:  # one that comes trained would end as the base does
            weights.bring(module, run.config.classifier, run.dataset.preprocess)
        of_this = run.seeded(seed).but(progress=beat.progress(rival.name))
        loop.train(module, of_this, rival.name, bootstrap=rival.bootstrap)
        note_seconds(run.folder, rival.unit, time.monotonic() - start)
        rival.save(run.folder, module, recipe)
