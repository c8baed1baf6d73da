"""The shared trunk: what all members have in common is computed once for a batch, and the rest, the tail, for every
member.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bend_ray.config import Ensemble as Settings
from bend_ray.errors import BendError, ModelError
from bend_ray.models.subset import Subset

CHUNK = Settings().chunk
"""Members that run at once unless a plan says otherwise: fixed, so that bits do not depend on the machine's mood."""
MAX_MEMORY = int(Settings().max_memory * 2**30)
"""Bytes that the tails of members that run at once may take."""
Plan = Literal["vmap", "loop", "whole model"]


@dataclass(frozen=True)
class SharedTrunk:
    """A classifier cut at the parameters of ``subset``."""

    subset: Subset
    plan: Plan
    """`vmap`: all members of a chunk at once; `loop`: the tail, member by member; `whole model`: not cut at all."""
    trunk: Callable[[Tensor], tuple[Any, ...]]
    tail: Callable[..., Tensor]
    """(theta by name, *what the trunk gave) -> logits_BK of one member."""
    trunk_share: float
    """Share of the graph's operations that run once for all members."""
    kinds: tuple[str | None, ...]
    """How each of the trunk's values depends on the batch: `rows` (its first axis), `size` (its number of rows),
    `fixed` (not at all), or None, some other way."""
    tail_bytes: Callable[[int], int]
    """Peak memory of one member's tail under vmap, bytes, for so many rows: as the graph says, nothing is measured."""
    statistics: tuple[str, ...]
    """Buffers of the batch norms whose input depends on the subset: running means and variances."""
    observe: Callable[..., Tensor]
    """As ``tail``, but these batch norms normalise by the batch; gives its statistics, flattened, in that order."""
    chunk: int = CHUNK
    """Members that run at once."""
    max_memory: int = MAX_MEMORY
    """Bytes that the tails of a chunk may take under vmap; one member's may take more."""
    precision: torch.dtype = torch.float32
    """Of all that is computed; logits come out as float32."""
    compiled: Callable[..., Tensor] | None = None
    """`chunk_of_tails` (under a loop, ``tail``), compiled; the trunk then is too."""

    def describe(self) -> str:
        return f"{self.plan}: {self.trunk_share:.0%} of operations once for all members, D = {self.subset.D}"

    @property
    def used(self) -> list[int]:
        """See `SharedTrunks.used`."""
        return [0]

    def on(self, trunk_M: Tensor) -> "SharedTrunk":
        """For members on trunks of these numbers: all are on this one."""
        return self

    def pick(self, index_m: Tensor | Sequence[int]) -> "SharedTrunk":
        """For these of the members: all share it."""
        return self

    @torch.no_grad()
    def logits(self, theta_MD: Tensor, x: Tensor) -> Tensor:
        """``logits_MBK`` for inputs x (B, C, H, W) and members theta_MD (M, D).

        A member's logits depend on the others of its chunk no further than float rounding. Raises ModelError where
        shapes do not fit the classifier.
        """
        return torch.cat(list(self.chunks(theta_MD, x)))

    @torch.no_grad()
    def chunks(
        self, theta_MD: Tensor, x: Tensor, look: Callable[[tuple[Any, ...]], None] | None = None
    ) -> Iterator[Tensor]:
        """`logits` of one chunk of members after another, so that those of all need not exist at once. ``look`` is
        shown what ``trunk`` gave."""
        with self.running(theta_MD, x):
            shared = self.trunk(x)
            if look is not None:
                look(shared)
            for chunk_MD in theta_MD.split(self.at_once(len(x))):
                yield self.members(chunk_MD, shared)

    @torch.no_grad()
    def flops(self, theta_D: Tensor, x: Tensor) -> tuple[int, int]:
        """Floating-point operations of matrix products and convolutions, of the trunk and of one tail, on inputs x."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as of_trunk:
            shared = self.trunk(x)
        with FlopCounterMode(display=False) as of_tail:
            self.tail(self.subset.split(theta_D), *shared)
        return of_trunk.get_total_flops(), of_tail.get_total_flops()

    def at_once(self, rows: int) -> int:
        """Members that run at once on so many rows."""
        fitting = self.max_memory // max(1, self.tail_bytes(rows)) if self.plan == "vmap" else self.chunk
        return max(1, min(self.chunk, fitting))

    def members(self, theta_MD: Tensor, shared: tuple[Any, ...]) -> Tensor:
        """``logits_MBK`` of all these members at once, from what ``trunk`` gave."""
        if self.plan == "vmap":
            run = self.compiled or self.chunk_of_tails
            return run(self.subset.split(theta_MD), *shared).float()
        run = self.compiled or self.tail
        return torch.stack([run(self.subset.split(theta_D), *shared) for theta_D in theta_MD]).float()

    def chunk_of_tails(self, theta: dict[str, Tensor], *shared: Any) -> Tensor:
        """``logits_MBK``: ``tail`` with one more axis, of members, on each tensor of ``theta``."""
        logits_MBK: Tensor = torch.func.vmap(self.tail, in_dims=(0, *[None] * len(shared)))(theta, *shared)
        return logits_MBK

    def rows(self, shared: tuple[Any, ...], row_b: Tensor) -> tuple[Any, ...] | None:
        """What ``trunk`` gave, of these rows alone; None where it cannot be told apart by rows."""
        if None in self.kinds:
            return None
        change: dict[str | None, Callable[[Any], Any]] = {
            "rows": lambda value: value[row_b],
            "size": lambda value: len(row_b),
            "fixed": lambda value: value,
        }
        return tuple(change[kind](value) for kind, value in zip(self.kinds, shared, strict=True))

    @contextlib.contextmanager
    def running(self, theta_MD: Tensor, x: Tensor) -> Iterator[None]:
        """Where ``trunk`` and ``members`` are called: what goes wrong inside (run whole, the classifier is the user's
        code) is a ModelError that says on what, and why."""
        if theta_MD.ndim != 2 or len(theta_MD) == 0:
            raise ModelError(f"parameters of shape {tuple(theta_MD.shape)}; expected (members, {self.subset.D})")
        try:
            yield
        except BendError:
            raise
        except Exception as error:
            raise ModelError(
                f"the classifier fails on inputs of shape {tuple(x.shape)} with {len(theta_MD)} members ({error})"
            ) from error
