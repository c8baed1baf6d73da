"""The plan: how members are run, chosen by measuring both ways once.

The fastest plan depends on the machine and its mood, and with it the last bits of the logits. What must be the same
bits everywhere (the report) keeps the plan that follows from the graph; what must be fast asks for a measured one.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from bend_ray.ensemble.trunk import SharedTrunk

CHUNKS = (4, 16, 64, 256)
"""Members at once that are tried under vmap."""
TIMED = 2
"""Times each way is timed; the first of all is warming up."""


def bucket(rows: int) -> int:
    """Batches of so many rows share a plan: the next power of two."""
    return 1 << max(0, rows - 1).bit_length()


@torch.no_grad()
def measured(cut: SharedTrunk, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``cut`` with the plan that is fastest a member on inputs ``x``: a loop, or vmap over as many as memory allows.

    Raises ModelError where shapes do not fit.
    """
    if cut.plan == "whole model":
        return cut
    best = replace(cut, plan="loop")
    with cut.told(theta_MD, x):
        shared = cut.trunk(x)
        fastest = _seconds(best, theta_MD[:2], shared)
        for chunk in CHUNKS:
            tried = replace(cut, plan="vmap", chunk=min(chunk, len(theta_MD)))
            if tried.at_once(len(x)) < tried.chunk:
                break
            try:
                seconds = _seconds(tried, theta_MD[: tried.chunk], shared)
            except RuntimeError:  # vmap has no rule for one of the operations
                break
            if seconds < fastest:
                best, fastest = tried, seconds
            if seconds > 2 * fastest or tried.chunk < chunk:
                break
    return best


def _seconds(cut: SharedTrunk, theta_MD: Tensor, shared: tuple) -> float:
    """Seconds a member, the best of a few."""
    taken = []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        found = cut.members(theta_MD, shared)
        if found.is_cuda:
            torch.cuda.synchronize(found.device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) / len(theta_MD)
