"""Rare classes: a loss that weighs each class, and draws of rows in which all classes are alike."""

from typing import Literal

import torch
from torch import Tensor

from bend_ray.data.datasets import Dataset
from bend_ray.errors import ConfigError, DataError
from bend_ray.run import Run

Weights = Literal["none", "balanced"] | tuple[float, ...]
"""`base.class_weights`."""


def of(weights: Weights, dataset: Dataset) -> Tensor | None:
    """``weight_K`` (float64) of the cross-entropy on the training rows of ``dataset``; None for none.

    ``balanced``: N / (K N_k) for the N_k of N rows, as scikit-learn has it. Raises ConfigError where there are not as
    many as classes, DataError where a class has no row to be balanced by.
    """
    if weights == "none":
        return None
    label_N, K = dataset.train.labels, dataset.classes
    if weights == "balanced":
        return len(label_N) / (K * counts("base.class_weights: balanced", dataset).double())
    if len(weights) != K:
        raise ConfigError(f"base.class_weights: {len(weights)} weights for {K} classes; give one for each, in order")
    return torch.tensor(weights, dtype=torch.float64)


def check(run: Run) -> None:
    """Raises ConfigError and DataError where ``base.class_weights`` or ``collect.balanced`` do not suit the data."""
    of(run.config.base.class_weights, run.dataset)
    if run.config.collect.balanced:
        counts("collect.balanced", run.dataset)


def counts(key: str, dataset: Dataset) -> Tensor:
    """``count_K``: training rows of each class. Raises DataError, which begins with ``key``, where there are none."""
    count_K = dataset.train.labels.long().bincount(minlength=dataset.classes)
    if missing := [dataset.class_names[k] for k in (count_K == 0).nonzero()[:, 0].tolist()]:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(f"{key}: no training rows of class {names}; give some, or leave the class out of the data")
    return count_K


def drawn_alike(label_N: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of as many rows, drawn with replacement: first a class of those that there are, then a row of it."""
    order_N = label_N.argsort(stable=True)
    _, count_k = label_N.unique(return_counts=True)
    start_k = count_k.cumsum(0) - count_k
    class_N = torch.randint(len(count_k), label_N.shape, generator=generator)
    place_N = torch.rand(label_N.shape, generator=generator, dtype=torch.float64) * count_k[class_N]
    return order_N[start_k[class_N] + place_N.long()]
