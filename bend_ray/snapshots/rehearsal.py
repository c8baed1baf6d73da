"""The dry run's rehearsal: one step of training, of validation and of a chain, on a few rows, before any worker starts.

An error that only training meets is then said at once, and what training cannot promise for a classifier (the same bits
on any number of workers, a network that can be read back) is refused by name.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bend_ray.data.images import Split
from bend_ray.errors import ModelError
from bend_ray.models import faithful, faults
from bend_ray.models.trunk import SharedTrunk
from bend_ray.run import NOWHERE, Run
from bend_ray.snapshots import chains as chain_training
from bend_ray.snapshots.features import Tails
from bend_ray.training import class_weights, loop, trained

ROWS = 15
"""Rows of each split, or what a step of all shards needs: they do not divide into two alike, so that what takes its
shape from a batch shows."""
CHAINS = 2
"""Chains that are tried at once, where they train at once."""
UNIT = ("base", 0, 0)

Make = Callable[[], nn.Module]
"""Makes the classifier anew."""


def few(run: Run) -> Run:
    """``run`` on a few rows of all classes, with one step of training and one of each chain."""
    dataset, base, collect = run.dataset, run.config.base, run.config.collect
    most = min(base.batch_size, max(ROWS, 2 * base.shards + 1))
    train, val = _spread(dataset.train, most), _spread(dataset.val, most)
    one_step = {"epochs": 1, "batch_size": max(2, len(train)), "class_weights": _weights(run)}
    of_chain = {"epochs": 1e-9, "snapshots_per_chain": 1, "batch_size": min(collect.batch_size, len(train))}
    config = run.config.model_copy(
        update={"base": base.model_copy(update=one_step), "collect": collect.model_copy(update=of_chain)}
    )
    return run.but(config=config, folder=NOWHERE, loaded=replace(dataset, train=train, val=val), progress=None)


def _weights(run: Run) -> class_weights.Weights:
    """Of classes by all rows, for few may have none of some."""
    weight_K = class_weights.of(run.config.base.class_weights, run.dataset)
    return "none" if weight_K is None else tuple(weight_K.tolist())


def _spread(rows: Split, most: int) -> Split:
    """At most so many rows, of as many classes as can be."""
    by_class = rows.labels.argsort(stable=True)
    return rows.take(by_class[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()])


def inputs(few_rows: Run) -> Tensor:
    """What a classifier is fed of these rows."""
    return few_rows.dataset.preprocess(few_rows.dataset.train.images)


def training(run: Run, make: Make) -> nn.Module:
    """What ``make`` makes after one step of training and of validation, with the rows and settings of ``run``.

    Raises ModelError where a step fails, writes into parameters, or has gradients that are not finite.
    """
    with faults.located(lambda: _one_backward(make(), run)):
        _check_backward(make(), run)
    module = make()
    with faults.said("training"):
        loop.train(module, run)
    loop.validate(module, run.dataset.val, run.dataset.preprocess)
    if wrong := [name for name, value in module.named_parameters() if not _is_finite(value)]:
        raise ModelError(f"training: {wrong[0]!r} is not finite after one step; lower base.lr, or mend the classifier")
    return module


def _one_backward(module: nn.Module, run: Run) -> Tensor:
    """Loss of the first shard, its gradients left in ``module``."""
    base, rows = run.config.base, torch.arange(len(run.dataset.train))
    trained.begin(module, base)
    return loop.backward(module, run, rows, class_weights.of(base.class_weights, run.dataset), UNIT)


def _check_backward(module: nn.Module, run: Run) -> None:
    """Look at what one shard leaves in ``module``."""
    held, before = dict(module.named_parameters()), faithful.values_of(module)
    loss = _one_backward(module, run)
    after, changed = dict(module.named_parameters()), faithful.changes(before, module)
    if written := [name for name in held if name in changed or after.get(name) is not held[name]]:
        raise ModelError(
            f"the classifier's forward pass in training mode writes into its parameter {written[0]!r}: each worker"
            " would write by the rows that it sees, and the base would depend on how many there are; hold it as a"
            " buffer (register_buffer), or write to it in __init__ alone"
        )
    if not torch.isfinite(loss):
        raise ModelError(f"training: the loss of the first step is {float(loss)}; mend the classifier")
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    if not gradients:
        raise ModelError("training: the loss reaches no parameter, so none would be trained; mend the classifier")
    if wrong := [name for name, value in gradients.items() if not _is_finite(value.to_dense())]:
        where = faults.forward_place(lambda: _one_backward(module, run), nan=True)
        raise ModelError(
            f"training: the gradient of {wrong[0]!r} is not finite in the first step{where}; mend the classifier"
        )


def _is_finite(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())


def chain(run: Run, module: nn.Module, cut: SharedTrunk, make: Make) -> None:
    """One step and the validation of chains on ``cut``, that of ``module``, with the rows and settings of ``run``.

    Raises ModelError where a step fails, or where members or chains would not follow their parameters
    (`faithful.check`).
    """
    frozen_by_tails = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    faithful.check(module, cut, make, inputs(run))
    try:
        tails = Tails.of(module, cut.subset, run, cut)
        if tails.trunk.plan != cut.plan:  # chains run the whole classifier, members do not
            faithful.check(module, tails.trunk, make, inputs(run))
        with faults.located(lambda: _one_chain_step(run, module, tails)), faults.said("a chain"):
            _one_chain_step(run, module, tails)
    finally:
        for parameter, required in frozen_by_tails:
            parameter.requires_grad_(required)


def _one_chain_step(run: Run, module: nn.Module, tails: Tails) -> None:
    chains = range(min(CHAINS, tails.at_once))
    start_CD = tails.trunk.subset.take(module).expand(len(chains), -1)
    chain_training.run_chains(tails, start_CD, run, chains)
