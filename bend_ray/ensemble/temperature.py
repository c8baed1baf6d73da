"""One temperature for an ensemble's answer, chosen and fitted on validation rows.

Logits over a temperature T (Guo et al. 2017) can stand at two places of an ensemble: on the pool, ``p^(1/T)``
normalised, where p is the mean probability, or inside the mean, ``mean_m softmax(logits_m / T)``. Members are never
calibrated one by one and then averaged: the mean of calibrated networks is too little sure (Rahaman and Thiery 2021).
Few validation rows determine no temperature, and one that they do not determine is left out.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bend_ray import seeds
from bend_ray.ensemble import metrics
from bend_ray.ensemble.spill import VALUES, Logits, Spill, parts_of, pieces, split
from bend_ray.errors import ArtifactError

Place = Literal["pool", "members"]
WIDEST = 5.0
"""Temperatures are sought from 1 / 5 to 5."""
FARTHEST = 1000.0
"""Where the best of these is at an end, from 1 / 1000 to 1000: logits may come in any unit."""
GRID, FAR_GRID = 33, 137
"""Temperatures looked at first, evenly in log T and about as close, for the loss may have more than one valley."""
PRECISION = 1e-5
"""Of log T."""
FOLDS, DRAWS = 5, 500
"""Of cross-validation, and of the bootstrap for the interval of log T."""
FEWEST = 100
"""Rows from which on a temperature is sought: of fewer, bootstrap intervals hold the truth too seldom."""
FEW = f"fewer than {FEWEST} validation rows determine none"
AT_AN_END = f"validation rows determine none: the best is at an end of those tried, {1 / FARTHEST:g} to {FARTHEST:g}"
NO_BETTER = "held-out validation rows are not predicted better with one"
HOLDS_1 = "the 95 % interval of the best one holds 1"


@dataclass(frozen=True)
class Temperature:
    """What makes an ensemble's mean probability sharper (below 1) or flatter (above 1). Votes do not know of it."""

    kind: Literal["none", "pool", "members"] = "none"
    """Where it stands: nowhere, on the mean probability, or on the members' logits."""
    value: float = 1.0
    """T; 1 where it stands nowhere."""
    low: float = 1.0
    high: float = 1.0
    """95 % bootstrap interval of T; where T was fitted and left out, of the one that was."""
    why: str = ""
    """Why one was sought and left out."""

    def of_members(self, logits_MBK: Tensor) -> Tensor:
        """Members' logits, over T where it stands inside the mean."""
        return logits_MBK / self.value if self.kind == "members" else logits_MBK

    def of_pool(self, prob_BK: Tensor) -> Tensor:
        """The mean of the members' probabilities, ``p^(1/T)`` normalised where T stands on it. Keeps the order."""
        return (prob_BK.double().log() / self.value).softmax(-1) if self.kind == "pool" else prob_BK

    def apply(self, logits_MBK: Tensor) -> Tensor:
        """``prob_BK``, float64: the mean probability of ``logits_MBK`` with this temperature."""
        return self.of_pool(self.of_members(logits_MBK).double().softmax(-1).mean(0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Any, where: str) -> "Temperature":
        """Raises ArtifactError, naming ``where``, if ``data`` describes no temperature."""
        try:
            kind = data["kind"]
            value, low, high = numbers = [float(data[name]) for name in ("value", "low", "high")]
            why = str(data.get("why", ""))  # those of earlier ensembles do not say
            if kind not in ("none", "pool", "members") or not all(0 < number < math.inf for number in numbers):
                raise ValueError(f"{kind!r} with {numbers}")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{where}: describes no temperature ({error})") from None
        return Temperature(kind, value, low, high, why)

    def __str__(self) -> str:
        place = {"none": "", "pool": " on the mean probability", "members": " on the members' logits"}[self.kind]
        return f"T = {self.value:.3g}{place}{f' ({self.why})' if self.why else ''}"


NONE = Temperature()
UNDETERMINED = Temperature("none", 1.0, 1 / WIDEST, WIDEST, FEW)
"""What so few rows say."""


def fixed(value: float) -> Temperature:
    """A temperature that was given and not fitted: on the mean probability; 1 is none."""
    return NONE if value == 1 else Temperature("pool", value, value, value)


def fit(logits_MBK: Logits, label_B: Tensor, seed: int = 0) -> Temperature:
    """The temperature of lowest NLL: none, on the pool or inside the mean, whichever has the lowest NLL in 5-fold
    cross-validation.

    It is sought from 1/5 to 5, and where the best is at an end from 1/1000 to 1000. None as well, with the reason,
    where the 95 % bootstrap interval of log T holds 0; where T or its interval is at an end of the wider search (rows
    without an error do not say how sure is too sure); and with fewer than 100 rows.

    Raises DataError for labels that do not fit, ModelError for logits that are not finite.
    """
    label_B = metrics.checked_labels(logits_MBK, label_B).cpu()
    logits_MBK = logits_MBK.cpu() if isinstance(logits_MBK, Tensor) else logits_MBK
    M, B, _ = logits_MBK.shape
    if B < FEWEST:
        return UNDETERMINED
    places: dict[Place, Logits] = {"pool": _pooled(logits_MBK)}
    held_out: dict[str, float] = {"none": losses(places["pool"], label_B, 0.0).mean().item()}
    if M > 1:  # of one member both are the same
        places["members"] = logits_MBK
    fold_B = torch.randperm(B, generator=seeds.generator_for(seed, "temperature", "folds")) % FOLDS
    fitted: dict[str, Temperature] = {}
    for place, logits in places.items():
        grid = _grid()
        loss_GB = _on(grid, logits, label_B)
        if wider := int(loss_GB.mean(1).argmin()) in (0, GRID - 1):
            grid = _grid(FARTHEST, FAR_GRID)
            loss_GB = _on(grid, logits, label_B)
        held_out[place] = _held_out(logits, label_B, loss_GB, fold_B, grid)
        log_t = _lowest_near(logits, label_B, loss_GB.mean(1), grid)
        low, high = _lowest(_resampled(loss_GB, seed), grid).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        low, high = min(low, log_t), max(high, log_t)
        ends = wider and (low < grid[1] or high > grid[-2])
        why = AT_AN_END if ends else ""
        fitted[place] = Temperature(place, math.exp(log_t), math.exp(low), math.exp(high), why)
    chosen = min(held_out, key=lambda name: held_out[name])  # where equal the simpler one, which comes first
    best = fitted["pool" if chosen == "none" else chosen]
    why = best.why or (HOLDS_1 if best.low <= 1 <= best.high else NO_BETTER if chosen == "none" else "")
    return Temperature("none", 1.0, best.low, best.high, why) if why else best


def lowest_loss(logits_MBK: Logits, label_B: Tensor) -> float:
    """The mean NLL of the pool at the T where it is lowest: what is left when being too sure, or not sure enough, is
    no matter."""
    log_1BK, grid = _pooled(logits_MBK), _grid()
    loss_G = torch.stack([loss_B.mean() for loss_B in _on(grid, log_1BK, label_B)])
    return losses(log_1BK, label_B, _lowest_near(log_1BK, label_B, loss_G, grid)).mean().item()


def losses(logits_MBK: Logits, label_B: Tensor, log_t: float) -> Tensor:
    """NLL of each row (float64) of ``mean_m softmax(logits_m / T)``; of a pool's logarithm as the only member's logits
    that of the pool with T."""
    return torch.cat([_losses(part_MbK, label_b, log_t) for part_MbK, label_b in pieces(parts_of(logits_MBK), label_B)])


def _losses(logits_MBK: Tensor, label_B: Tensor, log_t: float) -> Tensor:
    log_MBK = (logits_MBK.double() / math.exp(log_t)).log_softmax(-1)
    log_B = log_MBK.gather(-1, label_B.expand(len(log_MBK), -1)[..., None])[..., 0].logsumexp(0)
    return -(log_B - math.log(len(log_MBK))).clamp_min(math.log(metrics.FLOOR))


def _pooled(logits_MBK: Logits) -> Spill:
    """``log_1BK``: the logarithm of the mean probability, as the logits of one member."""
    M, parts = logits_MBK.shape[0], split(parts_of(logits_MBK))
    return Spill(part_MbK.double().log_softmax(-1).logsumexp(0)[None] - math.log(M) for part_MbK in parts)


def _grid(widest: float = WIDEST, points: int = GRID) -> Tensor:
    return torch.linspace(-math.log(widest), math.log(widest), points, dtype=torch.float64)


def _on(grid: Tensor, logits_MBK: Logits, label_B: Tensor) -> Tensor:
    """``loss_GB`` at each temperature of ``grid``."""
    parts = [
        torch.stack([_losses(part_MbK, label_b, log_t) for log_t in grid.tolist()])
        for part_MbK, label_b in pieces(parts_of(logits_MBK), label_B)
    ]
    return torch.cat(parts, dim=1)


def _resampled(loss_GB: Tensor, seed: int) -> Tensor:
    """``loss_DG``: means over rows that are drawn with replacement, as many as there are, in each draw."""
    B, stream = loss_GB.shape[1], seeds.generator_for(seed, "temperature", "bootstrap")
    losses_DG = []
    for draws in torch.arange(DRAWS).split(max(1, VALUES // 8 // B)):
        index_DB = torch.randint(B, (len(draws), B), generator=stream)
        counts_DB = torch.zeros(index_DB.shape, dtype=torch.float64)
        counts_DB.scatter_add_(1, index_DB, torch.ones_like(counts_DB))
        losses_DG.append(counts_DB @ loss_GB.T / B)
    return torch.cat(losses_DG)


def _lowest(loss_XG: Tensor, grid: Tensor) -> Tensor:
    """``log_t_X``: where the parabola through the lowest loss on the grid and its neighbours has its lowest point."""
    at_X = loss_XG.argmin(1)
    middle_X = at_X.clamp(1, len(grid) - 2)
    left_X, mid_X, right_X = (loss_XG.gather(1, (middle_X + i)[:, None])[:, 0] for i in (-1, 0, 1))
    curve_X = left_X - 2 * mid_X + right_X
    shift_X = ((left_X - right_X) / (2 * curve_X.clamp_min(1e-12))).clamp(-0.5, 0.5)
    return grid[at_X] + torch.where(at_X == middle_X, shift_X, 0.0) * (grid[1] - grid[0])


def _lowest_near(logits_MBK: Logits, label_B: Tensor, loss_G: Tensor, grid: Tensor) -> float:
    """log T of the lowest NLL, sought between the neighbours of the lowest one on the grid."""
    from scipy.optimize import minimize_scalar

    points, at = grid.tolist(), int(loss_G.argmin())
    lowest = minimize_scalar(
        lambda log_t: losses(logits_MBK, label_B, log_t).mean().item(),
        bounds=(points[max(at - 1, 0)], points[min(at + 1, len(points) - 1)]),
        method="bounded",
        options={"xatol": PRECISION},
    )
    return float(lowest.x)


def _held_out(logits_MBK: Logits, label_B: Tensor, loss_GB: Tensor, fold_B: Tensor, grid: Tensor) -> float:
    """Mean NLL of all rows, each with the temperature of the other folds."""
    log_t_F = _lowest(torch.stack([loss_GB[:, fold_B != fold].mean(1) for fold in range(FOLDS)]), grid)
    of_fold: list[list[Tensor]] = [[] for _ in range(FOLDS)]
    folds = torch.stack([label_B, fold_B], dim=1)
    for part_MbK, label_fold_b2 in pieces(parts_of(logits_MBK), folds):
        for fold, log_t in enumerate(log_t_F.tolist()):
            inside_b = label_fold_b2[:, 1] == fold
            of_fold[fold].append(_losses(part_MbK[:, inside_b], label_fold_b2[inside_b, 0], log_t))
    return (torch.stack([torch.cat(parts).sum() for parts in of_fold]).sum() / len(label_B)).item()
