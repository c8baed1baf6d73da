"""Snapshots of several trunks: what belongs to a trunk is taken off before the generator sees them, and put back.

Heads of two networks differ by far more than heads of one, and in a way that no chain explores. What chains explore,
and the generator learns, is how they part from their trunk's centre: the mean of its snapshots.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.generator.span import SnapshotStream
from bend_ray.snapshots.snapshots import InMemorySnapshots


@dataclass(frozen=True)
class Centres:
    """Of each trunk, and which trunk each snapshot is of that the generator saw."""

    centre_TD: Tensor
    trunk_S: Tensor

    @staticmethod
    def of(stream: SnapshotStream, trunk_S: Tensor, trunks: int) -> "Centres":
        """Of the first S rows in ``stream``, which is passed over once; each of so many ``trunks`` must have some."""
        rows_of = [(trunk_S == trunk).nonzero()[:, 0] for trunk in range(trunks)]
        pieces = [torch.stack([theta_Xd[rows].mean(0) for rows in rows_of]) for _, theta_Xd in stream()]
        return Centres(torch.cat(pieces, dim=1), trunk_S)

    @property
    def trunks(self) -> int:
        return len(self.centre_TD)

    def off(self, theta_XD: Tensor, trunk_X: Tensor) -> Tensor:
        """Parameters less the centre of their trunk."""
        return theta_XD - self.at(trunk_X).to(theta_XD.device)

    def at(self, trunk_X: Tensor) -> Tensor:
        """``centre_XD`` of the trunks of these numbers."""
        return self.centre_TD[trunk_X.to(self.centre_TD.device)]

    def off_stream(self, stream: SnapshotStream, trunk_X: Tensor) -> SnapshotStream:
        """``stream`` of snapshots on these trunks, less their centres; in memory where it is there."""
        if isinstance(stream, InMemorySnapshots):
            return InMemorySnapshots(stream.subset, self.off(stream.theta_SD, trunk_X))

        def centred() -> Iterator[tuple[str, Tensor]]:
            start = 0
            for name, theta_Xd in stream():
                here = slice(start, start + theta_Xd.shape[1])
                yield name, theta_Xd - self.centre_TD[:, here].to(theta_Xd.device)[trunk_X.to(theta_Xd.device)]
                start = here.stop

        return centred

    def to(self, device: torch.device | str) -> "Centres":
        return Centres(self.centre_TD.to(device), self.trunk_S)

    def state(self) -> dict[str, Tensor]:
        """All of it by name: what `read` reads."""
        return {"centre_TD": self.centre_TD, "trunk_S": self.trunk_S}

    @staticmethod
    def read(tensors: dict[str, Tensor], trunks: int, S: int, D: int) -> "Centres | None":
        """Those of so many ``trunks``; None for one, which has none. Raises KeyError or ValueError where ``tensors``
        hold something else."""
        if trunks == 1:
            return None
        centres = Centres(tensors["centre_TD"], tensors["trunk_S"])
        if centres.centre_TD.shape != (trunks, D):
            raise ValueError(f"centre_TD is {tuple(centres.centre_TD.shape)}, not {(trunks, D)}")
        if centres.trunk_S.shape != (S,) or not set(centres.trunk_S.tolist()) <= set(range(trunks)):
            raise ValueError(f"trunk_S holds no {S} numbers of {trunks} trunks")
        return centres


def taken_off(stream: SnapshotStream, trunk_X: Tensor, S: int, trunks: int) -> tuple[SnapshotStream, Centres | None]:
    """``stream`` of snapshots on these trunks less the centres of its first ``S`` rows, and the centres; of one trunk
    as it is, for the span has a mean of its own."""
    if trunks == 1:
        return stream, None
    centres = Centres.of(stream, trunk_X[:S], trunks)
    return centres.off_stream(stream, trunk_X), centres


def off(centres: Centres | None, theta_XD: Tensor, trunk_X: Tensor | None) -> Tensor:
    """Parameters on these trunks less their centres; as they are where there are none."""
    return theta_XD if centres is None or trunk_X is None else centres.off(theta_XD, trunk_X)


def put_back(centres: Centres | None, theta_MD: Tensor, trunk_M: Tensor | None) -> Tensor:
    """The inverse of `off`."""
    return theta_MD if centres is None or trunk_M is None else theta_MD + centres.at(trunk_M)
