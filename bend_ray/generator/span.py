"""The span: exact coordinates for snapshots, in which everything else works.

S snapshots lie in an affine space of at most S - 1 dimensions, however many parameters D they have. The eigenvectors of
their S x S Gram matrix give an orthonormal basis of it (the dual form of principal components), so that autoencoder and
diffusion model cost the same for a thousand parameters and for ten million.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.errors import TrainingError

Blocks = Callable[[], Iterator[tuple[str, Tensor]]]
"""Streams (name, theta_Sd) of one parameter tensor after another, as often as it is called."""


@dataclass(frozen=True)
class Span:
    """An affine map between parameters and ``c_SR``, coordinates of the snapshots' span.

    Parameters are standardised first: minus the snapshots' mean, over one spread for each tensor (the root mean square
    of its centred values), so that a tensor of small numbers counts as much as one of large. Distances between
    coordinates are distances between standardised parameters.
    """

    mean_D: Tensor
    scale_D: Tensor
    basis_RD: Tensor
    """Orthonormal rows, those of most variance first."""

    @property
    def R(self) -> int:
        """Rank: the number of coordinates."""
        return len(self.basis_RD)

    def standardise(self, theta_SD: Tensor) -> Tensor:
        """``x_SD``: centred, each tensor in units of its spread."""
        return (theta_SD - self.mean_D) / self.scale_D

    def encode(self, theta_SD: Tensor) -> Tensor:
        """``c_SR``: coordinates of the nearest point of the span."""
        return self.standardise(theta_SD) @ self.basis_RD.T

    def decode(self, c_SR: Tensor) -> Tensor:
        """``theta_SD``: the parameters at coordinates ``c_SR``."""
        return torch.addcmul(self.mean_D, self.scale_D, c_SR @ self.basis_RD)

    def residual(self, theta_SD: Tensor) -> Tensor:
        """Distance of each row to the span, standardised: 0 inside."""
        x_SD = self.standardise(theta_SD)
        return (x_SD - (x_SD @ self.basis_RD.T) @ self.basis_RD).norm(dim=1)

    def to(self, device: torch.device | str) -> "Span":
        return Span(self.mean_D.to(device), self.scale_D.to(device), self.basis_RD.to(device))


def fit(blocks: Blocks, explained: float) -> Span:
    """The span of the snapshots, cut to the smallest rank that keeps the share ``explained`` of their variance.

    Two passes over ``blocks``, a float64 copy of one tensor at a time.
    Raises TrainingError where the snapshots do not differ.
    """
    gram_SS: Tensor | float = 0.0
    means, scales = [], []
    for _, theta_Sd in blocks():
        mean_d = theta_Sd.double().mean(0)
        spread = (theta_Sd.double() - mean_d).square().mean().sqrt()
        # A tensor that never moved has no spread; with 1 it stays where it is.
        means.append(mean_d.float())
        scales.append(torch.where(spread > 0, spread, torch.ones_like(spread)).float())
        x_Sd = _standardised(theta_Sd, means[-1], scales[-1])
        gram_SS = gram_SS + x_Sd @ x_Sd.T
    assert isinstance(gram_SS, Tensor)
    variance_S, vectors_SS = torch.linalg.eigh(gram_SS)
    variance_S, vectors_SS = variance_S.flip(0).clamp_min(0), vectors_SS.flip(1)
    # Below this, eigenvalues are rounding: one is exactly 0 in theory, for the mean is taken off.
    real = int((variance_S > 1e-10 * variance_S[0]).sum()) if variance_S[0] > 0 else 0
    if real == 0:
        raise TrainingError("the snapshots are all the same; raise collect.lr or collect.epochs")
    kept_S = variance_S.cumsum(0) / variance_S.sum()
    R = min(real, int((kept_S < explained).sum()) + 1)
    weights_RS = (vectors_SS[:, :R] / variance_S[:R].sqrt()).T
    basis = [
        (weights_RS @ _standardised(theta_Sd, mean_d, scale)).float()
        for (_, theta_Sd), mean_d, scale in zip(blocks(), means, scales, strict=True)
    ]
    scale_D = torch.cat([scale.expand(len(mean_d)) for scale, mean_d in zip(scales, means, strict=True)])
    return Span(torch.cat(means), scale_D, torch.cat(basis, dim=1))


def _standardised(theta_Sd: Tensor, mean_d: Tensor, scale: Tensor) -> Tensor:
    return (theta_Sd.double() - mean_d.double()) / scale.double()
