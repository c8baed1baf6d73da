"""Snapshots of the subset: their parameters, what is known of each, and their columns as a stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.models.subset import Subset

PIECE = 1 << 18
"""Values of a tensor that one piece of a stream holds: what is in memory at once of each snapshot."""


@dataclass(frozen=True)
class Fact:
    """What is known of one snapshot."""

    chain: int
    step: int
    seed: int
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Snapshots:
    """``theta_SD`` with a row of facts each, ordered by chain and step."""

    subset: Subset
    theta_SD: Tensor
    facts: tuple[Fact, ...]

    @property
    def chains_S(self) -> Tensor:
        """Chain of each snapshot."""
        return torch.tensor([fact.chain for fact in self.facts])

    def divide(self, chains: int) -> tuple["Snapshots", "Snapshots"]:
        """Those of the first ``chains`` chains, which the generator may see, and the others, withheld from it."""
        seen = seen_of(self.facts, chains)
        halves = (slice(seen), slice(seen, None))
        first, last = (Snapshots(self.subset, self.theta_SD[rows], self.facts[rows]) for rows in halves)
        return first, last

    @property
    def stream(self) -> "InMemorySnapshots":
        """Their columns as a stream; see `span.SnapshotStream`."""
        return InMemorySnapshots(self.subset, self.theta_SD)


@dataclass(frozen=True)
class InMemorySnapshots:
    """Columns of snapshots in memory, as a stream like `parquet.ShardedSnapshots`."""

    subset: Subset
    theta_SD: Tensor

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, theta_Sd) of one piece of a parameter tensor after another."""
        for name, whole_Sd in zip(self.subset.names, self.theta_SD.split(self.subset.sizes, dim=1), strict=True):
            for theta_Sd in whole_Sd.split(PIECE, dim=1):
                yield name, theta_Sd

    def to(self, device: torch.device | str) -> "InMemorySnapshots":
        return InMemorySnapshots(self.subset, self.theta_SD.to(device))


def seen_of(facts: Sequence[Fact], chains: int) -> int:
    """How many snapshots are of the first ``chains`` chains; these come first."""
    return sum(fact.chain < chains for fact in facts)
