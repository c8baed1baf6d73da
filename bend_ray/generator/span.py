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

from bend_ray.snapshots.parquet import IN_MEMORY
from bend_ray.snapshots.snapshots import InMemorySnapshots

SnapshotStream = Callable[[], Iterator[tuple[str, Tensor]]]
"""Streams (name, theta_Sd), columns of one parameter tensor after another, as often as it is called. A large tensor
comes in several pieces, one after another."""
Scaling = Literal["tensor", "parameter", "none"]
COLUMNS = 1 << 12
"""Columns at once, in float32."""


def head_rows(stream: SnapshotStream, S: int) -> SnapshotStream:
    """The first ``S`` rows of ``stream``."""

    def rows() -> Iterator[tuple[str, Tensor]]:
        for name, theta_Xd in stream():
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

    stream: SnapshotStream
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
        for _, theta_Sd in self.stream():
            for theta_Sc in theta_Sd.split(COLUMNS, dim=1):
                snapshots_Sc = theta_Sc.to(c_MR.device)
                first_c = snapshots_Sc[0]  # a parameter that never moves stays where it is, to the bit
                theta_Mc = theta_MD[:, start : start + len(first_c)]
                torch.addmm(first_c, combination_MS, snapshots_Sc - first_c, out=theta_Mc)
                if outside:
                    noise_Mc = torch.stack([torch.randn(len(first_c), generator=one) for one in noise])
                    theta_Mc += outside * snapshots_Sc.std(0, correction=0) * noise_Mc.to(c_MR.device)
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
        for _, theta_Sd in self.stream():
            here = slice(start, start + theta_Sd.shape[1])
            mean_d, scale_d = self.mean_D[here].double(), self.scale_D[here].double()
            rows = (theta_XD[:, here], theta_Sd.to(theta_XD.device))
            x_Xd, x_Sd = ((theta.double() - mean_d) / scale_d for theta in rows)
            yield x_Xd, x_Sd
            start = here.stop

    def to(self, device: torch.device | str) -> "Span":
        few = isinstance(self.stream, InMemorySnapshots) and self.stream.theta_SD.nbytes <= IN_MEMORY
        stream = self.stream.to(device) if isinstance(self.stream, InMemorySnapshots) and few else self.stream
        return Span(self.mean_D.to(device), self.scale_D.to(device), stream, self.weights_SR.to(device))


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
