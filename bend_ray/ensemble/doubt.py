"""Doubt about inputs unlike the training rows: noise on the head of each member, shaped by what the data pins down.

Generated heads differ only where snapshots do. In directions of feature space that training rows hardly use, nothing
holds a head in place, and the Laplace approximation's posterior of a linear layer is wide there (MacKay 1992; Daxberger
et al. 2021): its covariance is the inverse of the features' second moment. Members get noise of that shape. Its size
is the largest at which validation rows are predicted as well as without.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.ensemble.laplace import features, last_linear
from bend_ray.ensemble.spill import Logits
from bend_ray.ensemble.temperature import lowest_loss
from bend_ray.errors import ArtifactError, ModelError
from bend_ray.models.subset import Subset
from bend_ray.run import Run
from bend_ray.store.folders import Folder
from bend_ray.store.kinds import numbered
from bend_ray.store.tensors import read_tensors, write_tensors

FILE = "doubt.safetensors"
FLOOR = 0.05
"""Added to each eigenvalue of the second moment, times their median: directions without data get a finite width."""
SCALES = tuple(0.003 * 10 ** (i / 8) for i in range(17))
"""Sizes that are tried: from 0.003 to 0.3."""
TOLERANCE = 1.005
"""How much higher the validation NLL may be than without noise, times."""
ROWS = 256
"""Training rows that are run at once."""


@dataclass(frozen=True)
class Doubt:
    """Noise for the parameters of one linear layer, which gives the logits."""

    names: tuple[str, ...]
    """Of its weight (K, F) and, where it has one, of its bias (K,)."""
    root_FF: Tensor
    """Symmetric square root of the inverse second moment of its inputs, float64; the last row and column are the
    bias's, where there is one."""
    scale: float = 0.0

    @staticmethod
    def of(module: nn.Module, subset: Subset, run: Run) -> "Doubt":
        """For ``module`` on all training rows of ``run``, without a size yet; ``run.progress`` counts rows.

        Raises ModelError where the subset holds no linear layer that gives the logits.
        """
        name, head = _head(module, subset, run)
        moment_FF, rows = torch.zeros((), dtype=torch.float64), len(run.dataset.train)
        for feature_BF in _features(module, head, run):
            moment_FF = moment_FF + feature_BF.T @ feature_BF / rows
        names = [f"{name}.weight", *[f"{name}.bias"] * (head.bias is not None)]
        return Doubt(tuple(names), inverse_root(moment_FF))

    @staticmethod
    def load(folder: Folder, file: str = FILE) -> "Doubt":
        """What `save` has put into ``folder``. Raises ArtifactError where it is something else."""
        tensors, note = read_tensors(folder, file)
        try:
            return Doubt(tuple(note.split("\n")[1:]), tensors["root_FF"], tensors["scale"].item())
        except (KeyError, RuntimeError) as error:
            raise ArtifactError(f"{folder}/{file}: describes no noise ({error})") from None

    def save(self, folder: Folder, recipe: str, file: str = FILE) -> None:
        """Put it into ``folder``, under the ``recipe`` of the ensemble."""
        tensors = {"root_FF": self.root_FF, "scale": torch.tensor(self.scale, dtype=torch.float64)}
        write_tensors(folder, file, tensors, "\n".join([recipe, *self.names]))

    def added(self, theta_MD: Tensor, subset: Subset, ids: Sequence[int], seed: int) -> Tensor:
        """``theta_MD`` of the members ``ids`` with noise that follows from ``seed`` and a member's id alone."""
        noisy_MD = theta_MD.clone()
        places = subset.split(torch.arange(subset.D))
        columns_KF = torch.cat([places[name].reshape(len(places[self.names[0]]), -1) for name in self.names], dim=1)
        for row, member in enumerate(ids):
            stream = seeds.generator_for(seed, "doubt", member)
            noise_KF = torch.randn(columns_KF.shape, generator=stream, dtype=torch.float64) @ self.root_FF
            noisy_MD[row, columns_KF] += (self.scale * noise_KF).to(theta_MD)
        return noisy_MD


def files(trunks: int) -> list[str]:
    """Where the noise of each of so many trunks lies: its shape is that of the trunk's own features."""
    return [FILE] if trunks == 1 else [f"{numbered('doubt', trunk)}.safetensors" for trunk in range(trunks)]


def added(doubts: Sequence[Doubt], theta_MD: Tensor, subset: Subset, ids: Sequence[int], seed: int) -> Tensor:
    """``theta_MD`` of the members ``ids`` with noise of each one's trunk: member i is on trunk i modulo T."""
    noisy_MD, T = theta_MD.clone(), len(doubts)
    for trunk, of_trunk in enumerate(doubts):
        if rows := [row for row, member in enumerate(ids) if member % T == trunk]:
            noisy_MD[rows] = of_trunk.added(theta_MD[rows], subset, [ids[row] for row in rows], seed)
    return noisy_MD


def inverse_root(moment_FF: Tensor) -> Tensor:
    """``root_FF``, symmetric: its square is the inverse of ``moment_FF`` plus `FLOOR` of its median eigenvalue."""
    value_F, vector_FF = torch.linalg.eigh(moment_FF)
    value_F = value_F.clamp_min(0)
    floor = FLOOR * max(value_F.median().item(), torch.finfo(torch.float64).eps * value_F.max().item())
    root_FF: Tensor = (vector_FF / (value_F + floor).sqrt()) @ vector_FF.T
    return root_FF


def largest_scale(logits_of: Callable[[float], Logits], label_B: Tensor) -> float:
    """The largest of `SCALES` at which the NLL of the mean of ``logits_of(scale)``, (M, B, K), is at most `TOLERANCE`
    times that at 0, each at its own temperature; 0 where there is none."""
    highest = TOLERANCE * lowest_loss(logits_of(0.0), label_B)
    return next((scale for scale in reversed(SCALES) if lowest_loss(logits_of(scale), label_B) <= highest), 0.0)


def has_head(module: nn.Module, subset: Subset, run: Run) -> bool:
    """Whether the subset holds a linear layer whose output is the logits."""
    return _head_or_none(module, subset, run) is not None


def _head_or_none(module: nn.Module, subset: Subset, run: Run) -> tuple[str, nn.Linear] | None:
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    layer = last_linear(module, _inputs(run, module, slice(0, 2)))
    if layer is None or not all(first[id(parameter)] in subset.names for parameter in layer.parameters()):
        return None
    return first[id(layer.weight)].removesuffix(".weight"), layer


def _head(module: nn.Module, subset: Subset, run: Run) -> tuple[str, nn.Linear]:
    """Name and layer of the subset's linear layer whose output is the logits."""
    if (head := _head_or_none(module, subset, run)) is None:
        raise ModelError(
            "sample.doubt: laplace is for a subset with the linear layer that gives the logits, and this one has none"
            f" ({', '.join(subset.names[-4:])}); set collect.subset to head or norm+head, or sample.doubt to none"
        )
    return head


def _features(module: nn.Module, head: nn.Linear, run: Run) -> Iterator[Tensor]:
    """``feature_BF`` (float64, on the CPU): what ``head`` is given for training rows, and a 1 where it has a bias."""
    rows = len(run.dataset.train)
    for start in range(0, rows, ROWS):
        feature_BP = features(module, head, _inputs(run, module, slice(start, start + ROWS)))
        if run.progress is not None:
            run.progress(min(start + ROWS, rows), rows)
        yield feature_BP if head.bias is not None else feature_BP[:, :-1]


def _inputs(run: Run, module: nn.Module, rows: slice) -> Tensor:
    device = next(module.parameters()).device
    return run.dataset.preprocess(run.dataset.train.images[rows].to(device))
