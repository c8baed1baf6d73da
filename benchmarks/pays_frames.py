"""Frames in which heads of different trunks can be compared, and a regression from what a trunk or a task is to heads.

The features of two trunks have axes of their own. What can be carried from one to another is what does not depend on
the axes: coefficients of whitened class means, or weights after a rotation onto a reference's features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from pays_heads import Statistics
from torch import Tensor

RIDGES = torch.logspace(-2, 4, 25, dtype=torch.float64)
"""Penalties that are tried."""


class Frame(Protocol):
    """Heads of a trunk as ``theta_XD`` that mean the same in every trunk, and back."""

    def encode(self, w_XKP: Tensor) -> Tensor: ...

    def decode(self, theta_XD: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ClassFrame:
    """Weights as combinations of whitened class means, D = K K + K; the rest of them is lost."""

    statistics: Statistics

    def encode(self, w_XKP: Tensor) -> Tensor:
        weight_XKF, offset_XK = self.statistics.parts(w_XKP)
        inverse_FF = torch.linalg.inv(self.statistics.root_FF)
        of_means_XKK = weight_XKF @ inverse_FF @ torch.linalg.pinv(self.statistics.whitened_KF, rtol=1e-6)
        return torch.cat([of_means_XKK.flatten(1), offset_XK], dim=1).float()

    def decode(self, theta_XD: Tensor) -> Tensor:
        K = len(self.statistics.class_KF)
        of_means_XKK = theta_XD[:, : K * K].reshape(-1, K, K).double()
        weight_XKF = of_means_XKK @ self.statistics.whitened_KF @ self.statistics.root_FF
        return self.statistics.head(weight_XKF, theta_XD[:, K * K :].double())


@dataclass(frozen=True)
class Rotated:
    """Weights on whitened features, rotated to lie as near as they can to a reference's (Procrustes), D = K (F + 1)."""

    statistics: Statistics
    rotation_FF: Tensor

    @staticmethod
    def onto(phi_BF: Tensor, statistics: Statistics, reference_BF: Tensor) -> "Rotated":
        """``reference_BF``: whitened features of the same rows."""
        z_BF = (phi_BF.double() - statistics.mean_F) @ statistics.root_FF
        U_FF, _, V_FF = torch.linalg.svd(z_BF.T @ reference_BF)
        return Rotated(statistics, U_FF @ V_FF)

    def encode(self, w_XKP: Tensor) -> Tensor:
        weight_XKF, offset_XK = self.statistics.parts(w_XKP)
        turned_XKF = weight_XKF @ torch.linalg.inv(self.statistics.root_FF) @ self.rotation_FF
        return torch.cat([turned_XKF.flatten(1), offset_XK], dim=1).float()

    def decode(self, theta_XD: Tensor) -> Tensor:
        K, n = self.statistics.class_KF.shape
        turned_XKF = theta_XD[:, : K * n].reshape(-1, K, n).double()
        weight_XKF = turned_XKF @ self.rotation_FF.T @ self.statistics.root_FF
        return self.statistics.head(weight_XKF, theta_XD[:, K * n :].double())


def regression(x_TG: Tensor, y_TD: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Ridge regression from conditions to parameters, and its leave-one-out residuals ``(T, D)``; of `RIDGES` the one
    where these are least."""
    mean_G, sd_G = x_TG.double().mean(0), x_TG.double().std(0).clamp_min(1e-9)
    mean_D = y_TD.double().mean(0)

    def standard(x_XG: Tensor) -> Tensor:
        return (x_XG.double() - mean_G) / sd_G

    x, y = standard(x_TG), y_TD.double() - mean_D
    gram_TT = x @ x.T
    eye_TT = torch.eye(len(x), dtype=torch.float64)
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in RIDGES:
        dual_TT = torch.linalg.inv(gram_TT + penalty * eye_TT)
        residual = (dual_TT @ y) / dual_TT.diag()[:, None]  # leave-one-out, in closed form (but for the mean)
        error = residual.square().mean().item()
        if best is None or error < best[0]:
            best = (error, x.T @ dual_TT @ y, residual)
    assert best is not None
    _, weight_GD, left_TD = best
    return lambda x_XG: (mean_D + standard(x_XG) @ weight_GD).float(), left_TD.float()
