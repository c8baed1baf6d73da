"""Several shared trunks: members stand on one of several networks, and each network runs once for all of its members.

All networks are of one kind and are cut at the same parameters; they differ in what is frozen.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bend_ray.errors import ModelError
from bend_ray.models.subset import Subset
from bend_ray.models.trunk import Plan, SharedTrunk


@dataclass(frozen=True)
class SharedTrunks:
    """Like a `SharedTrunk`, for the M members that ``trunk_M`` is about."""

    trunks: tuple[SharedTrunk, ...]
    trunk_M: Tensor
    """Number of each member's trunk, on the CPU."""

    @property
    def subset(self) -> Subset:
        return self.trunks[0].subset

    @property
    def plan(self) -> Plan:
        return self.trunks[0].plan

    @property
    def chunk(self) -> int:
        return self.trunks[0].chunk

    @property
    def trunk_share(self) -> float:
        """Share of a network's operations that run once for all of its members."""
        return self.trunks[0].trunk_share

    @property
    def precision(self) -> torch.dtype:
        return self.trunks[0].precision

    @property
    def compiled(self) -> Callable[..., Tensor] | None:
        return self.trunks[0].compiled

    @property
    def used(self) -> list[int]:
        """Numbers of the trunks that some member stands on; no other one runs."""
        return torch.unique(self.trunk_M).tolist()

    def describe(self) -> str:
        return f"{len(self.used)} trunks, {self.trunks[0].describe()}"

    def on(self, trunk_M: Tensor) -> "SharedTrunks":
        """For members on these trunks."""
        return replace(self, trunk_M=trunk_M.cpu())

    def pick(self, index_m: Tensor | Sequence[int]) -> "SharedTrunks":
        """For these of the members."""
        return self.on(self.trunk_M[torch.as_tensor(index_m).cpu()])

    def changed(self, change: Callable[[SharedTrunk], SharedTrunk]) -> "SharedTrunks":
        """With something changed in each trunk."""
        return replace(self, trunks=tuple(map(change, self.trunks)))

    @torch.no_grad()
    def logits(self, theta_MD: Tensor, x: Tensor) -> Tensor:
        """``logits_MBK`` for inputs x (B, C, H, W) and members theta_MD (M, D); see `SharedTrunk.logits`."""
        return torch.cat(list(self.chunks(theta_MD, x)))

    @torch.no_grad()
    def chunks(self, theta_MD: Tensor, x: Tensor, look: Callable[[Any], None] | None = None) -> Iterator[Tensor]:
        """`logits` of one chunk of members after another; ``look`` as in `SharedTrunk.chunks`."""
        with self.running(theta_MD, x):
            shared = self.trunk(x)
            if look is not None:
                look(shared)
            for index_m in torch.arange(len(theta_MD)).split(self.at_once(len(x))):
                yield self.pick(index_m).members(theta_MD[index_m.to(theta_MD.device)], shared)

    @torch.no_grad()
    def flops(self, theta_D: Tensor, x: Tensor) -> tuple[int, int]:
        """Operations of one trunk and of one tail, as `SharedTrunk.flops`."""
        return self.trunks[0].flops(theta_D, x)

    def at_once(self, rows: int) -> int:
        """Members of all trunks together that run at once on so many rows."""
        return len(self.used) * self.trunks[0].at_once(rows)

    def trunk(self, x: Tensor) -> dict[int, tuple[Any, ...]]:
        """What each trunk in use gives, by its number."""
        return {number: self.trunks[number].trunk(x) for number in self.used}

    def members(self, theta_MD: Tensor, shared: dict[int, tuple[Any, ...]]) -> Tensor:
        """``logits_MBK`` of all these members, from what ``trunk`` gave; those of one trunk at once, but no more than
        their share of `at_once`."""
        parts, order = [], []
        most = -(-len(theta_MD) // len(shared))
        for number in self.used:
            for index_m in (self.trunk_M == number).nonzero()[:, 0].split(most):
                of_these = theta_MD[index_m.to(theta_MD.device)]
                parts.append(self.trunks[number].members(of_these, shared[number]))
                order.append(index_m)
        return torch.cat(parts)[torch.cat(order).argsort().to(theta_MD.device)]

    def rows(self, shared: dict[int, tuple[Any, ...]], row_b: Tensor) -> dict[int, tuple[Any, ...]] | None:
        """What ``trunk`` gave, of these rows alone; None where it cannot be told apart by rows."""
        kept = {}
        for number, values in shared.items():
            if (of_rows := self.trunks[number].rows(values, row_b)) is None:
                return None
            kept[number] = of_rows
        return kept

    def running(self, theta_MD: Tensor, x: Tensor) -> AbstractContextManager[None]:
        """Where ``trunk`` and ``members`` are called; see `SharedTrunk.running`. Raises ModelError where members are
        not as many as their trunks were named for."""
        if theta_MD.ndim == 2 and 0 < len(theta_MD) != len(self.trunk_M):
            raise ModelError(f"{len(theta_MD)} members given where trunks are named for {len(self.trunk_M)}")
        return self.trunks[0].running(theta_MD, x)


Trunk = SharedTrunk | SharedTrunks
"""What runs members."""
