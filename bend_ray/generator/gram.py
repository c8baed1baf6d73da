"""Products of every pair of snapshots: the one pass over all their parameters, from which their span follows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.errors import TrainingError
from bend_ray.generator import span as spans
from bend_ray.generator.span import Scaling, SnapshotStream, Span

RANK_TOLERANCE = 1e-6
"""Eigenvalues below this share of the largest are rounding."""


@dataclass(frozen=True)
class Gram:
    """What one pass over the snapshots gives: products of every pair of rows, standardised.

    The first S rows are those that the generator sees; they alone give mean and spread. Behind them come withheld ones.
    """

    mean_D: Tensor
    scale_D: Tensor
    product_XX: Tensor
    """float64; centred on the mean of the first S rows."""
    S: int

    @classmethod
    def of(cls, stream: SnapshotStream, S: int, scaling: Scaling = "tensor") -> "Gram":
        """Pass once over ``stream`` of X >= S rows, the first S of which the generator may see.

        Products are made in float32 of differences from the mean, a few thousand columns at once, and added up in
        float64; what rounding leaves of the mean is taken off the products. One block is in memory at a time.
        """
        means, scales = [], []
        total_XX: Tensor | None = None
        tensor_XX: Tensor | None = None
        pieces: list[int] = []
        now = ""

        def finish() -> None:
            """Scale what one tensor has added up."""
            nonlocal total_XX
            if tensor_XX is None:
                return
            centred_XX, width = _centred(tensor_XX, S), sum(pieces)
            variance = float(centred_XX.diag()[:S].sum()) / (S * width)
            # A tensor that never moved has no spread; with 1 it stays where it is.
            spread = variance**0.5 if scaling == "tensor" and variance > 0 else 1.0
            if scaling != "parameter":
                scales.append(torch.full((width,), spread))
            total_XX = centred_XX / spread**2 if total_XX is None else total_XX + centred_XX / spread**2

        for name, theta_Xd in stream():
            if name != now:
                finish()
                tensor_XX, pieces, now = None, [], name
            product_XX, mean_d, std_d = _products(theta_Xd, S, scaling == "parameter")
            tensor_XX = product_XX if tensor_XX is None else tensor_XX + product_XX
            pieces.append(theta_Xd.shape[1])
            means.append(mean_d)
            if std_d is not None:
                scales.append(std_d)
        finish()
        assert total_XX is not None
        return cls(torch.cat(means), torch.cat(scales), total_XX, S)

    @property
    def length_X(self) -> Tensor:
        """Squared length of each row, standardised."""
        return self.product_XX.diag()

    def span(self, stream: SnapshotStream, explained: float) -> tuple[Span, Tensor]:
        """The span of the first S rows, of the smallest rank that keeps the share ``explained`` of their variance,
        and the coordinates ``c_XR`` of all rows. ``stream`` streams the first S rows.

        Raises TrainingError where they do not differ.
        """
        variance_S, vectors_SS = torch.linalg.eigh(self.product_XX[: self.S, : self.S])
        variance_S, vectors_SS = variance_S.flip(0).clamp_min(0), vectors_SS.flip(1)
        # One is exactly 0 in theory, for the mean is taken off.
        real = int((variance_S > RANK_TOLERANCE * variance_S[0]).sum()) if variance_S[0] > 0 else 0
        if real == 0:
            raise TrainingError("the snapshots are all the same; raise collect.lr or collect.epochs")
        kept_S = variance_S.cumsum(0) / variance_S.sum()
        R = min(real, int((kept_S < explained).sum()) + 1)
        weights_SR = vectors_SS[:, :R] / variance_S[:R].sqrt()
        return Span(self.mean_D, self.scale_D, stream, weights_SR), self.coordinates(weights_SR)

    def coordinates(self, weights_SR: Tensor) -> Tensor:
        """``c_XR`` of all rows in the directions of a `Span`."""
        return (self.product_XX[:, : self.S] @ weights_SR).float()


def _products(theta_Xd: Tensor, S: int, scaled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Products of every pair of rows of one block (float64), centred and, if ``scaled``, each column over its spread;
    the mean and the spread of its columns over the first S rows."""
    product_XX = torch.zeros(len(theta_Xd), len(theta_Xd), dtype=torch.float64)
    means, spreads = [], []
    for theta_Xc in theta_Xd.split(spans.COLUMNS, dim=1):
        first_c = theta_Xc[0]  # of a parameter that never moved, the mean itself, to the bit
        x_Xc = theta_Xc - first_c
        mean_c = x_Xc[:S].mean(0)
        x_Xc = x_Xc - mean_c
        if scaled:
            spread_c = x_Xc[:S].square().mean(0).sqrt()
            spread_c = torch.where(spread_c > 0, spread_c, torch.ones_like(spread_c))
            spreads.append(spread_c)
            x_Xc = x_Xc / spread_c
        product_XX += (x_Xc @ x_Xc.T).double()
        means.append(first_c + mean_c)
    return product_XX, torch.cat(means), torch.cat(spreads) if scaled else None


def _centred(product_XX: Tensor, S: int) -> Tensor:
    """Products of rows less the mean of the first S rows."""
    row_X = product_XX[:, :S].mean(1)
    return product_XX - row_X[:, None] - row_X[None, :] + row_X[:S].mean()
