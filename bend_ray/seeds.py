"""Seeds have names: every random number comes from ``(seed, name, ...)``, never from who computes it or when.

``generator_for(0, "member", 17)`` gives the same stream in any process, on any worker, in any order.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_for(seed: int, *names: str | int) -> int:
    """A 63-bit seed, a pure function of ``(seed, *names)``."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for ``(seed, *names)``. Draw on the CPU and move: the bits are then the same on any device."""
    return torch.Generator().manual_seed(seed_for(seed, *names))


@contextlib.contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python inside the block, for code that takes no generator
    (initialisers, dropout, whatever a user's code draws); after it they are as they were. A decorator, too.
    """
    value, of_python, of_numpy = seed_for(seed, *names), random.getstate(), np.random.get_state()
    # Without a list, every GPU in sight would be opened, by processes that were promised none as well.
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(value)
        np.random.seed(value % 2**32)
        random.seed(value)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
