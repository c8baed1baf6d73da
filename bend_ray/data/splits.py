"""Rows divided by class: the first of a split, and shares of one."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.data.images import Split, spilled
from bend_ray.errors import DataError


def head_rows(rows: Split, limit: int | None, in_memory: float) -> Split:
    """The first ``limit`` rows; where they lie class by class, the first of each class in turn, in the old order."""
    if limit is None or limit >= len(rows) or not rows.by_class:
        return rows.take(slice(limit))
    return _spilled(rows, in_turn(rows.labels)[:limit].sort().values, in_memory)


def in_turn(labels: Tensor) -> Tensor:
    """Numbers of rows: the first of each class, then the second of each, and so on."""
    by_class = labels.argsort(stable=True)
    counts = labels.unique(return_counts=True)[1].tolist()
    turn = torch.cat([torch.arange(count) for count in counts])
    return by_class[turn.argsort(stable=True)]


def cut(rows: Split, fraction: float, key: str, in_memory: float, seed: int) -> tuple[Split, Split]:
    """``rows`` without and with that ``fraction`` of every class, each in the old order; ``key``: what it is called.

    Raises DataError where there are too few rows of a class.
    """
    without, with_it = (
        _spilled(rows, part, in_memory) for part in shares(rows.labels, fraction, key, seed, rows.names)
    )
    return without, with_it


def shares(labels: Tensor, fraction: float, key: str, seed: int, names: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
    """The numbers of the rows that `cut` would make two splits of; as it raises."""
    from sklearn.model_selection import train_test_split  # takes a second

    classes, counts = labels.unique(return_counts=True)
    if counts.min() < 2:
        alone = int(classes[counts.argmin()])
        raise DataError(
            f"{key}: class {names[alone] if names else alone} has one row of {len(labels)}; a stratified cut needs two"
            " of every class: give more rows, or a split of its own"
        )
    state = seeds.seed_for(seed, "split", key) % 2**32
    try:
        kept, taken = train_test_split(
            np.arange(len(labels)), test_size=fraction, random_state=state, stratify=labels.numpy()
        )
    except ValueError as error:
        raise DataError(f"{key}: {fraction} of {len(labels)} rows cannot be cut off by class ({error})") from None
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(taken))


def _spilled(rows: Split, chosen: Tensor, in_memory: float) -> Split:
    return replace(rows, images=spilled(rows.images, in_memory, chosen), labels=rows.labels[chosen])
