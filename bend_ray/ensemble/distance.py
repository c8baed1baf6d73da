"""How far an input is from the training rows, in the features that members share.

Features are what the shared trunk gives, so that an answer has made them already. Where the subset is the head they are
what enters the last linear layer; where it is deeper, the values at which members part, each averaged over its places
(B, C, H, W) or its tokens (B, T, C). Two measures:

* cosine: the mean cosine distance to the nearest training rows (Sun et al. 2022, arXiv 2204.06507, with a mean over
  neighbours);
* gaussian: the Mahalanobis distance to the nearest class, one Gaussian a class with a shared covariance (Lee et al.
  2018, arXiv 1807.03888), in float64 and shrunk (`shrunk_covariance`): with as many features as rows it would else have
  no inverse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.data.images import Split
from bend_ray.errors import ArtifactError, ModelError
from bend_ray.models.trunk import SharedTrunk
from bend_ray.models.trunks import SharedTrunks, Trunk
from bend_ray.run import Run
from bend_ray.store.folders import Folder
from bend_ray.store.tensors import read_tensors, write_tensors

FILE = "distance.safetensors"
NEIGHBOURS = 10
"""Training rows whose distances are averaged (cosine)."""
QUANTILES = 101
"""Distances of validation rows that are kept: the smallest, those of each per cent, the largest."""
ROWS = 256
"""Rows that are run at once."""
Kept = dict[str, Tensor]
"""What is kept of training rows, by name."""


@dataclass(frozen=True)
class Measure:
    """One way to measure."""

    rows: int
    """Training rows at most, drawn without replacement: they bound the index, and what an answer costs."""
    fit: Callable[[Tensor, Tensor], Kept]
    """(feature_NF, label_N) -> what is kept."""
    distance: Callable[[Kept, Tensor], Tensor]
    """(what is kept, feature_BF) -> distance_B."""


def unit_rows(feature_NF: Tensor, label_N: Tensor) -> Kept:
    """Training rows of length 1, as float16."""
    return {"unit_NF": F.normalize(feature_NF.float(), dim=1).half()}


def cosine(kept: Kept, feature_BF: Tensor) -> Tensor:
    """Mean of 1 minus the cosine over the `NEIGHBOURS` nearest rows.

    Of near ones it is half the squared difference of unit rows: their cosine is 1 but for its last digits.
    """
    unit_NF, unit_BF = kept["unit_NF"], F.normalize(feature_BF.float(), dim=1)
    cosine_BK, near_BK = (unit_BF @ unit_NF.T).topk(min(NEIGHBOURS, len(unit_NF)))
    near_by_BK = (unit_BF[:, None] - unit_NF[near_BK]).square().sum(2) / 2
    return torch.where(cosine_BK < 0.5, 1 - cosine_BK, near_by_BK).double().mean(1)


def gaussians(feature_NF: Tensor, label_N: Tensor) -> Kept:
    """A root of the precision, and the classes' means multiplied by it; classes without rows have none."""
    feature_NF, class_N = feature_NF.double(), label_N.unique(return_inverse=True)[1]
    mean_KF = torch.stack([feature_NF[class_N == k].mean(0) for k in range(int(class_N.max()) + 1)])
    lower_FF = torch.linalg.cholesky(shrunk_covariance(feature_NF - mean_KF[class_N]))
    root_FF = torch.linalg.solve_triangular(lower_FF, torch.eye(len(lower_FF)).to(lower_FF), upper=False).T
    return {"white_KF": mean_KF @ root_FF, "root_FF": root_FF}


def mahalanobis(kept: Kept, feature_BF: Tensor) -> Tensor:
    """Distance to the nearest class; by differences, which are never negative."""
    white_BF = feature_BF.double() @ kept["root_FF"]
    return torch.cdist(white_BF, kept["white_KF"], compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def shrunk_covariance(centred_NF: Tensor) -> Tensor:
    """``covariance_FF`` of rows whose mean is 0, float64, moved towards a multiple of the unit matrix as far as is best
    in the mean (Ledoit and Wolf 2004, J. Multivariate Analysis 88, eq. 14). It always has an inverse."""
    centred_NF = centred_NF.double()
    N, width = centred_NF.shape
    sample_FF, unit_FF = centred_NF.T @ centred_NF / N, torch.eye(width).to(centred_NF)
    level = (sample_FF.trace() / width).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    spread = (sample_FF - level * unit_FF).square().sum()  # d^2, times F
    noise = (centred_NF.square().sum(1).square().mean() - sample_FF.square().sum()) / N  # b^2, times F
    share = (noise / spread).clamp(1e-9, 1) if spread > 0 else spread.new_ones(())
    return (1 - share) * sample_FF + share * level * unit_FF


MEASURES = {
    "cosine": Measure(5_000, unit_rows, cosine),
    "gaussian": Measure(20_000, gaussians, mahalanobis),
}
"""`sample.distance`."""


@dataclass(frozen=True)
class Distance:
    """An index of training rows, to which inputs are measured."""

    measure: str
    """One of `MEASURES`."""
    kept: Kept
    quantile_Q: Tensor
    """Distances of validation rows, from the smallest to the largest."""
    rows: int
    """Training rows that it was made from."""
    pooled: bool
    """Whether features are averages over places or tokens."""

    @staticmethod
    def of(measure: str, trunk: SharedTrunk, run: Run) -> "Distance":
        """From training and validation rows of ``run``; ``run.progress`` counts rows.

        Raises ModelError where members share no features.
        """
        train, one = run.dataset.train, MEASURES[measure]
        order = torch.randperm(len(train), generator=seeds.generator_for(run.seed, "distance"))
        rows = train if len(train) <= one.rows else train.take(order[: one.rows].sort().values)
        feature_NF = torch.cat(list(_features(trunk, run, rows)))
        made = Distance(measure, one.fit(feature_NF, rows.labels), torch.zeros(0), len(rows), _pooled(trunk, run))
        ready = made.to("cpu")
        val_B = torch.cat([ready(feature_BF) for feature_BF in _features(trunk, run, run.dataset.val)])
        quantile_Q = val_B.quantile(torch.linspace(0, 1, QUANTILES, dtype=torch.float64))
        return replace(made, quantile_Q=quantile_Q)

    def __call__(self, feature_BF: Tensor) -> Tensor:
        """``distance_B``, float64, not below 0."""
        return MEASURES[self.measure].distance(self.kept, feature_BF)

    def to(self, device: torch.device | str) -> "Distance":
        """Ready to measure on ``device``. Rows of length 1 have that length again, which float16 took from them: most
        of its rounding is in their length."""
        kept = {name: value.to(device) for name, value in self.kept.items()}
        unit = {name: F.normalize(value.float(), dim=1) for name, value in kept.items() if value.dtype == torch.float16}
        return replace(self, kept=kept | unit)

    def share_below(self, distance: float) -> float:
        """Share of validation rows that are nearer to the training rows than this."""
        return float((self.quantile_Q < distance).double().mean())

    @property
    def features(self) -> int:
        """F."""
        return next(iter(self.kept.values())).shape[1]

    def facts(self) -> dict[str, Any]:
        """For the manifest and ``GET /ensemble``."""
        size = sum(value.numel() * value.element_size() for value in self.kept.values())
        median, high, highest = (self.quantile_Q[i].item() for i in (50, 95, 99))
        return {
            "measure": self.measure,
            "features": self.features,
            "pooled": self.pooled,
            "rows": self.rows,
            "bytes": size,
            "median": median,
            "q95": high,
            "q99": highest,
        }

    @staticmethod
    def load(folder: Folder) -> "Distance":
        """What `save` has put into ``folder``. Raises ArtifactError where it is something else."""
        tensors, note = read_tensors(folder, FILE)
        try:
            _, measure, rows, pooled = note.split("\n")
            quantile_Q, _ = tensors.pop("quantile_Q"), MEASURES[measure]
            return Distance(measure, tensors, quantile_Q, int(rows), pooled == "pooled")
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{folder}/{FILE}: describes no distance ({error})") from None

    def save(self, folder: Folder, recipe: str) -> None:
        """Put it into ``folder``, under the ``recipe`` of the ensemble."""
        note = [recipe, self.measure, str(self.rows), "pooled" if self.pooled else "whole"]
        write_tensors(folder, FILE, self.kept | {"quantile_Q": self.quantile_Q}, "\n".join(note))


@torch.no_grad()
def has_features(trunk: SharedTrunk, run: Run) -> bool:
    """Whether members share features of single rows."""
    x = run.dataset.preprocess(run.dataset.train.images[:2].to(run.device))
    return trunk.plan != "whole model" and bool(_values(trunk, trunk.trunk(x)))


def features(trunk: Trunk, shared: Any) -> Tensor:
    """``feature_BF`` (float32) from what ``trunk`` gave. Raises ModelError where members share none, as those of
    several trunks."""
    values = [] if isinstance(trunk, SharedTrunks) else _values(trunk, shared)
    if not values:
        raise ModelError(
            "sample.distance: members of this classifier share no features of single rows, so there is nothing to"
            " measure distances in; set sample.distance to none, or collect.subset to head"
        )
    averaged = [
        value.mean((2, 3)) if value.ndim == 4 else value.mean(1) if value.ndim == 3 else value for value in values
    ]
    return averaged[0].float() if len(averaged) == 1 else torch.cat(averaged, dim=1).float()


def _values(trunk: SharedTrunk, shared: tuple[Any, ...]) -> list[Tensor]:
    """Those of the trunk's values that a row has of its own; a trunk that is not cut gives the images only."""
    if trunk.plan == "whole model":
        return []
    of_rows = [value for kind, value in zip(trunk.kinds, shared, strict=True) if kind == "rows"]
    return [value for value in of_rows if value.is_floating_point() and 2 <= value.ndim <= 4]


def _features(trunk: SharedTrunk, run: Run, rows: Split) -> Iterator[Tensor]:
    """``feature_BF`` of ``rows``, on the CPU, part by part."""
    for start in range(0, len(rows), ROWS):
        x = run.dataset.preprocess(rows.images[start : start + ROWS].to(run.device))
        with torch.no_grad():
            feature_BF = features(trunk, trunk.trunk(x)).cpu()
        if run.progress is not None:
            run.progress(min(start + ROWS, len(rows)), len(rows))
        yield feature_BF


@torch.no_grad()
def _pooled(trunk: SharedTrunk, run: Run) -> bool:
    x = run.dataset.preprocess(run.dataset.train.images[:2].to(run.device))
    return any(value.ndim > 2 for value in _values(trunk, trunk.trunk(x)))
