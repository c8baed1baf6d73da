"""How good an ensemble is, and how different its members are. Labels are int64 (B,); numbers come back as floats."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.ensemble.spill import Logits, parts_of
from bend_ray.errors import DataError, ModelError
from bend_ray.progress import counted

ECE_BINS = 15
FLOOR = 1e-12
"""Probabilities are not let below this in a logarithm."""


@dataclass(frozen=True)
class Answers:
    """What one kind of answer says of B rows, reduced to what is measured: so much smaller than ``prob_BK``."""

    predicted_B: Tensor
    confidence_B: Tensor
    """Probability of the prediction."""
    nll_B: Tensor
    brier_B: Tensor
    entropy_B: Tensor

    @staticmethod
    def of(prob_BK: Tensor, label_B: Tensor, predicted_B: Tensor | None = None) -> "Answers":
        """``predicted_B``: the predictions to count, with the confidence in them, where ties are broken otherwise."""
        predicted_B = prob_BK.argmax(-1) if predicted_B is None else predicted_B
        return Answers(
            predicted_B=predicted_B,
            confidence_B=prob_BK.gather(-1, predicted_B[:, None])[:, 0],
            nll_B=nll(prob_BK, label_B),
            brier_B=(prob_BK.double() - F.one_hot(label_B, prob_BK.shape[1])).square().sum(-1),
            entropy_B=torch.special.entr(prob_BK).sum(-1),
        )

    def scores(self, label_B: Tensor) -> dict[str, float]:
        """accuracy, nll (nats), ece (15 bins, L1; Guo et al. 2017) and brier (sum over classes)."""
        from torchmetrics.functional.classification import binary_calibration_error  # three seconds to import

        right_B = self.predicted_B == label_B
        ece = binary_calibration_error(self.confidence_B.float(), right_B.long(), n_bins=ECE_BINS, norm="l1")
        return {
            "accuracy": right_B.double().mean().item(),
            "nll": self.nll_B.mean().item(),
            "ece": ece.item(),
            "brier": self.brier_B.mean().item(),
        }


def scores(prob_BK: Tensor, label_B: Tensor, predicted_B: Tensor | None = None) -> dict[str, float]:
    """See `Answers.scores` and `Answers.of`."""
    return Answers.of(prob_BK, label_B, predicted_B).scores(label_B)


def nll(prob_BK: Tensor, label_B: Tensor) -> Tensor:
    """Negative log-likelihood of each row, float64."""
    return F.nll_loss(prob_BK.double().clamp_min(FLOOR).log(), label_B, reduction="none")


def smoothed_votes(vote_BK: Tensor, M: int) -> Tensor:
    """Vote shares of M members and one more spread over all classes: a class without votes would have no logarithm."""
    return (M * vote_BK + 1 / vote_BK.shape[1]) / (M + 1)


def member_scores(logits_MBK: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """accuracy_M and nll_M (nats), float64, of each member alone."""
    right_MB, nll_MB = of_members(logits_MBK, label_B)
    return right_MB.double().mean(1), nll_MB.mean(1)


def of_members(logits_MBK: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Of each member for each row: whether it is right (right_MB), and its NLL (nll_MB, nats, float64)."""
    right_MB = logits_MBK.argmax(-1) == label_B
    log_prob_MBK = logits_MBK.double().log_softmax(-1)
    picked_MB = log_prob_MBK.gather(-1, label_B.expand(len(logits_MBK), -1)[..., None])[..., 0]
    return right_MB, -picked_MB.clamp_min(math.log(FLOOR))


def diversity(predicted_MB: Tensor, label_B: Tensor) -> dict[str, float]:
    """Mean over pairs of members of the share of rows they label differently, and of the overlap of their errors."""
    M = len(predicted_MB)
    if M < 2:
        return {"disagreement": 0.0, "error_iou": 1.0}
    pairs = M * (M - 1) / 2
    # Rows where two agree: sum over classes of the product of one-hot labels.
    agree_MM = sum(
        ((predicted_MB == k).double() @ (predicted_MB == k).double().T for k in predicted_MB.unique()),
        torch.zeros(M, M, dtype=torch.float64),
    )
    differ_MM = 1 - agree_MM / predicted_MB.shape[1]
    iou_MM = cross_error_iou(predicted_MB, predicted_MB, label_B)
    return {
        "disagreement": (differ_MM.triu(1).sum() / pairs).item(),
        "error_iou": (iou_MM.triu(1).sum() / pairs).item(),
    }


def cross_error_iou(predicted_AB: Tensor, other_CB: Tensor, label_B: Tensor) -> Tensor:
    """iou_AC: rows that both get wrong over rows that either does (p-diff's similarity); 1 where neither errs."""
    wrong_AB, wrong_CB = (predicted_AB != label_B).double(), (other_CB != label_B).double()
    both_AC = wrong_AB @ wrong_CB.T
    either_AC = wrong_AB.sum(1)[:, None] + wrong_CB.sum(1)[None, :] - both_AC
    return torch.where(either_AC > 0, both_AC / either_AC.clamp_min(1), torch.ones_like(both_AC))


def paired_bootstrap(difference_B: Tensor, seed: int, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``difference_B`` over resampled rows (Efron)."""
    B = len(difference_B)
    generator = seeds.generator_for(seed, "bootstrap")
    means = torch.stack(
        [difference_B[torch.randint(B, (B,), generator=generator)].double().mean() for _ in range(draws)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def check_logits(logits_MBK: Tensor, before: int = 0) -> None:
    """Raises ModelError for logits that are no (M, B, K) or not finite; members are numbered from ``before``."""
    if logits_MBK.ndim != 3 or logits_MBK.shape[0] == 0 or logits_MBK.shape[2] == 0:
        raise ModelError(f"logits of shape {tuple(logits_MBK.shape)}; expected (members, rows, classes)")
    bad_MB = ~torch.isfinite(logits_MBK).all(-1)
    if bad_MB.any():
        member = int(bad_MB.any(1).nonzero()[0])
        rows = counted(int(bad_MB[member].sum()), "rows")
        raise ModelError(f"member {before + member}: logits of {rows} are not finite; leave it out")


def checked_labels(logits_MBK: Logits, label_B: Tensor) -> Tensor:
    """The labels as int64, whichever whole numbers they came as.

    Raises DataError where they do not fit, ModelError as `check_logits`.
    """
    for part_MbK in parts_of(logits_MBK):
        check_logits(part_MbK)
    _, B, K = logits_MBK.shape
    if label_B.shape != (B,) or B == 0:
        raise DataError(f"labels of shape {tuple(label_B.shape)} for {B} rows of logits; give one label a row")
    whole_B = label_B.long()
    if label_B.is_floating_point() or not bool(((whole_B >= 0) & (whole_B < K)).all()):
        raise DataError(f"labels must be whole numbers from 0 to {K - 1}")
    return whole_B
