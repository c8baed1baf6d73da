"""Slow, obvious versions of what the package does fast: plain loops that a reader checks by eye.

Lists stand for tensors here: ``logits_MK`` is a list of M lists of K floats.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.config import Collect
from bend_ray.data.datasets import Dataset
from bend_ray.models.output import logits
from bend_ray.models.subset import Subset
from bend_ray.training import loop

Rows = Sequence[Sequence[float]]


@torch.no_grad()
def logits_of_whole_models(module: nn.Module, subset: Subset, theta_MD: Tensor, x: Tensor) -> Tensor:
    """``logits_MBK``: each member put into the whole module, one after another. The module is left as it was."""
    before_D, training = subset.take(module), module.training
    module.eval()
    found = []
    for theta_D in theta_MD:
        subset.put(module, theta_D)
        found.append(logits(module(x.clone())))
    subset.put(module, before_D)
    module.train(training)
    return torch.stack(found)


def train_chain(
    module: nn.Module, subset: Subset, dataset: Dataset, collect: Collect, seed: int, chain: int
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Snapshots of one chain trained through the whole module, and (loss, accuracy) on validation rows of each."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    chosen = [value.requires_grad_() for name, value in module.named_parameters() if name in subset.names]
    assert collect.lr is not None
    optimizer: torch.optim.Optimizer
    if collect.optimizer == "sgd":
        optimizer = torch.optim.SGD(chosen, lr=collect.lr, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(chosen, lr=collect.lr, weight_decay=0.0)
    draw, rows = seeds.generator_for(seed, "chain", chain), dataset.train
    pool = torch.randint(len(rows), (len(rows),), generator=draw) if collect.bootstrap else torch.arange(len(rows))
    steps = max(collect.snapshots_per_chain, round(collect.epochs * len(rows) / collect.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, steps // collect.snapshots_per_chain)
    order: list[Tensor] = []
    snapshots, scores = [], []
    for step in range(1, steps + 1):
        if not order:
            order = list(pool[torch.randperm(len(pool), generator=draw)].split(collect.batch_size))
            order = [index for index in order if len(index) == collect.batch_size]
        index = order.pop(0)
        log_BK = logits(module(dataset.preprocess(rows.images[index]))).log_softmax(-1)
        right_BK, even = F.one_hot(rows.labels[index], log_BK.shape[1]), collect.label_smoothing
        loss = -((1 - even) * right_BK + even / log_BK.shape[1]).mul(log_BK).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if collect.schedule == "cyclic":
            schedule.step()
        if step in {steps * (i + 1) // collect.snapshots_per_chain for i in range(collect.snapshots_per_chain)}:
            snapshots.append(subset.take(module))
            scores.append(loop.validate(module, dataset.val, dataset.preprocess))
    return torch.stack(snapshots), scores


def first_largest(values: Sequence[float]) -> int:
    best = 0
    for index, value in enumerate(values):
        if value > values[best]:
            best = index
    return best


def softmax(logits_K: Sequence[float]) -> list[float]:
    top = max(logits_K)
    raised = [math.exp(value - top) for value in logits_K]
    return [value / math.fsum(raised) for value in raised]


def entropy(prob_K: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in prob_K if p > 0)


def mean_probability(logits_MK: Rows) -> list[float]:
    prob_MK = [softmax(logits_K) for logits_K in logits_MK]
    return [math.fsum(prob_K[k] for prob_K in prob_MK) / len(prob_MK) for k in range(len(prob_MK[0]))]


def vote_counts(logits_MK: Rows) -> list[int]:
    counts = [0] * len(logits_MK[0])
    for logits_K in logits_MK:
        counts[first_largest(logits_K)] += 1
    return counts


def abend(logits_MK: Rows) -> int:
    """The class with the largest mean probability, the lower index where equal."""
    return first_largest(mean_probability(logits_MK))


def sbend(logits_MK: Rows) -> int:
    """The class with most votes; among tied ones that with the larger mean probability, then the lower index."""
    counts, mean_K = vote_counts(logits_MK), mean_probability(logits_MK)
    return min(range(len(counts)), key=lambda k: (-counts[k], -mean_K[k], k))


def mutual_information(logits_MK: Rows) -> float:
    mean_entropy = math.fsum(entropy(softmax(logits_K)) for logits_K in logits_MK) / len(logits_MK)
    return entropy(mean_probability(logits_MK)) - mean_entropy


def accuracy(prob_BK: Rows, label_B: Sequence[int]) -> float:
    right = [first_largest(prob_K) == label for prob_K, label in zip(prob_BK, label_B, strict=True)]
    return sum(right) / len(right)


def nll(prob_BK: Rows, label_B: Sequence[int]) -> float:
    return math.fsum(-math.log(prob_K[label]) for prob_K, label in zip(prob_BK, label_B, strict=True)) / len(label_B)


def brier(prob_BK: Rows, label_B: Sequence[int]) -> float:
    total = 0.0
    for prob_K, label in zip(prob_BK, label_B, strict=True):
        for k, p in enumerate(prob_K):
            total += (p - (k == label)) ** 2
    return total / len(label_B)


def ece(prob_BK: Rows, label_B: Sequence[int], bins: int, predicted_B: Sequence[int] | None = None) -> float:
    """Over bins of equal width [low, high), the gap between accuracy and confidence, weighted by rows."""
    predicted_B = predicted_B or [first_largest(prob_K) for prob_K in prob_BK]
    rows_in: dict[int, list[tuple[float, bool]]] = {}
    for prob_K, label, predicted in zip(prob_BK, label_B, predicted_B, strict=True):
        confidence = prob_K[predicted]
        rows_in.setdefault(int(confidence * bins), []).append((confidence, predicted == label))
    total = 0.0
    for rows in rows_in.values():
        confidence = sum(c for c, _ in rows) / len(rows)
        right = sum(r for _, r in rows) / len(rows)
        total += len(rows) / len(label_B) * abs(confidence - right)
    return total


def disagreement(predicted_MB: Sequence[Sequence[int]]) -> float:
    """Mean over pairs of the share of rows that they label differently."""
    shares = []
    for i in range(len(predicted_MB)):
        for j in range(i):
            pairs = list(zip(predicted_MB[i], predicted_MB[j], strict=True))
            shares.append(sum(a != b for a, b in pairs) / len(pairs))
    return sum(shares) / len(shares)


def error_iou(predicted_B: Sequence[int], other_B: Sequence[int], label_B: Sequence[int]) -> float:
    """Rows that both get wrong over rows that either does; 1 where neither errs."""
    wrong = {row for row, label in enumerate(label_B) if predicted_B[row] != label}
    other_wrong = {row for row, label in enumerate(label_B) if other_B[row] != label}
    either = wrong | other_wrong
    return len(wrong & other_wrong) / len(either) if either else 1.0


def mean_error_iou(predicted_MB: Sequence[Sequence[int]], label_B: Sequence[int]) -> float:
    """Mean of `error_iou` over pairs."""
    found = [error_iou(predicted_MB[i], predicted_MB[j], label_B) for i in range(len(predicted_MB)) for j in range(i)]
    return sum(found) / len(found)
