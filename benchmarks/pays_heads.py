"""Linear heads on kept features, in closed form or trained to the end."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SHRINK = 1e-2
"""Share of the mean variance that is added to a covariance."""
SCALES = torch.logspace(-1, 2, 31, dtype=torch.float64)
PENALTIES, EVALUATIONS = (1e-5, 1e-4, 1e-3), 50
"""Of logistic regression: weights' penalties, and passes over all rows for each."""


@dataclass(frozen=True)
class Statistics:
    """Of features with labels, float64."""

    mean_F: Tensor
    class_KF: Tensor
    """Means of classes."""
    share_K: Tensor
    within_FF: Tensor
    """Covariance within classes, a little shrunk."""
    root_FF: Tensor
    """within^(-1/2)"""

    @staticmethod
    def of(phi_BF: Tensor, label_B: Tensor, K: int) -> "Statistics":
        phi_BF = phi_BF.double()
        share_K = torch.bincount(label_B, minlength=K).double() / len(label_B)
        one_BK = F.one_hot(label_B, K).double()
        class_KF = one_BK.T @ phi_BF / one_BK.sum(0).clamp_min(1)[:, None]
        apart_BF = phi_BF - class_KF[label_B]
        within_FF = apart_BF.T @ apart_BF / len(label_B)
        within_FF += SHRINK * within_FF.diag().mean() * torch.eye(len(within_FF), dtype=torch.float64)
        value_F, vectors_FF = torch.linalg.eigh(within_FF)
        return Statistics(phi_BF.mean(0), class_KF, share_K, within_FF, vectors_FF / value_F.sqrt() @ vectors_FF.T)

    @property
    def whitened_KF(self) -> Tensor:
        """Class means, centred, in units of the spread within classes."""
        return (self.class_KF - self.mean_F) @ self.root_FF

    def head(self, weight_XKF: Tensor, offset_XK: Tensor) -> Tensor:
        """``w_XKP`` (float32, the bias last) of weights and of logits at the mean."""
        bias_XK = offset_XK - weight_XKF @ self.mean_F
        return torch.cat([weight_XKF, bias_XK[..., None]], dim=-1).float()

    def parts(self, w_XKP: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `head`; what all classes have in common is taken off."""
        w_XKP = w_XKP.double()
        w_XKP = w_XKP - w_XKP.mean(-2, keepdim=True)
        return w_XKP[..., :-1], w_XKP[..., -1] + w_XKP[..., :-1] @ self.mean_F


def discriminant(statistics: Statistics) -> Tensor:
    """``w_KP`` of linear discriminant analysis: log densities of normals with one covariance."""
    m_KF = statistics.whitened_KF
    offset_K = statistics.share_K.clamp_min(1e-6).log() - 0.5 * m_KF.square().sum(1)
    return statistics.head(m_KF @ statistics.root_FF, offset_K)


def least_squares(phi_BF: Tensor, target_BK: Tensor, statistics: Statistics) -> Tensor:
    """``w_KP`` of ridge regression onto targets."""
    x_BF, mean_K = phi_BF.double() - statistics.mean_F, target_BK.double().mean(0)
    gram_FF = x_BF.T @ x_BF
    gram_FF += 1e-3 * gram_FF.diag().mean() * torch.eye(len(gram_FF), dtype=torch.float64)
    weight_FK = torch.linalg.solve(gram_FF, x_BF.T @ (target_BK.double() - mean_K))
    return statistics.head(weight_FK.T, mean_K)


def ridge(phi_BF: Tensor, label_B: Tensor, statistics: Statistics) -> Tensor:
    """`least_squares` onto labels, times what gives the lowest NLL on the same rows."""
    K = len(statistics.class_KF)
    w_KP = least_squares(phi_BF, F.one_hot(label_B, K), statistics)
    logits_BK = logits(phi_BF, w_KP[None])[0].double()
    loss = [F.cross_entropy(scale * logits_BK, label_B).item() for scale in SCALES]
    return w_KP * SCALES[loss.index(min(loss))].float()


def logistic(
    phi_BF: Tensor, label_B: Tensor, start_KP: Tensor, statistics: Statistics, penalty: float, iterations: int
) -> Tensor:
    """``w_KP`` of logistic regression with a penalty on weights of standardised features, L-BFGS from ``start_KP``."""
    spread_F = phi_BF.double().std(0).clamp_min(1e-6)
    x_BF = (phi_BF.double() - statistics.mean_F) / spread_F
    weight_KF, offset_K = statistics.parts(start_KP)
    weight, offset = (weight_KF * spread_F).requires_grad_(), offset_K.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, offset], max_iter=iterations, max_eval=iterations, history_size=20)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_BF @ weight.T + offset, label_B) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return statistics.head(weight.detach() / spread_F, offset.detach())


def best_logistic(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], start_KP: Tensor, statistics: Statistics
) -> Tensor:
    """`logistic` with the one of `PENALTIES` that has the lowest NLL on validation rows."""
    fits = [logistic(*train, start_KP, statistics, penalty, EVALUATIONS) for penalty in PENALTIES]
    return min(fits, key=lambda w_KP: F.cross_entropy(logits(val[0], w_KP[None])[0], val[1]).item())


def logits(phi_BF: Tensor, w_MKP: Tensor) -> Tensor:
    """``logits_MBK``, float32."""
    return torch.einsum("bf,mkf->mbk", phi_BF, w_MKP[..., :-1]) + w_MKP[:, None, :, -1]
