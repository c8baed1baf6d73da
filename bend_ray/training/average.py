"""One network from several that training ended with: their weights averaged (SWA: Izmailov et al. 2018), and what
depends on weights worked out anew."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bend_ray import seeds
from bend_ray.models import faithful
from bend_ray.models.subset import BATCH_NORMS
from bend_ray.run import Run
from bend_ray.training import loop, trained

ROWS = 256
"""Training rows of one batch."""
POWER_ITERATIONS = 100
"""How often parametrizations with a state of their own run: a singular vector wants many where two values are near."""


@seeds.seeded(0, "average")
@torch.no_grad()
def average(module: nn.Module, ends: Iterable[nn.Module], run: Run) -> None:
    """Make ``module`` the average of ``ends``, which are of its kind, in eval mode. Each is asked for once;
    ``run.progress`` counts batches of rows.

    parameters           their mean, summed in float64 (complex128); one that is the same in all ends stays as it is
    batch norms          statistics of the training rows of ``run`` as they are, unless training leaves them: see
                         `_reestimate`
    spectral norms       power iterations from the vectors of the last of ``ends``: an average of singular vectors of
                         several matrices is none of their average
    all other buffers    those of the last of ``ends``
    """
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    moved: set[str] = set()
    count = 0
    for end in ends:
        for name, value in end.named_parameters():
            exact = value.to(torch.complex128 if value.is_complex() else torch.float64)
            sums[name] = sums.get(name, torch.zeros_like(exact)) + exact
            if not torch.equal(value, first.setdefault(name, value)):
                moved.add(name)
        last, count = end, count + 1
    for name, parameter in module.named_parameters():
        parameter.copy_(sums[name] / count if name in moved else first[name])
    for buffer, of_last in zip(module.buffers(), last.buffers(), strict=True):
        buffer.copy_(of_last)
    faithful.settle(module)
    _iterate(module)
    _reestimate(module, run)


def _iterate(module: nn.Module) -> None:
    """Run all parametrizations in training mode, where those that have a state (spectral norm) go on with it."""
    for child in module.modules():
        if parametrize.is_parametrized(child):
            parametrizations = child.get_submodule("parametrizations").train()
            for name, _ in parametrizations.named_children():
                for _ in range(POWER_ITERATIONS):
                    getattr(child, name)
            parametrizations.eval()


def _reestimate(module: nn.Module, run: Run) -> None:
    """Statistics of batch norms, those that move in training, from one pass over the training rows, in batches that
    count alike and by which each batch norm normalises meanwhile: torch's `swa_utils.update_bn`, but all else (dropout)
    is in eval mode."""
    trained.begin(module, run.config.base)
    norms = [
        child
        for child in module.modules()
        if isinstance(child, BATCH_NORMS) and child.running_mean is not None and child.training
    ]
    module.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    rows, device = run.dataset.train, next(module.parameters()).device
    order = loop.batches(len(rows), ROWS, seeds.generator_for(run.seed, "average", "batches"))
    count = max(1, len(rows) // ROWS)
    for done, index in enumerate(itertools.islice(order, count), 1):
        module(run.dataset.preprocess(rows.images[index].to(device)))
        if run.progress is not None:
            run.progress(done, count)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
