"""The span: exact coordinates for snapshots, in which everything else works.

S snapshots lie in an affine space of at most S - 1 dimensions, however many parameters D they have. The eigenvectors of
their S x S Gram matrix give coordinates in it (the dual form of principal components), so that autoencoder and
diffusion model cost the same for a thousand parameters and for ten million. A point of the span is a combination of
the snapshots, and that is how it is kept: as S weights, not D parameters. So D is passed over once, for the Gram
matrix, and then only where members are made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bend_ray.errors import TrainingError
from bend_ray.weights.parts import IN_MEMORY
from bend_ray.weights.snapshots import Held

Blocks = Callable[[], Iterator[tuple[str, Tensor]]]
"""Streams (name, theta_Sd), columns of one parameter tensor after another, as often as it is called. A large tensor
comes in several pieces, one after another."""
Scaling = Literal["tensor", "parameter", "none"]
COLUMNS = 1 << 12
"""Columns multiplied at once in float32 before they are added up in float64."""
REAL = 1e-6
"""Eigenvalues below this share of the largest are rounding."""


def first(blocks: Blocks, S: int) -> Blocks:
    """The first ``S`` rows of ``blocks``."""

    def rows() -> Iterator[tuple[str, Tensor]]:
        for name, theta_Xd in blocks():
            yield name, theta_Xd[:S]

    return rows


@dataclass(frozen=True)
class Standard:
    """What parameters are standardised by."""

    mean_D: Tensor
    scale_D: Tensor

    def standardise(self, theta_SD: Tensor) -> Tensor:
        """``x_SD``: centred, in units of the spread."""
        return (theta_SD - self.mean_D) / self.scale_D


@dataclass(frozen=True)
class Span(Standard):
    """An affine map between parameters and ``c_SR``, coordinates of the snapshots' span.

    Parameters are standardised first: minus the snapshots' mean, over a spread (the root mean square of the centred
    values of each tensor, or of each parameter), so that a tensor of small numbers counts as much as one of large.
    Distances between coordinates are distances between standardised parameters.
    """

    blocks: Blocks
    """The snapshots it is of."""
    weights_SR: Tensor
    """float64: the combination of centred, standardised snapshots that is the direction of each coordinate, of length
    1. Those of most variance come first."""

    @property
    def R(self) -> int:
        """Rank: the number of coordinates."""
        return self.weights_SR.shape[1]

    def encode(self, theta_XD: Tensor) -> Tensor:
        """``c_XR``: coordinates of the nearest point of the span."""
        products_XS = torch.zeros(len(theta_XD), len(self.weights_SR), dtype=torch.float64, device=theta_XD.device)
        for x_Xd, x_Sd in self._standardised(theta_XD):
            products_XS += x_Xd @ x_Sd.T
        centred_XS = products_XS - products_XS.mean(1, keepdim=True)
        return (centred_XS @ self.weights_SR.to(theta_XD.device)).float()

    def decode(self, c_MR: Tensor, outside: float = 0.0, noise: tuple[torch.Generator, ...] = ()) -> Tensor:
        """``theta_MD``: the parameters at coordinates ``c_MR``.

        ``outside`` adds noise in all D directions, from a generator for each row: so many standard deviations of each
        parameter over the snapshots (the diagonal of SWAG: Maddox et al. 2019).
        """
        combination_MS = c_MR.double() @ self.weights_SR.T
        # Weights of deviations from the mean are weights of the snapshots that add up to 1.
        combination_MS += 1 / combination_MS.shape[1] - combination_MS.mean(1, keepdim=True)
        combination_MS = combination_MS.float()
        theta_MD, start = c_MR.new_empty(len(c_MR), len(self.mean_D)), 0
        for _, theta_Sd in self.blocks():
            for theta_Sc in theta_Sd.split(COLUMNS, dim=1):
                there_Sc = theta_Sc.to(c_MR.device)
                first_c = there_Sc[0]  # a parameter that never moves stays where it is, to the bit
                theta_Mc = theta_MD[:, start : start + len(first_c)]
                torch.addmm(first_c, combination_MS, there_Sc - first_c, out=theta_Mc)
                if outside:
                    noise_Mc = torch.stack([torch.randn(len(first_c), generator=one) for one in noise])
                    theta_Mc += outside * there_Sc.std(0, correction=0) * noise_Mc.to(c_MR.device)
                start += len(first_c)
        return theta_MD

    def residual(self, theta_XD: Tensor) -> Tensor:
        """Distance of each row to the span, standardised: 0 inside."""
        combination_XS = self.encode(theta_XD).double() @ self.weights_SR.T.to(theta_XD.device)
        combination_XS -= combination_XS.mean(1, keepdim=True)
        squared_X = torch.zeros(len(theta_XD), dtype=torch.float64, device=theta_XD.device)
        for x_Xd, x_Sd in self._standardised(theta_XD):
            squared_X += (x_Xd - combination_XS @ x_Sd).square().sum(1)
        return squared_X.sqrt().float()

    def _standardised(self, theta_XD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Columns of these rows and of the snapshots, float64."""
        start = 0
        for _, theta_Sd in self.blocks():
            here = slice(start, start + theta_Sd.shape[1])
            mean_d, scale_d = self.mean_D[here].double(), self.scale_D[here].double()
            rows = (theta_XD[:, here], theta_Sd.to(theta_XD.device))
            x_Xd, x_Sd = ((theta.double() - mean_d) / scale_d for theta in rows)
            yield x_Xd, x_Sd
            start = here.stop

    def to(self, device: torch.device | str) -> "Span":
        few = isinstance(self.blocks, Held) and self.blocks.theta_SD.nbytes <= IN_MEMORY
        blocks = self.blocks.to(device) if isinstance(self.blocks, Held) and few else self.blocks
        return Span(self.mean_D.to(device), self.scale_D.to(device), blocks, self.weights_SR.to(device))


@dataclass(frozen=True)
class Gram:
    """All that one pass over the snapshots tells: products of every pair of rows, standardised.

    The first S rows are those that the generator sees; they alone give mean and spread. Behind them come withheld ones.
    """

    mean_D: Tensor
    scale_D: Tensor
    product_XX: Tensor
    """float64; centred on the mean of the first S rows."""
    S: int

    @property
    def length_X(self) -> Tensor:
        """Squared length of each row, standardised."""
        return self.product_XX.diag()

    def span(self, blocks: Blocks, explained: float) -> tuple[Span, Tensor]:
        """The span of the first S rows, cut to the smallest rank that keeps the share ``explained`` of their variance,
        and the coordinates ``c_XR`` of all rows. ``blocks`` streams the first S rows.

        Raises TrainingError where they do not differ.
        """
        variance_S, vectors_SS = torch.linalg.eigh(self.product_XX[: self.S, : self.S])
        variance_S, vectors_SS = variance_S.flip(0).clamp_min(0), vectors_SS.flip(1)
        # One is exactly 0 in theory, for the mean is taken off.
        real = int((variance_S > REAL * variance_S[0]).sum()) if variance_S[0] > 0 else 0
        if real == 0:
            raise TrainingError("the snapshots are all the same; raise collect.lr or collect.epochs")
        kept_S = variance_S.cumsum(0) / variance_S.sum()
        R = min(real, int((kept_S < explained).sum()) + 1)
        weights_SR = vectors_SS[:, :R] / variance_S[:R].sqrt()
        return Span(self.mean_D, self.scale_D, blocks, weights_SR), self.coordinates(weights_SR)

    def coordinates(self, weights_SR: Tensor) -> Tensor:
        """``c_XR`` of all rows in the directions of a `Span`."""
        return (self.product_XX[:, : self.S] @ weights_SR).float()


def gram(blocks: Blocks, S: int, scaling: Scaling = "tensor") -> Gram:
    """Pass once over ``blocks`` of X >= S rows, the first S of which the generator may see.

    Products are made in float32 of differences from the mean, a few thousand columns at once, and added up in float64;
    what rounding leaves of the mean is taken off the products. One block is in memory at a time.
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

    for name, theta_Xd in blocks():
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
    return Gram(torch.cat(means), torch.cat(scales), total_XX, S)


def _products(theta_Xd: Tensor, S: int, scaled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Products of every pair of rows of one block (float64), centred and, if ``scaled``, each column over its spread;
    the mean and the spread of its columns over the first S rows."""
    found_XX = torch.zeros(len(theta_Xd), len(theta_Xd), dtype=torch.float64)
    means, spreads = [], []
    for theta_Xc in theta_Xd.split(COLUMNS, dim=1):
        first_c = theta_Xc[0]  # of a parameter that never moved, the mean itself, to the bit
        x_Xc = theta_Xc - first_c
        mean_c = x_Xc[:S].mean(0)
        x_Xc = x_Xc - mean_c
        if scaled:
            spread_c = x_Xc[:S].square().mean(0).sqrt()
            spread_c = torch.where(spread_c > 0, spread_c, torch.ones_like(spread_c))
            spreads.append(spread_c)
            x_Xc = x_Xc / spread_c
        found_XX += (x_Xc @ x_Xc.T).double()
        means.append(first_c + mean_c)
    return found_XX, torch.cat(means), torch.cat(spreads) if scaled else None


def _centred(product_XX: Tensor, S: int) -> Tensor:
    """Products of rows less the mean of the first S rows."""
    row_X = product_XX[:, :S].mean(1)
    return product_XX - row_X[:, None] - row_X[None, :] + row_X[:S].mean()


@dataclass(frozen=True)
class FullSpace(Standard):
    """Standardised parameters themselves as coordinates, R = D: what autoencoders of the literature work on."""

    @property
    def R(self) -> int:
        return len(self.mean_D)

    encode = Standard.standardise

    def decode(self, x_MD: Tensor, outside: float = 0.0, noise: tuple[torch.Generator, ...] = ()) -> Tensor:
        """``theta_MD`` of standardised parameters; ``outside`` as in `Span.decode`, in units of ``scale_D``."""
        if outside:
            noise_MD = torch.stack([torch.randn(self.R, generator=one) for one in noise])
            x_MD = x_MD + outside * noise_MD.to(x_MD.device)
        return torch.addcmul(self.mean_D, self.scale_D, x_MD)

    def to(self, device: torch.device | str) -> "FullSpace":
        return FullSpace(self.mean_D.to(device), self.scale_D.to(device))
