"""What chains train on: rows of the data as the trunk gives them, kept where that halves the work of a step.

Everything before the subset is frozen, so a row's features (what the trunk gives for it) are the same in all chains and
epochs. A step through the whole classifier costs its forward pass and the tail's backward pass, about twice the tail's
forward one; a step on kept features costs three times the tail's forward pass.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import Augment, Collect
from bend_ray.data.datasets import Dataset
from bend_ray.data.images import Split
from bend_ray.errors import ResourceError
from bend_ray.models.partition import partition, unpartitioned
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import MAX_MEMORY, SharedTrunk
from bend_ray.run import Run
from bend_ray.training.augment import augment

ROWS = 256
"""Rows that go through the trunk at once: fixed, so that features do not depend on who computes them."""
WORTH_IT = 0.75
"""Share of the forward pass's multiplications before the subset from which on `auto` keeps features: where s is in the
trunk, 3 (1 - s) is at most half of 1 + 2 (1 - s)."""
OPTIMIZER = 4
"""Values that training takes for each parameter: itself, its gradient, two moments."""

OFF = Augment()
"""No random changes."""

Take = Callable[[Tensor, torch.Generator | None], tuple[Any, ...]]
"""What the tail reads of the rows of an index, (B,) or (chains, B); a generator draws their random changes."""


@dataclass(frozen=True)
class Tails:
    """A classifier, partitioned for training: its tail, and what that reads of training and of validation rows."""

    trunk: SharedTrunk
    train: Take
    val: Take
    at_once: int
    """Chains that train at once: by the configuration and the graph, so that bits do not depend on the machine."""

    @staticmethod
    @seeds.seeded(0, "features")
    def of(
        module: nn.Module,
        subset: Subset,
        run: Run,
        cut: SharedTrunk | None = None,
    ) -> "Tails":
        """For ``module`` with the base's parameters, which are frozen here; ``run.progress`` counts rows of features.
        ``cut``: its partition, where there is one already.

        Where training rows are changed at random, each step runs the whole classifier on new versions of them: kept
        ones would be few, or take as many times the memory.
        """
        dataset, collect, progress = run.dataset, run.config.collect, run.progress
        changes = run.config.changes_for_chains
        module.eval().requires_grad_(False)
        device = next(module.parameters()).device
        example_x = dataset.preprocess(dataset.train.images[:2].to(device))
        keep = collect.features != "none" and changes == OFF
        shared_trunk = (cut or partition(module, subset, example_x)) if keep else None
        if shared_trunk is None or not worth_it(shared_trunk, subset.take(module).to(device), example_x, collect):
            train, val = _images(dataset, dataset.train, device, changes), _images(dataset, dataset.val, device)
            return Tails(unpartitioned(module, subset), train, val, 1)
        dtype = torch.float32 if collect.features == "auto" else getattr(torch, collect.features)
        total, done = len(dataset.train) + len(dataset.val), 0
        kept = []
        for rows in (dataset.train, dataset.val):
            report = (lambda n, before=done: progress(before + n, total)) if progress is not None else None
            kept.append(_kept(shared_trunk, _images(dataset, rows, device), len(rows), dtype, collect, device, report))
            done += len(rows)
        # A group's parameters and their moments are in memory together; not by a key that says where work is done.
        fitting = max(1, MAX_MEMORY // (4 * OPTIMIZER * subset.D))
        shared_trunk = replace(shared_trunk, chunk=collect.at_once, max_memory=MAX_MEMORY)
        at_once = min(shared_trunk.at_once(collect.batch_size), fitting) if shared_trunk.plan == "vmap" else 1
        return Tails(shared_trunk, kept[0], kept[1], at_once)

    def logits(self, theta: dict[str, Tensor], shared: tuple[Any, ...], by_chain: bool) -> Tensor:
        """``logits_CBK`` of chains whose parameters are (C, *shape) each; ``by_chain``: each has rows of its own."""
        if len(next(iter(theta.values()))) == 1:
            of_first = tuple(value[0] if kind == "rows" and by_chain else value for kind, value in self._kinds(shared))
            return self.trunk.tail({name: value[0] for name, value in theta.items()}, *of_first)[None]
        rows = 0 if by_chain else None
        in_dims = (0, *(rows if kind == "rows" else None for kind, _ in self._kinds(shared)))
        logits_CBK: Tensor = torch.func.vmap(self.trunk.tail, in_dims=in_dims)(theta, *shared)
        return logits_CBK

    def _kinds(self, shared: tuple[Any, ...]) -> list[tuple[str | None, Any]]:
        return list(zip(self.trunk.kinds, shared, strict=True))


def worth_it(shared_trunk: SharedTrunk, theta_D: Tensor, x: Tensor, collect: Collect) -> bool:
    """Whether to keep what the trunk gives: as asked for, or where that halves the work; never what has no rows."""
    if shared_trunk.plan == "whole model" or None in shared_trunk.kinds:
        return False
    if collect.features != "auto":
        return True
    trunk, tail = shared_trunk.flops(theta_D, x)
    return trunk >= WORTH_IT * (trunk + tail)


def _images(dataset: Dataset, rows: Split, device: torch.device, changes: Augment = OFF) -> Take:
    """The images themselves, which is what the whole classifier reads."""

    def take(index: Tensor, draws: torch.Generator | None) -> tuple[Tensor]:
        images = rows.images[index.reshape(-1)].to(device)
        if draws is not None:
            images = augment(images, changes, draws)
        x = dataset.preprocess(images)
        return (x.reshape(*index.shape, *x.shape[1:]),)

    return take


def _kept(
    shared_trunk: SharedTrunk,
    images: Take,
    rows: int,
    dtype: torch.dtype,
    collect: Collect,
    device: torch.device,
    progress: Callable[[int], None] | None,
) -> Take:
    """All of it once; on the device where it fits ``collect.max_memory``, else in a file that goes with the process."""
    values: list[Any] = []
    for start in range(0, rows, ROWS):
        index = torch.arange(start, min(start + ROWS, rows))
        with torch.no_grad():
            shared = shared_trunk.trunk(*images(index, None))
        if not values:
            size = sum(
                value[0].numel() * dtype.itemsize * rows
                for kind, value in zip(shared_trunk.kinds, shared, strict=True)
                if kind == "rows"
            )
            place = device if size <= collect.max_memory * 2**30 else None
            values = [
                Rows.empty(value, rows, dtype, place) if kind == "rows" else value
                for kind, value in zip(shared_trunk.kinds, shared, strict=True)
            ]
        for held, value in zip(values, shared, strict=True):
            if isinstance(held, Rows):
                held.put(index, value)
        if progress is not None:
            progress(int(index[-1]) + 1)

    def take(index: Tensor, draws: torch.Generator | None) -> tuple[Any, ...]:
        taken: list[Any] = []
        for kind, held in zip(shared_trunk.kinds, values, strict=True):
            if isinstance(held, Rows):
                taken.append(held.take(index, device))
            else:
                taken.append(index.shape[-1] if kind == "size" else held)
        return tuple(taken)

    return take


@dataclass(frozen=True)
class Rows:
    """One of the trunk's values for all rows, (N, ...), as it came or smaller.

    ``uint8``: each row's values in 256 even levels between its least and its greatest.
    """

    data: Tensor
    dtype: torch.dtype
    """Of what is taken."""
    low_N: Tensor
    level_N: Tensor

    @staticmethod
    def empty(value: Tensor, rows: int, dtype: torch.dtype, device: torch.device | None) -> "Rows":
        """For values like ``value`` (its first axis aside); without a device in a file that has no name any more."""
        stored = dtype if value.is_floating_point() else value.dtype
        shape = (rows, *value.shape[1:])
        if device is not None:
            data = torch.empty(shape, dtype=stored, device=device)
        else:
            data = _in_file(torch.Size(shape), stored)
        where = data.device
        return Rows(data, value.dtype, torch.zeros(rows, device=where), torch.ones(rows, device=where))

    @property
    def levels(self) -> bool:
        """Whether numbers are kept as levels."""
        return self.data.dtype == torch.uint8 and self.dtype.is_floating_point

    def put(self, index: Tensor, value: Tensor) -> None:
        index, value = index.to(self.data.device), value.to(self.data.device)
        if self.levels:
            flat = value.float().flatten(1)
            low_B = flat.amin(1)
            level_B = ((flat.amax(1) - low_B) / 255).clamp_min(torch.finfo(torch.float32).tiny)
            self.low_N[index], self.level_N[index] = low_B, level_B
            value = ((flat - low_B[:, None]) / level_B[:, None]).round().reshape(value.shape)
        self.data[index] = value.to(self.data.dtype)

    def take(self, index: Tensor, device: torch.device) -> Tensor:
        """(*index.shape, ...)."""
        index = index.to(self.data.device)
        value = self.data[index].to(self.dtype)
        if self.levels:
            shape = (*index.shape, *[1] * (value.ndim - index.ndim))
            value = value * self.level_N[index].reshape(shape) + self.low_N[index].reshape(shape)
        return value.to(device)


def _in_file(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros that lie in a file; its name is gone, and the file when nothing reads it any more."""
    size = shape.numel() * dtype.itemsize
    with tempfile.NamedTemporaryFile(prefix="bend-ray-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a map of a file that a full disk cannot hold would kill us
        except OSError as error:
            raise ResourceError(
                f"collect.max_memory: {size / 2**30:.1f} GiB of features do not fit into {tempfile.gettempdir()}"
                f" ({error.strerror}); set TMPDIR to a folder with room, raise collect.max_memory, or set"
                " collect.features to uint8 or none"
            ) from None
        return torch.from_file(file.name, shared=True, size=shape.numel(), dtype=dtype).reshape(shape)
