"""The shared trunk's pass over rows that several sets of members answer: made once, kept for the others."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from bend_ray.models.trunk import SharedTrunk
from bend_ray.models.trunks import Trunk


@dataclass
class Passes:
    """What a trunk gave for batches of rows, by the name of each batch. Answers keep their bits."""

    room: int
    """Bytes that may still be kept; what does not fit is made anew each time."""
    made: dict[Any, tuple[Any, ...]] = field(default_factory=dict)

    def kept(self, trunk: Trunk, name: Any) -> Trunk:
        """``trunk`` for the batch of this ``name``, which must be the same rows each time and the same network. Several
        trunks are as they were: which of them run depends on the members."""
        if not isinstance(trunk, SharedTrunk):
            return trunk
        plain = trunk.trunk

        def once(x: Tensor) -> tuple[Any, ...]:
            if name in self.made:
                return self.made[name]
            shared = plain(x)
            size = sum(value.nbytes for value in shared if isinstance(value, Tensor))
            if size <= self.room:
                self.made[name], self.room = shared, self.room - size
            return shared

        return replace(trunk, trunk=once)
